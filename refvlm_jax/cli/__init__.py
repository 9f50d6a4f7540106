"""The `refvlm` command: the only part of the library that knows every other part."""
