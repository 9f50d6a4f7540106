# Sourced by the scripts beside it: makes `.venv` once, with the extras named in $1, and activates it.
# A stamp with the hash of setup.py and the extras lets a second call return at once.

# Large buffers come in huge pages, which saves XLA page faults with glibc and does nothing elsewhere.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

refvlm_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return 0
    fi
  done
  echo "error: Python 3.11 or 3.12 is needed; install one or set PYTHON=/path/to/python" >&2
  return 1
}

refvlm_env() {
  local extras="${1:-}" python want stamp=".venv/.installed"
  python="$(refvlm_python)" || return 1
  if [ -x .venv/bin/python ] && ! .venv/bin/python -c '' 2>/dev/null; then
    echo "note: .venv is broken (moved or its Python is gone); making it again"
    rm -rf .venv
  fi
  [ -x .venv/bin/python ] || "$python" -m venv .venv || return 1
  want="$(cksum < setup.py) $extras $(pwd)"
  if ! grep -qxF "$want" "$stamp" 2>/dev/null; then
    echo "installing into .venv (${extras:-run time only})"
    # Files are compiled when first imported, most of them never.
    .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --editable ".${extras:+[$extras]}" || {
      echo "error: installing failed; is a package index reachable?" >&2
      return 1
    }
    # Installing the larger set serves the smaller one too.
    echo "$want" >> "$stamp"
  fi
  . .venv/bin/activate
}
