#!/usr/bin/env python3
"""Data-parallel training in JAX, one process a worker, under Rowen.

A small network learns from a fixed one. Each step draws one global batch from the
step's number, each process takes its share, and XLA all-reduces the gradients. So the
result depends on the number of steps alone: not on how often the gang was stopped,
and, but for rounding, not on how many workers there are. `--reference` trains in this
one process and prints the loss that the gang must reach.

On a notice (SIGTERM, or the file named by ROWEN_NOTICE_FILE) all ranks leave at the
same step, rank 0 having saved a checkpoint; the next attempt goes on from there.

Settings, all from the environment: STEPS, CHECKPOINT_EVERY, LOG_EVERY (steps),
STEP_PAUSE_MS (slows training down so that it can be watched), CHECKPOINT_DIR.
"""

import os
import pathlib
import select
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

STEPS = int(os.environ.get("STEPS", "200"))
CHECKPOINT_EVERY = int(os.environ.get("CHECKPOINT_EVERY", "25"))
LOG_EVERY = int(os.environ.get("LOG_EVERY", "10"))
STEP_PAUSE_MS = int(os.environ.get("STEP_PAUSE_MS", "0"))

SEED = 7
WIDTHS = (4, 64, 64, 1)
BATCH = 240  # of all workers together; divides by 2, 3, 4, 5, 6, 8, 10, 12, 15, 16
LEARNING_RATE = 0.1
MOMENTUM = 0.9
LEAVE_WITHIN_S = 5  # after a notice; a step and a checkpoint take far less
EXIT_STOPPED = 75  # EX_TEMPFAIL: the work is saved, start me again


def main():
    reference = sys.argv[1:] == ["--reference"]
    if sys.argv[1:] and not reference:
        sys.exit("usage: train.py [--reference]")
    notice = Notice()
    if not reference:
        find_each_other()
    rank, world = jax.process_index(), jax.process_count()
    if BATCH % world:
        sys.exit(f"workers: {world} do not divide a batch of {BATCH}; use 2, 3, 4, 5, 6 or 8")
    say = lambda text: print(f"rank {rank} {text}", flush=True)
    say(f"of {world} on {os.environ.get('ROWEN_NODE', 'no node')}, "
        f"attempt {os.environ.get('ROWEN_ATTEMPT', '-')}, JAX {jax.__version__}")

    checkpoint = None if reference else Checkpoint()
    step, params, velocity = start(checkpoint)
    if step:
        say(f"resumed at step {step}")
    began = time.monotonic()
    first = step
    stepper = Stepper(world)
    while step < STEPS:
        params, velocity, loss, stop = stepper.run(step, params, velocity, notice.given)
        step += 1
        if step % LOG_EVERY == 0 or step == STEPS:
            say(f"step {step} loss {loss:.6e}")
        if checkpoint and rank == 0 and (stop or step % CHECKPOINT_EVERY == 0 or step == STEPS):
            checkpoint.save(step, params, velocity)
        if stop and step < STEPS:
            say(f"stopped at step {step}")
            sys.exit(EXIT_STOPPED)
        time.sleep(STEP_PAUSE_MS / 1000)
    took_ms = 1000 * (time.monotonic() - began) / max(1, step - first)
    say(f"{step - first} steps, {took_ms:.2f} ms each")
    say(f"final loss {final_loss(params):.7e}")


def find_each_other():
    """Joins the processes of the gang.

    With no arguments JAX knows Slurm by its SLURM_* variables, which Rowen sets too, and
    takes rank and count from them. The port it would derive from the job id (61440 + id
    modulo 4096) is nobody's: another job may listen there. So Rowen also sets
    JAX_COORDINATOR_ADDRESS, which JAX prefers, to MASTER_ADDR:MASTER_PORT: a port that the
    agent of rank 0 reserved for this gang.
    """
    # JAX's own preemption service would take SIGTERM over; see Notice for what we do instead.
    jax.config.update("jax_enable_preemption_service", False)
    # Its sockets are on the address that this machine's host name resolves to.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize()


class Notice:
    """Whether Rowen asked this process to stop.

    A thread of its own waits for it: while the main thread is in a collective whose peer
    has died, Python would run no signal handler, and the whole notice would be lost.
    """

    def __init__(self):
        self.given = False
        self.path = os.environ.get("ROWEN_NOTICE_FILE")
        self.reader, writer = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(writer)  # written by the C handler, whatever the main thread does
        signal.signal(signal.SIGTERM, lambda _signal, _frame: None)
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while not select.select([self.reader], [], [], 0.1)[0]:
            if self.path and os.path.exists(self.path):
                break
        self.given = True
        time.sleep(LEAVE_WITHIN_S)
        os._exit(EXIT_STOPPED)  # still here: stuck behind a peer that is gone


