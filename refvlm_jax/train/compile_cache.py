"""The persistent compilation cache: a restarted run starts in seconds instead of minutes."""

import os
from pathlib import Path

import jax


def use_compile_cache(folder: str | Path | None = None) -> Path:
    """Keeps compiled programs in `folder`, $REFVLM_CACHE or ~/.cache/refvlm_jax, and says where."""
    chosen = folder or os.environ.get("REFVLM_CACHE") or Path.home() / ".cache" / "refvlm_jax"
    path = Path(chosen).expanduser() / "xla"
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return path
