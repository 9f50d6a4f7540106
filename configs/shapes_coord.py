"""Ablation of the quickstart: boxes written as coordinates in the text, no unit decoders for them."""

from ml_collections import ConfigDict

from configs.shapes_tiny import get_config as base

MASK_TASKS = ("T14", "T18", "T20", "T22")
"""Their answers have no form in the coordinate register."""


def get_config() -> ConfigDict:
    """`shapes_tiny` in the coordinate register; tasks that answer with masks have no such form."""
    config = base()
    config.name = "shapes_coord"
    config.data.register = "coord"
    weights = config.data.weights
    config.data.weights = {task: weights[task] for task in weights if task not in MASK_TASKS}
    config.eval.tasks = tuple(sorted(config.data.weights))
    return config
