"""What training and evaluation share on the data's side: loader, tokenizer, rendering options."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_pipelines.encode import EncodeOptions
from data_pipelines.loader import Loader, LoaderConfig, make_loader
from data_pipelines.opening import Opening, RowPlan
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


def train_batches(config: RunConfig, start_step: int) -> Loader:
    """This process's rows of every global batch from `start_step` on."""
    root = Path(config.data.path)
    store = DialogStore(root)
    sharding = batch_sharding(make_mesh(config.mesh), make_rules(config.mesh))
    index, count = data_shard(sharding, config.data.batch_size)
    return make_loader(
        row_plan(config.data, store),
        store,
        tokenizer_of(config),
        Path(read_manifest(root)["image_root"]),
        encode_options(config),
        LoaderConfig(
            batch_size=config.data.batch_size,
            seed=config.data.seed,
            workers=config.data.workers,
            threads=config.data.threads,
            process_index=index,
            process_count=count,
            start_step=start_step,
        ),
    )


def row_plan(config: DataConfig, store: DialogStore) -> RowPlan:
    """The stream of rows that a run asks for."""
    plan = partial(build_plan, store, merge=config.merge, seed=config.seed)
    then = plan(weights=config.weights)
    if not config.opening_steps:
        return then
    rows = config.opening_steps * config.batch_size
    return Opening(first=plan(weights=config.opening_weights), then=then, rows_of_first=rows)


def check_data(config: DataConfig) -> None:
    """ValueError when the data folder of a run is missing."""
    if not (Path(config.path) / "manifest.json").is_file():
        raise ValueError(
            f"data.path={config.path!r} holds no manifest.json; run `refvlm data build`"
        )


def majority_answer(data: Path) -> str:
    """The most frequent VQA answer of a training set, ties broken alphabetically."""
    store = DialogStore(data)
    dialogs = (store[index] for index in range(len(store)))
    counts = Counter(d.turns[0].answer for d in dialogs if d.task_id == "T03")
    return min(counts, key=lambda answer: (-counts[answer], answer), default="")
