"""Numeric verification: recorded PyTorch numbers, or PyTorch itself, against this library."""
