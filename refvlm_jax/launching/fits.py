"""Whether a plan says that a run fits the memory of a pod."""

from refvlm_jax.config.schema import RunConfig


def fits(config: RunConfig, pod: str) -> bool | None:
    """The planner's answer; None where it is not installed or cannot tell."""
    try:
        from refvlm_jax.plan import fits as planned
    except ImportError:
        return None
    return planned(config, pod)
