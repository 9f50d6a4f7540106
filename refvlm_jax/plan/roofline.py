"""Lower bounds on the time of a step from peak speeds: products, memory, links and network."""

import dataclasses
import math

from refvlm_jax.mesh.rules import MESH_AXES
from refvlm_jax.plan.hlo import Collectives
from refvlm_jax.plan.pods import Pod


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step."""

    compute: float
    """Products at peak speed."""
    memory: float
    """State read and written, and the operands of products, at full memory bandwidth."""
    links: float
    """Collectives inside a slice or node."""
    network: float
    """Collectives between slices or nodes."""
    model_flops: float
    """Operations a device that the model asks for, without recomputation."""
    peak_flops: float

    @property
    def overlapped(self) -> float:
        """Everything hides behind the slowest: no step is faster."""
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def serial(self) -> float:
        """Communication hides behind nothing."""
        return max(self.compute, self.memory) + self.links + self.network

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation of a step that takes so long."""
        return self.model_flops / (self.peak_flops * seconds) if seconds else 0.0


def communication(found: Collectives, pod: Pod, mesh_shape: dict[str, int]) -> dict[str, float]:
    """Seconds a step of the collectives by `links` and `network`."""
    seconds = {"links": 0.0, "network": 0.0}
    for op in found.ops:
        far = leaves_slice(op.axes, pod, mesh_shape)
        if not far:
            seconds["links"] += op.moved / link_speed(op.size, pod)
        elif pod.device.platform == "cuda":
            # A node's network cards share what its GPUs all need; the rest stays on NVLink.
            nodes = math.ceil(op.size / pod.local)
            share = (nodes - 1) / nodes if nodes > 1 else 1.0
            seconds["network"] += op.moved * share / (pod.device.network * pod.local)
        else:
            seconds["network"] += op.moved / pod.device.network
    return seconds


def leaves_slice(axes: tuple[str, ...], pod: Pod, mesh_shape: dict[str, int]) -> bool:
    """Whether a group along these mesh axes spans slices or nodes; inner axes are neighbours."""
    reach = 1
    for axis in reversed(MESH_AXES):
        reach *= mesh_shape[axis]
        if axis in axes and mesh_shape[axis] > 1 and reach > pod.local:
            return True
    return False


def link_speed(size: int, pod: Pod) -> float:
    """Bytes a second at which a device takes part in a collective of `size` neighbours.

    On a torus a group uses as many dimensions as it needs, each in both directions where its ends
    meet, else in one.
    """
    device = pod.device
    if device.platform != "tpu":
        return device.link
    speed, covered = 0.0, 1
    for length in sorted(pod.topology, reverse=True):
        if covered >= size and speed:
            break
        ring = device.wrap and length % device.wrap == 0
        speed += device.link * (2 if ring else 1)
        covered *= length
    return speed
