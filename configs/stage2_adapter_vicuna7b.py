"""The adapter and the decoders behind it, everything before them frozen; Vicuna-7B v1.5."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage2_adapter`."""
    return stages.stage2_adapter("vicuna7b")
