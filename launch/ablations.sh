#!/usr/bin/env bash
# The quickstart's recipe beside two ablations on the same data, seed and number of steps: answers without
# the plan block, and boxes written as coordinates. Needs a finished `launch/quickstart.sh`.
#   bash launch/ablations.sh [RUN]     RUN is the quickstart's folder, runs/quickstart by default
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/env.sh
refvlm_env
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
run="${1:-runs/quickstart}"
data="$run/vt_instruct"
[ -f "$run/metrics.json" ] || { echo "error: $run holds no finished quickstart" >&2; exit 2; }
for recipe in shapes_no_plan shapes_coord; do
  work="$run/ablations/$recipe"
  refvlm train --config "configs/$recipe.py" --workdir "$work" "data.path=$data/train"
  refvlm eval --config "configs/$recipe.py" --workdir "$work" --train-data "$data/train" \
    --data "val=$data/val" "val_combos=$data/val_combos"
done
python benchmarks/ablations.py "$run"
