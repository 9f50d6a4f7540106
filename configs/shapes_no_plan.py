"""Ablation of the quickstart: answers without the plan block, everything else equal."""

from ml_collections import ConfigDict

from configs.shapes_tiny import get_config as base


def get_config() -> ConfigDict:
    """`shapes_tiny` whose answers start at once."""
    config = base()
    config.name = "shapes_no_plan"
    config.data.plan_block = False
    return config
