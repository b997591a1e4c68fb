#!/usr/bin/env python3
"""What the tests of this folder run on a GPU: `work.py train` and `work.py serve`.

`train` fits a small network on the one GPU it may see and ends with 0; `serve` holds memory and
multiplies matrices until it is told to leave. Both say which GPU they are on by its UUID.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import torch


def main():
    device = torch.device("cuda")
    assert torch.cuda.device_count() == 1, f"sees {torch.cuda.device_count()} GPUs, was given one"
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    print(f"pid {os.getpid()} on {uuid}, told {os.environ['CUDA_VISIBLE_DEVICES']}", flush=True)
    {"train": train, "serve": serve}[sys.argv[1]](device)


def train(device):
    """Learns y = sin(3x) and says who else is on the GPU while it does."""
    others = subprocess.run(["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"],
                            text=True, stdout=subprocess.PIPE, check=True).stdout.split()
    print("on the GPU:", *others, flush=True)
    torch.manual_seed(7)
    inputs = torch.linspace(-1, 1, 4096, device=device).unsqueeze(1)
    wanted = torch.sin(3 * inputs)
    network = torch.nn.Sequential(torch.nn.Linear(1, 256), torch.nn.Tanh(), torch.nn.Linear(256, 1))
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    first = None
    for _ in range(int(os.environ.get("STEPS", "300"))):
        loss = torch.nn.functional.mse_loss(network(inputs), wanted)
        first = first if first is not None else loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(int(os.environ.get("STEP_PAUSE_MS", "0")) / 1000)
    print(f"loss {first:.4f} to {loss.item():.6f}", flush=True)
    assert loss.item() < first / 20, "did not learn"


def serve(device):
    """8 GiB and one product after another, as an inference server would."""
    leave = []
    signal.signal(signal.SIGTERM, lambda *_: leave.append(True))
    held = torch.empty(8 << 30, dtype=torch.uint8, device=device)
    matrix = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    pathlib.Path(os.environ["ROWEN_TASK_DIR"], "serving").touch()
    while not leave:
        matrix = torch.nn.functional.normalize(matrix @ matrix)
        torch.cuda.synchronize()
    print(f"leaves {held.numel() >> 30} GiB", flush=True)


main()
