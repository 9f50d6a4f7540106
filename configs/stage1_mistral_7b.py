"""Stage 1: the projector alone, on text answers; Mistral-7B v0.1."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage1`."""
    return stages.stage1("mistral_7b")
