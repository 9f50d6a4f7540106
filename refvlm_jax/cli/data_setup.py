"""What training and evaluation share on the data's side: loader, tokenizer, rendering options."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_pipelines.buckets import bucket_plan
from data_pipelines.catalog import load_catalog
from data_pipelines.encode import EncodeOptions
from data_pipelines.images import Decoding
from data_pipelines.joined import JoinedStore
from data_pipelines.loader import Loader, LoaderConfig, make_loader
from data_pipelines.mixture import load_mixture, mixture_plan
from data_pipelines.opening import Opening, RowPlan
from data_pipelines.pack import pack_plan
from data_pipelines.plan import build_plan
from data_pipelines.shards import DialogStore, read_manifest
from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from refvlm_jax.cli.run import batch_spec
from refvlm_jax.config.schema import DataConfig, RunConfig
from refvlm_jax.mesh.build import batch_sharding, data_shard, make_mesh, make_rules
from refvlm_jax.trp.format import AnswerStyle
from refvlm_jax.trp.tokens import PHRASE_CLOSE, PHRASE_OPEN


def encode_options(config: RunConfig, **changes: object) -> EncodeOptions:
    """How dialogues become rows under this configuration."""
    options = EncodeOptions(
        spec=batch_spec(config),
        register=config.data.register,
        plan=config.data.plan_block,
        shared_picture=config.data.shared_picture,
        templates=config.data.templates,
        augment=config.data.augment,
    )
    return replace(options, **changes)  # type: ignore[arg-type]


def answer_style(config: DataConfig) -> AnswerStyle:
    """How answers refer under this configuration."""
    if config.register == "coord":
        return "coord"
    return "plan" if config.plan_block else "direct"


def tokenizer_of(config: RunConfig) -> Tokenizer:
    """The run's tokenizer; ValueError when it is not the one the model is configured for."""
    tokenizer = load_tokenizer(config.data.tokenizer or None)
    if tokenizer.vocab_size > config.model.llama.vocab_size:
        raise ValueError(
            f"model.llama.vocab_size is {config.model.llama.vocab_size}, but the tokenizer has "
            f"{tokenizer.vocab_size} tokens; raise it to at least that"
        )
    adapter, ids = config.model.adapter, tuple(map(tokenizer.id_of, (PHRASE_OPEN, PHRASE_CLOSE)))
    if adapter is not None and adapter.phrase_ids != ids:
        raise ValueError(
            f"model.adapter.phrase_ids is {adapter.phrase_ids}, but {PHRASE_OPEN} and {PHRASE_CLOSE} "
            f"have the ids {ids} in the tokenizer; set it to those"
        )
    return tokenizer


def store_of(config: DataConfig) -> DialogStore | JoinedStore:
    """The records a run trains on."""
    first, more = Path(config.path), [Path(path) for path in config.more_paths]
    return JoinedStore([first, *more]) if more else DialogStore(first)


def plan_of(
    config: RunConfig, store: DialogStore | JoinedStore, tokenizer: Tokenizer, workers: int = 0
) -> RowPlan:
    """The stream of rows of a run; `workers` processes measure records for packing."""
    data, adapter = config.data, config.model.adapter
    weighted = partial(build_plan, store, merge=data.merge, seed=data.seed)
    if data.mixture:
        mixture = load_mixture(Path(data.mixture))
        plan = mixture_plan(store, mixture, merge=data.merge, seed=data.seed)
    else:
        plan = weighted(weights=data.weights)
    if data.opening_steps:
        rows = data.opening_steps * data.batch_size
        first = weighted(weights=data.opening_weights)
        return Opening(first=first, then=plan, rows_of_first=rows)
    options = encode_options(config)
    if data.buckets:
        return bucket_plan(
            plan, store, tokenizer, options, data.buckets, data.batch_size, workers=workers
        )
    if not data.pack:
        return plan
    groups = adapter.groups if adapter else None
    return pack_plan(plan, store, tokenizer, options, groups=groups, workers=workers)


def train_batches(config: RunConfig, start_step: int) -> Loader:
    """This process's rows of every global batch from `start_step` on."""
    store = store_of(config.data)
    tokenizer, options = tokenizer_of(config), encode_options(config)
    sharding = batch_sharding(make_mesh(config.mesh), make_rules(config.mesh))
    index, count = data_shard(sharding, config.data.batch_size)
    return make_loader(
        plan_of(config, store, tokenizer),
        store,
        tokenizer,
        # Paths of several datasets are absolute, and then the root has no say.
        Path(read_manifest(Path(config.data.path))["image_root"]),
        options,
        LoaderConfig(
            batch_size=config.data.batch_size,
            seed=config.data.seed,
            workers=config.data.workers,
            threads=config.data.threads,
            process_index=index,
            process_count=count,
            start_step=start_step,
            decoding=Decoding(jpeg=config.data.jpeg, scaled=config.data.scaled_decode),
        ),
    )


def check_data(config: DataConfig) -> None:
    """ValueError when the data folder of a run is missing."""
    for name, path in (("path", config.path), *(("more_paths", p) for p in config.more_paths)):
        if not (Path(path) / "manifest.json").is_file():
            raise ValueError(
                f"data.{name}={path!r} holds no manifest.json; run `refvlm data build`"
            )


def majority_answer(data: Path) -> str:
    """The most frequent VQA answer of a training set, ties broken alphabetically."""
    store = DialogStore(data)
    counts = Counter(store[i].turns[0].answer for i in load_catalog(store).numbers_of({"T03"}))
    return min(counts, key=lambda answer: (-counts[answer], answer), default="")
