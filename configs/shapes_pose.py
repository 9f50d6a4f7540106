"""The finished quickstart with a keypoint and a depth decoder added: text, boxes, masks, joints, metres.

As a published third stage does, it starts from the weights of the stage before, and teaches the new
units beside a share of everything that was learnt.
"""

from ml_collections import ConfigDict

from configs.shapes_tiny import get_config as base


def get_config() -> ConfigDict:
    """`shapes_tiny` with two more units, their tasks, and a shorter run."""
    config = base()
    config.name = "shapes_pose"
    config.ckpt.start_from = ("runs/quickstart",)
    decoder = dict(
        features=(1, 3), heads=4, dropout=0.0, mask_padding_queries=True, query_init=0.02,
        position_cycles=4.0, value_positions=True,
    )  # fmt: skip
    # A scene of this level has at most one person; a query is a slot times 18.
    config.model.keypoint = dict(
        **decoder, width=96, layers=2, mlp_dim=192, remat="none",
        box=dict(**decoder, num_queries=4, width=96, layers=1, mlp_dim=192),
    )  # fmt: skip
    # The world's ground reaches from 1.5 to 20 metres.
    config.model.depth = dict(
        **decoder, width=64, layers=1, mlp_dim=128, norm_groups=8, bins=32, min_depth=1.0,
        max_depth=25.0, gradient_scales=3,
    )  # fmt: skip
    config.data.update(batch_size=16, kpt_refs=4, depth_refs=1, depth_size=64)
    # What an opening teaches is learnt already.
    del config.data.opening_steps, config.data.opening_weights
    # One scene in seven has a person, so that joints need a larger share than depth.
    config.data.weights.update(T23=8.0, T24=4.0, T25=2.5)
    config.train.steps = 1500
    return config
