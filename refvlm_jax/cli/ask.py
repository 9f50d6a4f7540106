"""`refvlm ask --workdir DIR --image PICTURE --task T17 --words "the red circle"`: asks one question.

The answer is printed as text with what every reference decodes to, in pixels of the picture; `--json`
prints the whole prediction record, `--draw` puts it on the picture.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from data_pipelines.images import ImageError, load_image, orientation_and_size
from data_pipelines.records import Dialog, MediaRef, Prompt, PromptKind, Region, Turn
from data_pipelines.tasks import TASKS, TaskSpec
from data_pipelines.templates import sentences, slots_of
from refvlm_jax.ckpt.manager import checkpoints_of, load_params, read_meta, step_folder
from refvlm_jax.cli.predict import make_engine, predict
from refvlm_jax.cli.truths import Question, drawn_prompts
from refvlm_jax.config.resolve import load_config, resolve
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.eval.overlay import standalone_svg
from refvlm_jax.eval.records import Instance, Prediction
from refvlm_jax.rle import area

_WORDS = {"expr", "question"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("--workdir", required=True, type=Path, help="a run's folder, or an import")
    parser.add_argument("--config", help="a recipe; by default what the checkpoint was made with")
    parser.add_argument("--image", required=True, type=Path, help="a picture")
    parser.add_argument("--task", required=True, choices=sorted(TASKS), metavar="T01..T25",
                        help="what to do; `refvlm data tasks` lists them")  # fmt: skip
    parser.add_argument("--words", default="", help="expression, class or question")
    parser.add_argument(
        "--point", nargs=2, type=float, metavar=("X", "Y"), help="a region, in pixels"
    )
    parser.add_argument("--box", nargs=4, type=float, metavar=("X1", "Y1", "X2", "Y2"))
    parser.add_argument("--json", action="store_true", help="print the prediction record")
    parser.add_argument("--draw", type=Path, metavar="FILE.svg", help="draw the answer")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], help="dotted.field=value")


def run(args: argparse.Namespace) -> int:
    """Asks one question and prints its answer."""
    from refvlm_jax.train.compile_cache import use_compile_cache

    question = question_of(args.image, TASKS[args.task], args.words, point=args.point, box=args.box)
    config = config_of(args.workdir, args.config, args.overrides)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=1))
    use_compile_cache()
    engine = make_engine(config, load_params(checkpoints_of(args.workdir)))
    answers = list(predict(engine, config, [question], args.image.parent, "answering"))
    if not answers:
        return 2  # why was said already
    if args.draw:
        _draw(args.draw, args.image, question, answers[0])
    print(json.dumps(dataclasses.asdict(answers[0])) if args.json else "\n".join(shown(answers[0])))
    return 0


def config_of(workdir: Path, recipe: str | None, overrides: list[str]) -> RunConfig:
    """A recipe, or the configuration that a checkpoint was made with.

    Raises:
      ValueError: the folder holds no checkpoint, or overrides come without a recipe.
    """
    if recipe:
        return load_config(recipe, overrides)
    if overrides:
        raise ValueError("--set changes a recipe; give --config too")
    return resolve(read_meta(step_folder(checkpoints_of(workdir)))["config"])


def question_of(
    image: Path,
    task: TaskSpec,
    words: str = "",
    *,
    point: list[float] | None = None,
    box: list[float] | None = None,
) -> Question:
    """A question about a picture file, in the words of the task's first template.

    Raises:
      ValueError: the task needs words or a region that are not given, or the other way round.
    """
    slots = set(slots_of(sentences(task.bank)[0])) & _WORDS if task.bank else {"question"}
    if bool(words) != bool(slots):
        need = "needs --words" if slots else "takes no --words"
        raise ValueError(f"task {task.id} ({task.name}) {need}")
    region, kind = _region(task, point, box)
    turn = Turn(
        task_name=task.command,
        answer="",
        bank=task.bank,
        slots={name: words for name in slots} if task.bank else {},
        literal="" if task.bank else words,
        prompts=[] if kind is None else [Prompt(region=0, kind=kind)],
    )
    width, height = _size(image)
    dialog = Dialog(
        uid=f"ask/{image.name}",
        source="ask",
        split="ask",
        task_id=task.id,
        turns=[turn],
        image=MediaRef(path=image.name, width=width, height=height),
        regions=[] if region is None else [region],
    )
    return Question(dialog)


def _size(image: Path) -> tuple[int, int]:
    try:
        orientation, size = orientation_and_size(image.read_bytes(), str(image))
    except OSError as error:
        raise ImageError(f"{image}: picture cannot be read ({error.strerror})") from error
    if orientation != 1:
        raise ImageError(
            f"{image} is stored rotated (EXIF orientation {orientation}); save it upright first"
        )
    return size


def _region(
    task: TaskSpec, point: list[float] | None, box: list[float] | None
) -> tuple[Region | None, PromptKind | None]:
    if point is not None and box is not None:
        raise ValueError("give --point or --box, not both")
    kind = PromptKind.POINT if point is not None else PromptKind.BOX if box is not None else None
    if kind is None and task.prompts:
        given = " or ".join(f"--{k.name.lower()}" for k in task.prompts if k <= PromptKind.BOX)
        raise ValueError(
            f"task {task.id} ({task.name}) is about a region; give {given or 'a mask'}"
        )
    if kind is not None and kind not in task.prompts:
        raise ValueError(f"task {task.id} ({task.name}) takes no --{kind.name.lower()}")
    if point is not None:
        return Region(point=(point[0], point[1])), kind
    if box is not None:
        return Region(box=(box[0], box[1], box[2], box[3])), kind
    return None, None


def shown(answer: Prediction) -> list[str]:
    """The answer for people: its text, and a line for every object that it refers to."""
    lines = [answer.plain or "(an empty answer)"]
    for triplet in answer.triplets:
        lines += [f"  {triplet.phrase}: {_described(one)}" for one in triplet.instances]
        if not triplet.instances:
            lines.append(f"  {triplet.phrase}: nothing decoded")
    if answer.finish != "eos":
        lines.append("  (cut off at eval.max_new_tokens)")
    return lines


def _described(one: Instance) -> str:
    found = []
    if one.keypoints is not None:
        found.append(f"{len(one.keypoints)} joints")
    if one.box is not None:
        found.append("box " + ", ".join(f"{value:.1f}" for value in one.box))
    if one.rle is not None:
        height, width = one.rle["size"]
        found.append(f"mask of {area(one.rle['counts'].encode('ascii'), height, width)} pixels")
    if one.depth is not None:
        found.append(f"{one.depth.kind} depth map")
    return f"{', '.join(found)} (confidence {one.score:.2f})"


def _draw(path: Path, image: Path, question: Question, answer: Prediction) -> None:
    assert question.dialog.image is not None
    picture = load_image(question.dialog.image, image.parent)
    path.write_text(standalone_svg(picture, answer, drawn_prompts(question)), encoding="utf-8")
