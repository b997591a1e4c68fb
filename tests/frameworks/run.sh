#!/usr/bin/env bash
# Real frameworks under Rowen: starts `rowen dev` with four nodes, installs what the
# examples need, and runs the test_*.py beside this file.
#
#   ROWEN=target/release/rowen tests/frameworks/run.sh [--all]
#
# ROWEN            the binary
# ROWEN_ADDR       a cluster that already runs (four idle nodes of 8 GPUs); none is started then
# ROWEN_CI_CACHE   keeps virtual environments between runs
# --all            also the language model
#
# PyTorch is tested where /usr/bin/python3 can import it (Debian's python3-torch).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${ROWEN_CI_CACHE:-/tmp/rowen-ci-cache}
export ROWEN=${ROWEN:-$root/target/release/rowen}
work=$(mktemp -d "${TMPDIR:-/tmp}/rowen-frameworks.XXXXXX")
export ROWEN_TEST_DIR=$work PYTHONDONTWRITEBYTECODE=1
dev_pid=

main() {
  local all=${1:-}
  [[ $all == "" || $all == --all ]] || die "$all: unknown; the only flag is --all"
  [[ -x $ROWEN ]] || die "ROWEN: $ROWEN is no program; build it or name another"
  ROWEN=$(realpath "$ROWEN")
  trap finish EXIT
  # Before the cluster starts, so that a long installation does not run beside it.
  venv jax
  [[ $all == "" ]] || venv smollm --no-deps
  [[ -n ${ROWEN_ADDR:-} ]] || start_dev

  local failed=0
  PYTHON=python3 python3 "$here/test_sh.py" || failed=1
  PYTHON=$(python_of jax) python3 "$here/test_jax.py" || failed=1
  if /usr/bin/python3 -c 'import torch.distributed' 2>/dev/null; then
    PYTHON=/usr/bin/python3 python3 "$here/test_torch.py" || failed=1
  else
    echo "torch: skipped, /usr/bin/python3 has no PyTorch (apt-get install python3-torch)"
  fi
  if [[ $all == --all ]]; then
    PYTHON=$(python_of smollm) python3 "$here/test_smollm.py" || failed=1
  fi
  return "$failed"
}

# Four nodes and the address to reach them by. The one place that knows the flags of `dev`.
start_dev() {
  local port
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  export ROWEN_ADDR=127.0.0.1:$port
  "$ROWEN" dev --data "$work/data" --nodes 4 --listen "$ROWEN_ADDR" >"$work/dev.log" 2>&1 &
  dev_pid=$!
}

# $cache/NAME-HASH holds examples/NAME/requirements.txt, installed once.
venv() {
  local name=$1; shift
  local folder began=$SECONDS
  folder=$(folder_of "$name")
  mkdir -p "$cache"
  exec {lock}>"$folder.lock"
  flock "$lock"
  if [[ ! -e $folder/complete ]]; then
    rm -rf "$folder"
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "$@" -r "$root/examples/$name/requirements.txt"
    touch "$folder/complete"
    echo "$name: installed in $((SECONDS - began)) s, $(du -sm "$folder" | cut -f1) MB"
  fi
  exec {lock}>&-
}

folder_of() {
  echo "$cache/$1-$( { python3 --version; cat "$root/examples/$1/requirements.txt"; } | sha256sum | cut -c1-12)"
}

python_of() {
  echo "$(folder_of "$1")/bin/python"
}

finish() {
  local code=$?
  if [[ -n $dev_pid ]]; then
    kill "$dev_pid" 2>/dev/null || true
    wait "$dev_pid" 2>/dev/null || true
    [[ $code == 0 ]] || { echo "--- the end of rowen dev's output:"; tail -n 30 "$work/dev.log"; }
  fi
  rm -rf "$work"
  exit "$code"
}

die() {
  echo "$1" >&2
  exit 2
}

main "$@"
