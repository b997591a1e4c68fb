#!/usr/bin/env python3
"""The least that a JAX gang can do: meet with no arguments and add up one number a rank."""

import os

import jax
import jax.numpy as jnp
from jax._src import distributed
from jax.experimental import multihost_utils

jax.distributed.initialize()
rank, world = jax.process_index(), jax.process_count()
address = distributed.global_state.coordinator_address
total = int(multihost_utils.process_allgather(jnp.array(rank + 1)).sum())
print(f"rank {rank} of {world} at {address} sum {total}", flush=True)
assert total == world * (world + 1) // 2, f"sum: {total}"
reserved = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
assert address == reserved, f"met at {address}, but {reserved} was reserved for this gang"
