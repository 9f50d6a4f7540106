#!/usr/bin/env bash
# The whole test suite with lint and types, in `.venv` with the dev extra. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/env.sh
refvlm_env dev
export JAX_PLATFORMS=cpu
echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy refvlm_jax data_pipelines
echo "== pytest"
# In the order of tests/conftest.py, files with slow tests last.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
