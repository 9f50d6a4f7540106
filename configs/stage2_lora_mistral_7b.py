"""Stage 2 with low-rank adapters in the language model; Mistral-7B v0.1."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage2_lora`."""
    return stages.stage2_lora("mistral_7b")
