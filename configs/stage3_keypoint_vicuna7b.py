"""Stage 3: the keypoint decoder joins; Vicuna-7B v1.5."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage3_keypoint`."""
    return stages.stage3_keypoint("vicuna7b")
