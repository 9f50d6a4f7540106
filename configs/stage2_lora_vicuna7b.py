"""Stage 2 with low-rank adapters in the language model; Vicuna-7B v1.5."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage2_lora`."""
    return stages.stage2_lora("vicuna7b")
