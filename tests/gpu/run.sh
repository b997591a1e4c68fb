#!/usr/bin/env bash
# Rowen on a machine with real NVIDIA GPUs: `rowen probe-gpus` beside nvidia-smi, then a control
# plane and an agent that finds its own GPUs, a filler on every one of them, and gangs that take
# them back. Where there is no GPU, or no PyTorch with CUDA, it says so and ends with 0.
#
#   ROWEN=target/release/rowen tests/gpu/run.sh
#
# ROWEN   the binary
# PYTHON  an interpreter whose PyTorch has CUDA (default: python3)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export ROWEN=${ROWEN:-$root/target/release/rowen} PYTHON=${PYTHON:-python3} PYTHONDONTWRITEBYTECODE=1
[[ -x $ROWEN ]] || { echo "ROWEN: $ROWEN is no program; build it or name another" >&2; exit 2; }
ROWEN=$(realpath "$ROWEN")

if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "!!! SKIPPED: nvidia-smi lists no GPU; NOTHING ran on a GPU"
  exit 0
fi
if ! "$PYTHON" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  echo "!!! SKIPPED: $PYTHON has no PyTorch with CUDA; NOTHING ran on a GPU"
  exit 0
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/rowen-gpu.XXXXXX")
trap 'rm -rf "$work"' EXIT
ROWEN_TEST_DIR=$work python3 "$here/test_gpu.py"
