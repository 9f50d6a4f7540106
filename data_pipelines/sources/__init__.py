"""Converters from native annotation files to Dialog records, one module a family."""
