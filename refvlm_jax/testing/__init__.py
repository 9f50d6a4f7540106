"""Fixtures that tests and users share: tiny configurations and synthetic batches."""
