"""Eight simulated devices, a persistent compilation cache and deterministic property tests."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from hypothesis import settings

from refvlm_jax.train.compile_cache import use_compile_cache

# All must be set before the first array is made. Tests compile hundreds of programs and run each a few
# times: compiling takes nearly all of their time.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
use_compile_cache()

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")
