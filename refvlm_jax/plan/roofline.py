"""Lower bounds on the time of a step from peak speeds: products, memory, links and network."""

import dataclasses

from refvlm_jax.mesh.rules import MESH_AXES
from refvlm_jax.plan.hlo import Collective, Collectives
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
        inside = min(op.size, members_inside(op.axes, pod, mesh_shape))
        network = _over_network(op, inside)
        seconds["network"] += network / pod.device.network
        seconds["links"] += (op.moved - network) / link_speed(inside, pod)
    return seconds


def members_inside(axes: tuple[str, ...], pod: Pod, mesh_shape: dict[str, int]) -> int:
    """How many members of a group along these mesh axes share a slice or node.

    Neighbours along the inner axes are neighbours in it.
    """
    stride, inside = 1, 1
    for axis in reversed(MESH_AXES):
        if axis in axes:
            inside *= max(1, min(mesh_shape[axis], pod.local // stride))
        stride *= mesh_shape[axis]
    return inside


def _over_network(op: Collective, inside: int) -> float:
    """Bytes a step that a device receives over the network, `inside` of its group being near."""
    if inside >= op.size:
        return 0.0
    if op.op == "collective-permute":
        return op.moved  # all hops wait for the slowest
    far = op.moved * (op.size - inside) / (op.size - 1)
    # What all members need enters a slice or node once, a part through each of them.
    return far if op.op == "all-to-all" else far / inside


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
