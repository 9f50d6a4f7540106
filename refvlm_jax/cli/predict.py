"""Answering the held-out questions of a dataset and writing prediction records."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from data_pipelines.encode import EncodeOptions, encode_prompt
from data_pipelines.images import ImageError
from data_pipelines.options import EncodeError
from data_pipelines.records import MediaRef
from data_pipelines.rows import Row
from data_pipelines.tokenizer import Tokenizer
from refvlm_jax.batch import Batch, empty_row
from refvlm_jax.cli.data_setup import encode_options, tokenizer_of
from refvlm_jax.cli.run import build_model, check_answer_rows
from refvlm_jax.cli.truths import Question
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.eval.depth_maps import beside, within
from refvlm_jax.eval.records import DepthMap, Instance, Prediction, Triplet
from refvlm_jax.geometry import PaddedSquare
from refvlm_jax.infer.engine import Answer, DecodedReference, Engine, Request
from refvlm_jax.mesh.build import batch_shards, make_mesh, make_rules, mesh_shape
from refvlm_jax.mesh.rules import MESH_AXES, use_sharding
from refvlm_jax.mesh.shardings import param_shardings
from refvlm_jax.rle import encode as encode_rle
from refvlm_jax.train.model_def import define
from refvlm_jax.train.step import compute_dtype
from refvlm_jax.trp.commands import COMMANDS
from refvlm_jax.trp.coords import parse_coords

_LOG = logging.getLogger(__name__)
SHORTEST_PROMPT = 128
"""Positions of a batch of short prompts; attention kernels work on blocks of as many."""


def make_engine(config: RunConfig, params: Mapping[str, np.ndarray]) -> Engine:
    """An engine for a run's model, on the run's mesh and in its compute dtype.

    Args:
      params: flat, on the host; each device gets its part.

    Raises:
      ConfigError: `eval.batch_size` does not divide over the mesh.
      ValueError: the parameters are not those of the model.
    """
    model = define(lambda rngs: build_model(config, rngs))
    model.check(params)
    mesh, rules = make_mesh(config.mesh), make_rules(config.mesh)
    check_answer_rows(config, batch_shards(mesh.shape, rules))
    layout = param_shardings(model.shapes, model.axes, mesh, rules)
    return Engine(
        model.merge,
        {
            name: jax.device_put(
                value.astype(compute_dtype(name, value, config.train)), layout[name]
            )
            for name, value in params.items()
        },
        tokenizer_of(config),
        max_new=config.eval.max_new_tokens,
        slots=config.data.refs,
        mask_threshold=config.eval.mask_threshold,
        depth_kind=config.model.depth.mode if config.model.depth else "metric",
        scope=partial(use_sharding, mesh, rules),
    )


def predict(
    engine: Engine,
    config: RunConfig,
    questions: Sequence[Question],
    image_root: Path,
    note: str,
    *,
    depth_folder: Path | None = None,
) -> Iterator[Prediction]:
    """One prediction for every question, in order; none, and a warning, where it cannot be asked.

    Depth maps go to files of `depth_folder`, which is made when there is one, or into the records.
    """
    options, tokenizer = encode_options(config, fixed_template=True), tokenizer_of(config)
    size = config.eval.batch_size
    parts = mesh_shape(config.mesh, jax.device_count())[MESH_AXES.index("seq")]
    # Standard output is for answers.
    console = Console(stderr=True)
    for start in track(range(0, len(questions), size), description=note, console=console):
        chunk = questions[start : start + size]
        asked, batch = prompt_batch(chunk, size, image_root, tokenizer, options)
        batch = batch.cut(prompt_length(batch, parts))
        answers = engine.answer(batch, [_request(question) for question in asked])
        for question, answer in zip(asked, answers, strict=True):
            yield _prediction(question, answer, config, depth_folder)


def prompt_length(batch: Batch, parts: int = 1) -> int:
    """Positions that hold all prompts of a batch: 128, 256, 512, ... or those of a whole row.

    What is computed and cached for a prompt is as long as that, and few lengths are few programs.

    Args:
      parts: what the positions of a row are split into over the mesh.
    """
    longest, whole = int((batch.segment_ids > 0).sum(axis=1).max()), batch.segment_ids.shape[1]
    length = SHORTEST_PROMPT
    while length < longest:
        length *= 2
    return length if length < whole and length % parts == 0 else whole


def prompt_batch(
    questions: Sequence[Question],
    size: int,
    image_root: Path,
    tokenizer: Tokenizer,
    options: EncodeOptions,
) -> tuple[list[Question], Batch]:
    """The questions that can be asked, and their prompts as `size` rows, the last ones empty."""
    asked: list[Question] = []
    rows: list[Row] = []
    for question in questions:
        try:
            row = encode_prompt(question.dialog, question.number, image_root, tokenizer, options)
        except (EncodeError, ImageError) as error:
            _LOG.warning("not asked, and scored as not answered: %s", error)
            continue
        row["sample_id"] = np.asarray(len(asked), np.int32)
        asked.append(question)
        rows.append(row)
    rows += [empty_row(options.spec)] * (size - len(rows))
    return asked, Batch.from_dict({name: np.stack([row[name] for row in rows]) for name in rows[0]})


def _request(question: Question) -> Request:
    image = question.dialog.image
    assert image is not None
    unit = COMMANDS[question.turn.task_name].unit
    return Request(width=image.width, height=image.height, unit=unit)


def _prediction(
    question: Question, answer: Answer, config: RunConfig, depth_folder: Path | None
) -> Prediction:
    dialog = question.dialog
    assert dialog.image is not None
    text = answer.text
    if config.data.register == "coord":
        triplets = _written_boxes(dialog.image, answer)
    else:
        triplets = _triplets(answer, question.uid, depth_folder)
    return Prediction(
        uid=question.uid,
        turn=question.number,
        task_id=dialog.task_id,
        image=dialog.image.path,
        width=dialog.image.width,
        height=dialog.image.height,
        raw=text.text,
        plain=text.parsed.plain,
        finish="eos" if text.finished else "length",
        n_tokens=len(text.tokens),
        plan=[
            {"name": line.name, "unit": line.unit_text, "num": line.num}
            for line in text.parsed.plan or []
        ],
        triplets=triplets,
    )


def _triplets(answer: Answer, uid: str, depth_folder: Path | None) -> list[Triplet]:
    groups = answer.text.parsed.groups
    owned: list[list[Instance]] = [[] for _ in groups]
    for number, reference in enumerate(answer.references):
        depth = _depth(reference, depth_folder, f"{uid}/{number}")
        owned[reference.group].append(_instance(reference, depth))
    return [
        Triplet(
            phrase=group.phrase or "",
            unit=group.unit.text if group.unit else "",
            char_span=(group.start, group.end),
            instances=instances,
        )
        for group, instances in zip(groups, owned, strict=True)
    ]


def _depth(reference: DecodedReference, folder: Path | None, name: str) -> DepthMap | None:
    if reference.depth is None:
        return None
    if folder is None:
        return within(reference.depth, reference.depth_kind)
    folder.mkdir(parents=True, exist_ok=True)
    # Uids hold slashes, and whatever else the native ids do.
    file = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.png"
    return beside(file, reference.depth, reference.depth_kind)


def _instance(reference: DecodedReference, depth: DepthMap | None) -> Instance:
    rle = None
    if reference.mask is not None:
        height, width = reference.mask.shape
        counts = encode_rle(reference.mask).decode("ascii")
        rle = {"size": [height, width], "counts": counts}
    return Instance(
        box=reference.box,
        rle=rle,
        keypoints=None if reference.keypoints is None else reference.keypoints.tolist(),
        depth=depth,
        score=reference.score,
        score_parts=reference.score_parts,
    )


def _written_boxes(image: MediaRef, answer: Answer) -> list[Triplet]:
    """Boxes of an answer that writes them as coordinates of the padded square."""
    square = PaddedSquare(image.width, image.height)
    offset = np.array([square.offset_x, square.offset_y] * 2, np.float64)
    triplets = []
    for bracket in parse_coords(answer.text.text):
        boxes = [np.array(item) * square.side - offset for item in bracket if len(item) == 4]
        instances = [Instance(box=tuple(box.tolist()), rle=None, score=1.0) for box in boxes]
        triplets.append(Triplet(phrase="", unit="box", char_span=(0, 0), instances=instances))
    return triplets
