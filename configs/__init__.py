"""Recipes: one get_config() a file; recipes build on each other by function call."""
