"""The modules of REF-VLM and their composition."""
