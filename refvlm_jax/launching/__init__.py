"""Launch scripts of a run, rendered from its configuration to plain files."""
