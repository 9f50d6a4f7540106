"""Stage 3 with Segment Anything for masks; Vicuna-7B v1.5."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage3_sam`."""
    return stages.stage3_sam("vicuna7b")
