"""Supervised fine-tuning of a stage 2 checkpoint on one set of tasks; Llama-3-8B."""

from ml_collections import ConfigDict

from configs import stages


def get_config() -> ConfigDict:
    """See `configs.stages.sft`."""
    return stages.sft("llama3_8b")
