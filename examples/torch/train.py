#!/usr/bin/env python3
"""Data-parallel training in PyTorch over gloo, one process a worker, under Rowen.

The same task as ../jax/train.py: each step draws one global batch from the step's number,
each process takes its share, DistributedDataParallel all-reduces the gradients, and the
result does not depend on how often the gang was stopped. `--reference` trains in this one
process and prints the loss that the gang must reach.

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

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

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
    torch.set_num_threads(1)  # several workers share this machine
    rank, world = 0, 1
    if not reference:
        # env://: MASTER_ADDR, MASTER_PORT (reserved by Rowen for this gang), RANK, WORLD_SIZE.
        dist.init_process_group("gloo")
        rank, world = dist.get_rank(), dist.get_world_size()
    if BATCH % world:
        sys.exit(f"workers: {world} do not divide a batch of {BATCH}; use 2, 3, 4, 5, 6 or 8")
    say = lambda text: print(f"rank {rank} {text}", flush=True)
    say(f"of {world} on {os.environ.get('ROWEN_NODE', 'no node')}, "
        f"attempt {os.environ.get('ROWEN_ATTEMPT', '-')}, PyTorch {torch.__version__}")

    model = network(SEED)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    checkpoint = None if reference else Checkpoint()
    step = checkpoint.load(model, optimizer, rank) if checkpoint else 0
    if step:
        say(f"resumed at step {step}")
    wrapped = model if reference else DistributedDataParallel(model)
    began = time.monotonic()
    first = step
    while step < STEPS:
        loss, stop = train_step(wrapped, optimizer, batch(step, BATCH), rank, world, notice.given)
        step += 1
        if step % LOG_EVERY == 0 or step == STEPS:
            say(f"step {step} loss {loss:.6e}")
        if checkpoint and rank == 0 and (stop or step % CHECKPOINT_EVERY == 0 or step == STEPS):
            checkpoint.save(step, model, optimizer)
        if stop and step < STEPS:
            say(f"stopped at step {step}")
            sys.exit(EXIT_STOPPED)
        time.sleep(STEP_PAUSE_MS / 1000)
    took_ms = 1000 * (time.monotonic() - began) / max(1, step - first)
    say(f"{step - first} steps, {took_ms:.2f} ms each")
    say(f"final loss {final_loss(model):.7e}")
    if not reference:
        dist.barrier()  # rank 0 holds the store: it must not leave first
        dist.destroy_process_group()


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
        job = f"{os.environ.get('ROWEN_JOB_NAME', 'torch')}-{os.environ.get('ROWEN_JOB_ID', '0')}"
        folder = os.environ.get("CHECKPOINT_DIR") or f"/tmp/rowen-checkpoints/{job}"
        self.path = pathlib.Path(folder) / "latest.pt"

    def save(self, step, model, optimizer):
        """Rank 0 alone. A kill at any moment leaves the old one or the new one whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with open(partial, "wb") as file:
            torch.save({"step": step, "model": model.state_dict(),
                        "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def load(self, model, optimizer, rank):
        """The step to go on from, having filled both; rank 0 decides for all, so that no two
        ranks can begin differently."""
        found = [None]
        # Attempt 1 begins anew: what lies here is of another cluster's job with the same id.
        if rank == 0 and os.environ.get("ROWEN_ATTEMPT") != "1" and self.path.exists():
            found = [torch.load(self.path)]
        dist.broadcast_object_list(found)
        if found[0] is None:
            return 0
        model.load_state_dict(found[0]["model"])
        optimizer.load_state_dict(found[0]["optimizer"])
        return found[0]["step"]


def train_step(model, optimizer, data, rank, world, stop):
    """(mean loss over all ranks, whether any rank was asked to stop). The stop flag travels
    with the loss: all ranks learn of it at one step, and none is left waiting for another."""
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    x, y = (part[share] for part in data)
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    shared = torch.tensor([float(loss), float(stop)])
    if world > 1:
        dist.all_reduce(shared)
    return float(shared[0]) / world, bool(shared[1])


def network(seed):
    draw = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, out in zip(WIDTHS, WIDTHS[1:]):
        layer = torch.nn.Linear(fan_in, out)
        with torch.no_grad():
            layer.weight.normal_(0, fan_in ** -0.5, generator=draw)
            layer.bias.zero_()
        layers += [layer, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


TEACHER = network(SEED + 1)


@torch.no_grad()
def batch(step, size):
    """The same numbers for the same step, on every rank and in every attempt."""
    draw = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    x = torch.randn(size, WIDTHS[0], generator=draw)
    return x, TEACHER(x)


@torch.no_grad()
def final_loss(model):
    x, y = batch(STEPS + 1_000_000, 4096)  # never trained on
    return float(torch.nn.functional.mse_loss(model(x), y))


if __name__ == "__main__":
    main()
