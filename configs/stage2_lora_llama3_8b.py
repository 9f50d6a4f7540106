"""Stage 2 with low-rank adapters in the language model; Llama-3-8B."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage2_lora`."""
    return stages.stage2_lora("llama3_8b")
