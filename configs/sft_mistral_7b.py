"""Supervised fine-tuning of a stage 2 checkpoint on one set of tasks; Mistral-7B v0.1."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.sft`."""
    return stages.sft("mistral_7b")
