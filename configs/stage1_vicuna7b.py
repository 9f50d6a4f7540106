"""Stage 1: the projector alone, on text answers; Vicuna-7B v1.5."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage1`."""
    return stages.stage1("vicuna7b")
