"""REF-VLM itself on eight simulated devices: the same loss as on one, over five steps, in fp32."""

import numpy as np
import pytest
from refvlm_steps import losses

from refvlm_jax.config.schema import MeshConfig

pytestmark = [pytest.mark.multidevice, pytest.mark.slow(3)]


@pytest.fixture(scope="module")
def one_device() -> list[float]:
    return losses(MeshConfig(preset="single"))


@pytest.mark.parametrize(
    ("preset", "shape"),
    [("fsdp", (1, 8, 1, 1)), ("fsdp_tp", (1, 4, 1, 2))],
    ids=["fsdp", "fsdp_tp"],
)
def test_eight_devices_give_the_loss_of_one(
    preset: str, shape: tuple[int, int, int, int], one_device: list[float]
) -> None:
    found = losses(MeshConfig(preset=preset, shape=shape))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, one_device, rtol=1e-5)
