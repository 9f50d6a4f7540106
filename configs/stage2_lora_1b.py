"""Stage 2 at 1.1 billion parameters with low-rank adapters, on one accelerator."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.stage2_lora`."""
    return stages.one_device(stages.stage2_lora("1b"))
