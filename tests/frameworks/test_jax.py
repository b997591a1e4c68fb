#!/usr/bin/env python3
"""JAX under Rowen: see Training for the cases; run.sh calls this."""

import re
import sys

import harness
from harness import Training, logs, submit, wait_for_end


def no_arguments():
    """`jax.distributed.initialize()` alone, all four workers on one node."""
    job = submit("examples/jax/job.yaml", {
        "name": "jax-hello", "resources.gpus": 2, "topology.required": "node",
        "topology.preferred": "node", "env.PYTHON": harness.PYTHON,
        "command": 'exec "$PYTHON" examples/jax/hello.py'})
    wait_for_end(job)
    found = [re.search(r"rank (\d) of 4 at (\S+) sum 10", logs(job, rank)) for rank in range(4)]
    assert [int(match[1]) for match in found] == [0, 1, 2, 3], found
    addresses = {match[2] for match in found}
    assert len(addresses) == 1, f"ranks met at different addresses: {addresses}"
    return f"at {addresses.pop()}"


training = Training("examples/jax/job.yaml", "examples/jax/train.py", {"JAX_PLATFORMS": "cpu"})
cases = [("initialize() needs no arguments", no_arguments), *training.cases()]
sys.exit(harness.run_cases("jax", cases))
