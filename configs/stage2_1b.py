"""Stage 2: language model, projector, region prompts, box and mask decoders; a language model of 1.1 billion parameters, on one accelerator."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage2`."""
    return stages.one_device(stages.stage2("1b"))
