#!/usr/bin/env bash
# The main job end to end on a CPU: data, shards, training, evaluation, report.
#   bash launch/quickstart.sh          the tiny recipe
#   bash launch/quickstart.sh --fast   the same path, much shorter, for a first look
#   bash launch/quickstart.sh --config configs/shapes_small.py   a longer recipe, in runs/shapes_small
#   bash launch/quickstart.sh --config configs/shapes_pose.py    adds joints and depth to the finished one
# A second call resumes where the first stopped, or says that everything is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/env.sh
refvlm_env
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
exec python -m refvlm_jax.cli.main quickstart "$@"
