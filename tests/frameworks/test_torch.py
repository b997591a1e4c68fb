#!/usr/bin/env python3
"""PyTorch over gloo under Rowen: see Training for the cases; run.sh calls this."""

import sys

import harness

training = harness.Training("examples/torch/job.toml", "examples/torch/train.py", {})
sys.exit(harness.run_cases("torch", training.cases()))
