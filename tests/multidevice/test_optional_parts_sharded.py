"""What a model may have besides, on eight simulated devices: the same loss as on one, in fp32."""

import dataclasses

import numpy as np
import pytest
from refvlm_steps import losses

from refvlm_jax.config.schema import MeshConfig
from refvlm_jax.testing.tiny import whole_config

pytestmark = [pytest.mark.multidevice, pytest.mark.slow(2)]


def test_optional_parts_in_micro_batches_give_the_loss_of_one_device() -> None:
    """Tower, adapter and SAM over both kinds of axes; test_refvlm_sharded.py has the other units."""
    model = dataclasses.replace(whole_config(), box=None, keypoint=None, depth=None)
    shape = (1, 4, 1, 2)
    found = losses(MeshConfig(preset="fsdp_tp", shape=shape), accumulate=2, model=model)
    one = losses(MeshConfig(preset="single"), model=model)
    np.testing.assert_allclose(found, one, rtol=1e-5)
