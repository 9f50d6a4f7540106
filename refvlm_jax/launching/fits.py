"""Whether a plan says that a run fits the memory of a pod."""

from refvlm_jax.config.schema import RunConfig
from refvlm_jax.plan.pods import parse_pod
from refvlm_jax.plan.worker import make_plan


def fits(config: RunConfig, pod: str) -> bool:
    """The answer of `refvlm plan --analytic`.

    Raises:
      ValueError: the plan cannot be made, with the remedy.
    """
    return bool(make_plan(config, parse_pod(pod), analytic=True)["fits"])
