"""Stick figures with the seventeen COCO joints."""

import numpy as np

JOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
    "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
SKELETON = (
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9),
    (8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
)  # fmt: skip
"""COCO's edges, counted from 1."""
LIMBS = ((5, 7), (7, 9), (6, 8), (8, 10), (11, 13), (13, 15), (12, 14), (14, 16), (5, 6), (11, 12))


def joints(x: float, y: float, radius: float, pose: int) -> np.ndarray:
    """float[17, 2] joints of a figure that fits the disc of `radius` around (x, y).

    The figure faces the viewer: its left is on the right of the picture.
    """
    rng = np.random.default_rng(pose)
    arms, legs = rng.uniform(-0.6, 1.0, (2, 2)), rng.uniform(-0.1, 0.35, 2)
    points = np.zeros((17, 2))
    points[0] = (0, -0.72)
    points[1:5] = [(0.06, -0.78), (-0.06, -0.78), (0.13, -0.75), (-0.13, -0.75)]
    points[5], points[6] = (0.22, -0.48), (-0.22, -0.48)
    points[11], points[12] = (0.14, 0.12), (-0.14, 0.12)
    for side, sign in ((0, 1.0), (1, -1.0)):
        upper, lower = arms[0, side], arms[1, side]
        elbow = points[5 + side] + 0.27 * np.array([sign * np.cos(upper), np.sin(upper)])
        points[7 + side] = elbow
        points[9 + side] = elbow + 0.24 * np.array([sign * np.cos(lower), np.sin(lower)])
        knee = points[11 + side] + 0.38 * np.array([sign * np.sin(legs[side]), np.cos(legs[side])])
        points[13 + side] = knee
        points[15 + side] = knee + np.array([0.0, 0.38])
    return np.array([x, y]) + radius * 0.98 * points
