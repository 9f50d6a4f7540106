"""What training and evaluation share: a run configuration turned into model, data and tokenizer."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from flax import nnx

from data_pipelines.encode import EncodeOptions
from data_pipelines.loader import LoaderConfig, make_loader
from data_pipelines.plan import build_plan
from data_pipelines.shards import DialogStore, read_manifest
from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from refvlm_jax.batch import Batch, BatchSpec
from refvlm_jax.config.schema import DataConfig, RunConfig
from refvlm_jax.models.objective import loss_counts, loss_sums, loss_weights
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.train.task import Task


def batch_spec(config: RunConfig, seq_len: int | None = None) -> BatchSpec:
    """Static batch sizes implied by the data and model sections."""
    data, model = config.data, config.model
    prompts = model.region_prompts
    return BatchSpec(
        seq_len=seq_len or data.seq_len,
        images=data.images,
        image_size=model.vision.image_size,
        image_tokens=model.vision.tokens,
        prompts=data.prompts if prompts else 0,
        prompt_tokens=prompts.tokens if prompts else 0,
        refs=data.refs,
        mask_refs=data.mask_refs,
        mask_size=data.mask_size,
    )


def encode_options(config: RunConfig, **changes: object) -> EncodeOptions:
    """How dialogues become rows under this configuration."""
    options = EncodeOptions(
        spec=batch_spec(config), register=config.data.register, plan=config.data.plan_block
    )
    return replace(options, **changes)  # type: ignore[arg-type]


def tokenizer_of(config: RunConfig) -> Tokenizer:
    """The run's tokenizer; ValueError when the model's vocabulary cannot hold it."""
    tokenizer = load_tokenizer(config.data.tokenizer or None)
    if tokenizer.vocab_size > config.model.llama.vocab_size:
        raise ValueError(
            f"model.llama.vocab_size is {config.model.llama.vocab_size}, but the tokenizer has "
            f"{tokenizer.vocab_size} tokens; raise it to at least that"
        )
    return tokenizer


def train_batches(config: RunConfig, start_step: int) -> Iterator[Batch]:
    """This process's rows of every global batch from `start_step` on."""
    import jax

    root = Path(config.data.path)
    store = DialogStore(root)
    plan = build_plan(
        store, weights=config.data.weights, merge=config.data.merge, seed=config.data.seed
    )
    return make_loader(
        plan,
        store,
        tokenizer_of(config),
        Path(read_manifest(root)["image_root"]),
        encode_options(config),
        LoaderConfig(
            batch_size=config.data.batch_size,
            seed=config.data.seed,
            workers=config.data.workers,
            threads=config.data.threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            start_step=start_step,
        ),
    )


def build_model(config: RunConfig, rngs: nnx.Rngs) -> RefVLM:
    """The model of a run, with fresh parameters."""
    import jax.numpy as jnp

    return RefVLM(config.model, rngs, dtype=jnp.dtype(config.train.compute_dtype))


def task_of(config: RunConfig) -> Task:
    """The training objective of a run."""
    weights = dict(config.optim.loss_weights) or loss_weights(config.model)
    return Task(
        loss_sums=loss_sums, loss_counts=partial(loss_counts, config.model), weights=weights
    )


def check_data(config: DataConfig) -> None:
    """ValueError when the data folder of a run is missing."""
    if not (Path(config.path) / "manifest.json").is_file():
        raise ValueError(
            f"data.path={config.path!r} holds no manifest.json; run `refvlm data build`"
        )
