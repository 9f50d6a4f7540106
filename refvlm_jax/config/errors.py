"""The one error type of configuration."""


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the dotted field and the remedy."""
