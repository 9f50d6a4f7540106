"""Scoring and reporting: pure functions of prediction records and ground truth."""
