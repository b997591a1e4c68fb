#!/usr/bin/env bash
# The planner against the optimum: makes a virtual environment with HiGHS, builds the example that
# plans cases, and runs run.py with whatever arguments it is given. Needs python3 and PyPI.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=target/optimality-venv
if ! [ -x "$venv/bin/python3" ]; then
  python3 -m venv "$venv"
fi
"$venv/bin/python3" -c 'import highspy' 2>/dev/null ||
  "$venv/bin/pip" install --quiet 'highspy==1.15.1'
cargo build --quiet -p rowen-placement --example plan-cases
exec "$venv/bin/python3" benches/optimality/run.py --engine target/debug/examples/plan-cases "$@"
