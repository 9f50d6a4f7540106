"""Stage 3: the keypoint decoder joins; Mistral-7B v0.1."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage3_keypoint`."""
    return stages.stage3_keypoint("mistral_7b")