class Checkpoint:
    """The newest checkpoint of this job, in a folder that every node must see: rank 0 may
    start elsewhere next time."""

    def __init__(self):
        job = f"{os.environ.get('ROWEN_JOB_NAME', 'jax')}-{os.environ.get('ROWEN_JOB_ID', '0')}"
        folder = os.environ.get("CHECKPOINT_DIR") or f"/tmp/rowen-checkpoints/{job}"
        self.path = pathlib.Path(folder) / "latest.npz"

    def save(self, step, params, velocity):
        """Rank 0 alone. A kill at any moment leaves the old one or the new one whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        arrays = {f"p{i}": leaf for i, leaf in enumerate(jax.tree.leaves(params))}
        arrays |= {f"v{i}": leaf for i, leaf in enumerate(jax.tree.leaves(velocity))}
        with open(partial, "wb") as file:
            np.savez(file, step=step, **{name: np.asarray(leaf) for name, leaf in arrays.items()})
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def load(self, params, velocity):
        """(step, params, velocity); the ones given, at step 0, when there is none."""
        # Attempt 1 begins anew: what lies here is of another cluster's job with the same id.
        if os.environ.get("ROWEN_ATTEMPT") == "1" or not self.path.exists():
            return 0, params, velocity
        with np.load(self.path) as file:
            shape = jax.tree.structure(params)
            pick = lambda kind: jax.tree.unflatten(
                shape, [file[f"{kind}{i}"] for i in range(shape.num_leaves)])
            return int(file["step"]), pick("p"), pick("v")


def start(checkpoint):
    """Where to begin: rank 0 decides for all, so that no two ranks can begin differently."""
    params = network(SEED)
    velocity = jax.tree.map(np.zeros_like, params)
    begin = (0, params, velocity)
    if checkpoint and jax.process_index() == 0:
        begin = checkpoint.load(params, velocity)
    step, params, velocity = multihost_utils.broadcast_one_to_all(begin)
    return int(step), params, velocity


class Stepper:
    """One training step over all processes."""

    def __init__(self, world):
        mesh = Mesh(np.array(jax.devices()), ("data",))
        self.split = NamedSharding(mesh, PartitionSpec("data"))
        whole = NamedSharding(mesh, PartitionSpec())
        self.share = slice(jax.process_index() * BATCH // world,
                           (jax.process_index() + 1) * BATCH // world)
        self.devices = jax.local_device_count()
        self.step = jax.jit(sgd, out_shardings=whole)

    def run(self, step, params, velocity, stop):
        """The stop flag travels with the gradients: all ranks learn of it at one step, and
        none is left waiting in a collective for one that has gone."""
        x, y = (self.spread(part[self.share]) for part in batch(step, BATCH))
        flags = self.spread(np.full(self.devices, stop, np.int32))
        params, velocity, loss, stop = self.step(params, velocity, x, y, flags)
        return params, velocity, float(loss), bool(stop)

    def spread(self, local):
        return jax.make_array_from_process_local_data(self.split, local)


def sgd(params, velocity, x, y, flags):
    # x and y are split over the processes and `loss` is a mean over both, so XLA puts the
    # all-reduce of the gradients here.
    loss, gradients = jax.value_and_grad(mean_squared_error)(params, x, y)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
    params = jax.tree.map(lambda p, v: p - LEARNING_RATE * v, params, velocity)
    return params, velocity, loss, jnp.max(flags)


def mean_squared_error(params, x, y):
    return jnp.mean((predict(params, x, jnp) - y) ** 2)


def predict(params, x, xp):
    for weight, bias in params[:-1]:
        x = xp.tanh(x @ weight + bias)
    weight, bias = params[-1]
    return x @ weight + bias


def network(seed):
    draw = np.random.default_rng(seed)
    return [(draw.normal(0, fan_in ** -0.5, (fan_in, out)).astype(np.float32),
             np.zeros(out, np.float32)) for fan_in, out in zip(WIDTHS, WIDTHS[1:])]


TEACHER = network(SEED + 1)


def batch(step, size):
    """The same numbers for the same step, on every rank and in every attempt."""
    x = np.random.default_rng((SEED, step)).normal(size=(size, WIDTHS[0])).astype(np.float32)
    return x, predict(TEACHER, x, np).astype(np.float32)


def final_loss(params):
    x, y = batch(STEPS + 1_000_000, 4096)  # never trained on
    params = jax.tree.map(np.asarray, params)
    return float(np.mean((predict(params, x, np) - y) ** 2))


if __name__ == "__main__":
    main()
