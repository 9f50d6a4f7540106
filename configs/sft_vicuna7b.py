"""Supervised fine-tuning of a stage 2 checkpoint on one set of tasks; Vicuna-7B v1.5."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.sft`."""
    return stages.sft("vicuna7b")
