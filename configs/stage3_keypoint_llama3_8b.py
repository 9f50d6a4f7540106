"""Stage 3: the keypoint decoder joins; Llama-3-8B."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage3_keypoint`."""
    return stages.stage3_keypoint("llama3_8b")
