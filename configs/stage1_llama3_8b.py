"""Stage 1: the projector alone, on text answers; Llama-3-8B."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage1`."""
    return stages.stage1("llama3_8b")
