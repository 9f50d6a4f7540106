"""The longer recipe: the quickstart with a deeper tower, finer masks, more scenes, rows and steps."""

from ml_collections import ConfigDict

from configs.shapes_tiny import get_config as base


def get_config() -> ConfigDict:
    """`shapes_tiny`, larger and longer."""
    config = base()
    config.name = "shapes_small"
    config.model.vision.update(layers=3, mlp_dim=288)
    # The stem's finest map doubles the resolution of the masks.
    config.model.mask.features = (0, 1, 3)
    config.data.update(batch_size=16, opening_steps=800)
    config.data.weights.T03 = 4.5
    config.world.train = 12000
    config.train.steps = 2200
    config.ckpt.every_steps = 500
    return config
