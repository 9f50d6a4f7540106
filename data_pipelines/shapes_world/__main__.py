"""`python -m data_pipelines.shapes_world --out DIR`: renders a world."""

import argparse
from pathlib import Path

from data_pipelines.shapes_world import generate


def main() -> None:
    """Parses the command line and renders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--level", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--train", type=int, default=8000)
    parser.add_argument("--val", type=int, default=400)
    parser.add_argument("--val-combos", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    scenes = {"train": args.train, "val": args.val, "val_combos": args.val_combos}
    print(generate(args.out, level=args.level, scenes=scenes, seed=args.seed, workers=args.workers))


if __name__ == "__main__":
    main()
