"""How much of the devices' peak a run uses, from the FLOPs of its own step.

MFU counts the products and convolutions of the step's equations: attention as it is really computed,
frozen parts forward only, nothing that the backward pass computes again. HFU counts that too. Both
are divided by the bfloat16 peak of `plan/devices.toml`.
"""

from typing import Any

import jax

from refvlm_jax.plan.flops import Flops, count_flops
from refvlm_jax.plan.pods import Device, reported_device

RULE = (
    "MFU and HFU: products and convolutions of the step's equations, attention as computed, "
    "frozen parts forward only, recomputation left out (MFU) or in (HFU)"
)


class Utilisation:
    """Counts the work of dispatched steps.

    Args:
      device: one of those that run the steps; all are alike.
      count: how many there are.
    """

    def __init__(self, device: jax.Device, count: int):
        self.device: Device | None = reported_device(device.device_kind)
        self._kind, self._count = device.device_kind, count
        self._known: dict[Any, Flops] = {}
        self._steps = 0
        self._model = self._total = 0.0

    def add(self, step_fn: Any, state: Any, frozen: Any, batch: Any) -> str | None:
        """Counts a jitted step about to be dispatched; what is worth saying about a new program."""
        leaves, tree = jax.tree.flatten(batch)
        shape = (tree, *(leaf.shape for leaf in leaves))
        news = None
        if shape not in self._known:
            # The very trace that the call below uses; nothing is traced twice.
            trace = step_fn.trace(state, frozen, batch)
            self._known[shape] = count_flops(trace.jaxpr.jaxpr)
            news = self._said(self._known[shape])
        self._steps += 1
        self._model += self._known[shape].model
        self._total += self._known[shape].total
        return news

    def record(self, steps_per_second: float) -> dict[str, float]:
        """Metrics of the steps so far: `tflops_per_device`, and where the peak is known `mfu`, `hfu`."""
        if not self._steps or not steps_per_second:
            return {}
        share = steps_per_second / self._steps / self._count
        found = {"tflops_per_device": self._model * share / 1e12}
        if self.device is not None:
            found["mfu"] = self._model * share / self.device.flops
            found["hfu"] = self._total * share / self.device.flops
        return found

    def _said(self, flops: Flops) -> str:
        work = f"{flops.model / self._count / 1e12:.3g} model TFLOP a step and device"
        if flops.unknown_loops:
            work += f" (bodies of {flops.unknown_loops} loops of unknown length counted once)"
        if self.device is None:
            return f"{work}; no peak is known of {self._kind}, so MFU is not recorded"
        return f"{work}; peak of {self._kind} {self.device.flops / 1e12:.0f} TFLOP/s. {RULE}"
