#!/usr/bin/env python3
"""The plain sh gang under Rowen; run.sh calls this."""

import re
import sys

import harness
from harness import logs, submit, wait_for_end


def counts_its_workers():
    job = submit("examples/sh/job.yaml", {"env.SHARED": harness.WORK})
    wait_for_end(job, 60)
    own = [re.search(rf"^rank {rank} of 3 on (\S+): GPUs ([\d,]+) ", logs(job, rank), re.M)
           for rank in range(3)]
    assert all(own), [logs(job, rank) for rank in range(3)]
    claims = [(match[1], gpu) for match in own for gpu in match[2].split(",")]
    assert len(claims) == len(set(claims)) == 6, f"2 GPUs a worker, none twice: {claims}"
    assert "rank 0 sees all 3: 0 1 2" in logs(job, 0), logs(job, 0)


sys.exit(harness.run_cases("sh", [("three workers, each with GPUs of its own", counts_its_workers)]))
