"""The configuration of every part a PyTorch model can have, also of parts that stand beside `RefVLM`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refvlm_jax.config.model import (
    AdapterConfig,
    ConvNextConfig,
    KeypointUnitConfig,
    RefVLMConfig,
    SamUnitConfig,
)
from refvlm_jax.config.resolve import build, to_dict


@dataclass(frozen=True, kw_only=True)
class WholeConfig(RefVLMConfig):
    """A model as the converter sees it: a part that is None is not in the weights."""

    tower: ConvNextConfig | None = None
    adapter: AdapterConfig | None = None
    keypoint: KeypointUnitConfig | None = None
    sam: SamUnitConfig | None = None
    map_dims: tuple[int, ...] | None = None
    """Channels of the feature maps the units choose from, where a tower that is not among these
    weights makes them; None: they follow from the parts."""
    query_dim: int | None = None
    """Width of the states the units query with, where the language model is not among these weights."""
    vocab_padding: int = 0
    """Rows at the end of our vocabulary that PyTorch's lacks."""

    @property
    def query_width(self) -> int:
        """Width of the states the units query with."""
        return self.query_dim or self.llama.width

    @property
    def unit_dims(self) -> tuple[int, ...]:
        """Channels of the feature maps the units choose from."""
        from refvlm_jax.models.clip_vit import feature_dims
        from refvlm_jax.models.units.features import tower_dims

        if self.map_dims is not None:
            return self.map_dims
        if self.tower is not None:
            dims = tower_dims(self.tower.dims, self.vision.width)
        else:
            dims = feature_dims(self.vision)
        return dims if self.adapter is None else (*dims[:-1], self.llama.width)


_OURS = ("map_dims", "query_dim", "vocab_padding")


def write_config(config: WholeConfig) -> dict[str, Any]:
    """The model section of a run's configuration; parts that `RefVLM` may lack only where present."""
    own = {field.name for field in dataclasses.fields(RefVLMConfig)}
    tree = {k: v for k, v in to_dict(config).items() if k not in _OURS}
    return {k: v for k, v in tree.items() if k in own or v is not None}


def write_notes(config: WholeConfig) -> dict[str, Any]:
    """The fields that only the converter has."""
    return {name: value for name, value in to_dict(config).items() if name in _OURS}


def read_config(tree: Mapping[str, Any], notes: Mapping[str, Any]) -> WholeConfig:
    """The opposite of `write_config` and `write_notes`; reads the model section of any run."""
    return build(WholeConfig, {**tree, **notes}, "model.")
