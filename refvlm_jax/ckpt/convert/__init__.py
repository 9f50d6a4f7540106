"""Weights to and from PyTorch layouts: name tables, readers, writers and numeric verification."""
