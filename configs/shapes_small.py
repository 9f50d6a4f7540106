"""The longer recipe: the quickstart's model a third wider, finer masks, more steps."""

from ml_collections import ConfigDict

from configs.shapes_tiny import get_config as base


def get_config() -> ConfigDict:
    """`shapes_tiny`, larger and longer."""
    config = base()
    config.name = "shapes_small"
    config.model.vision.update(width=128, layers=4, mlp_dim=512)
    config.model.llama.update(width=128, layers=4, heads=4, kv_heads=4, mlp_dim=352)
    config.model.box.update(width=128, mlp_dim=256)
    # The stem's finest map doubles the resolution of the masks.
    config.model.mask.update(width=96, features=(0, 1, 3), mlp_dim=192)
    config.world.train = 16000
    config.optim.warmup_steps = 200
    config.train.steps = 4000
    config.ckpt.every_steps = 500
    return config
