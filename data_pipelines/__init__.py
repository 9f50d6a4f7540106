"""From native annotation files to device-ready batches."""
