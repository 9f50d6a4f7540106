"""The configuration of PyTorch weights: the model's, and what a source leaves open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refvlm_jax.config.model import RefVLMConfig
from refvlm_jax.config.resolve import build, to_dict


@dataclass(frozen=True, kw_only=True)
class WholeConfig(RefVLMConfig):
    """A model as the converter sees it: an optional part that is None is not in the weights."""

    map_dims: tuple[int, ...] | None = None
    """Channels of the feature maps the units choose from, where a tower that is not among these
    weights makes them; None: they follow from the parts."""
    query_dim: int | None = None
    """Width of the states the units query with, where the language model is not among these weights."""

    @property
    def query_width(self) -> int:
        """Width of the states the units query with."""
        return self.query_dim or self.llama.width

    @property
    def unit_dims(self) -> tuple[int, ...]:
        """Channels of the feature maps the units choose from."""
        from refvlm_jax.models.units.features import unit_dims

        return self.map_dims or unit_dims(self)


_OURS = ("map_dims", "query_dim")


def write_config(config: WholeConfig) -> dict[str, Any]:
    """The model section of a run's configuration."""
    return {name: value for name, value in to_dict(config).items() if name not in _OURS}


def write_notes(config: WholeConfig) -> dict[str, Any]:
    """The fields that only the converter has."""
    return {name: value for name, value in to_dict(config).items() if name in _OURS}


def read_config(tree: Mapping[str, Any], notes: Mapping[str, Any]) -> WholeConfig:
    """The opposite of `write_config` and `write_notes`; reads the model section of any run."""
    return build(WholeConfig, {**tree, **notes}, "model.")
