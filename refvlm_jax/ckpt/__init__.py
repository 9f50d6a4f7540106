"""Checkpoints: saving, restoring, inspecting."""
