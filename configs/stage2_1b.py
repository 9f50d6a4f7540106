"""Stage 2 at 1.1 billion parameters: decoders and all, on one accelerator."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage2`."""
    return stages.one_device(stages.stage2("1b"))
