"""Configuration: typed fields, recipes, checks. Imports no JAX."""
