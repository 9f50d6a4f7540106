"""The shapes world: rendered scenes with annotation files as real data sets publish them."""

from data_pipelines.shapes_world.write import SPLITS, WorldError, generate

__all__ = ["SPLITS", "WorldError", "generate"]
