"""Device meshes, logical axes and sharding presets."""

from refvlm_jax.mesh.rules import MESH_AXES, PRESETS, ShardingRules, constrain, use_sharding

__all__ = ["MESH_AXES", "PRESETS", "ShardingRules", "constrain", "use_sharding"]
