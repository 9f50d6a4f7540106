"""Stage 2: language model, projector, region prompts, box and mask decoders; Llama-3-8B."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage2`."""
    return stages.stage2("llama3_8b")
