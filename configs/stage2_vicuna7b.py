"""Stage 2: language model, projector, region prompts, box and mask decoders; Vicuna-7B v1.5."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage2`."""
    return stages.stage2("vicuna7b")
