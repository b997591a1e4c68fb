#!/usr/bin/env python3
"""Rowen beside nvidia-smi on this machine's own GPUs; run.sh calls this."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "frameworks"))
HERE = pathlib.Path(__file__).resolve().parent
WORK = pathlib.Path(os.environ["ROWEN_TEST_DIR"])
NODE = "gpu-node"
LEASE_S = 4


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


os.environ["ROWEN_ADDR"] = f"127.0.0.1:{free_port()}"
import harness  # reads the environment
from harness import ROWEN, assignments, logs, rowen, show, submit, wait_for_end, wait_until


def smi(what, fields):
    out = subprocess.run(["nvidia-smi", f"--query-{what}={fields}", "--format=csv,noheader,nounits"],
                         text=True, stdout=subprocess.PIPE, check=True).stdout
    return [[cell.strip() for cell in line.split(",")] for line in out.splitlines() if line.strip()]


def on_gpus():
    """Process ids with a context on any GPU, as the driver tells."""
    return {int(pid) for (pid,) in smi("compute-apps", "pid")}


GPUS = smi("gpu", "uuid,name,memory.total,memory.used")


def probe():
    began = time.monotonic()
    found = json.loads(subprocess.run([ROWEN, "probe-gpus"], text=True, check=True, timeout=90,
                                      stdout=subprocess.PIPE).stdout)
    took_s = time.monotonic() - began
    ours = [(gpu["uuid"], gpu["model"], gpu["memory_mib"]) for gpu in found["gpus"]]
    theirs = [(uuid, name, int(mib)) for uuid, name, mib, _ in GPUS]
    assert sorted(ours) == sorted(theirs), f"{ours} against nvidia-smi's {theirs}"
    assert all(not gpu["trouble"] for gpu in found["gpus"]), found
    assert not found["note"], found
    assert not on_gpus(), "the probe left a context on a GPU"
    return f"{len(ours)} × {ours[0][1]}, {ours[0][2]} MiB, in {took_s:.2f} s, as nvidia-smi says"


def node_up():
    node = json.loads(rowen("node", "show", NODE, "-o", "json"))
    assert not node["simulated"], node
    told = {gpu["hardware"]["uuid"]: gpu["hardware"]["healthy"] for gpu in node["gpus"]}
    assert told == {row[0]: True for row in GPUS}, told
    return f"{len(told)} of {node['gpu_model']}, {node['cpus']} cores"


def fills():
    rowen("filler", "deploy", HERE / "filler.toml", *assignments({"env.PYTHON": harness.PYTHON}))
    began = time.monotonic()
    wait_until("a filler on every GPU", 90, lambda: len(ready()) == len(GPUS))
    assert len(on_gpus()) == len(GPUS), f"{on_gpus()} have GPUs"
    used = [int(row[3]) for row in smi("gpu", "uuid,name,memory.total,memory.used")]
    assert min(used) > 8 << 10, f"used {used} MiB; an instance holds 8 GiB"
    return f"{len(GPUS)} ready after {time.monotonic() - began:.1f} s, {used} MiB in use"


def ready():
    filler = json.loads(rowen("filler", "show", "cuda-serve", "-o", "json"))
    return [one for one in filler["instances"] if one["state"] == "ready"]


def takes_back():
    """The gang finds the GPU empty but for itself: the filler's process has gone."""
    before = on_gpus()
    began = time.monotonic()
    job = submit(HERE / "job.toml", {"env.PYTHON": harness.PYTHON})
    end = wait_for_end(job)
    text = logs(job, 0)
    pid, uuid, told = re.search(r"pid (\d+) on (\S+), told (\S+)", text).groups()
    others = {int(pid) for pid in re.search(r"on the GPU: ?(.*)", text)[1].split()}
    assert uuid == told, f"given {told}, ran on {uuid}"
    assert uuid in {row[0] for row in GPUS}, uuid
    assert len(before & others) == len(GPUS) - 1, f"fillers {before}, of them beside it: {others}"
    assert end["attempt"] == 1, end
    loss = re.search(r"loss .*", text)[0]
    wait_until("the filler to come back", 60, lambda: len(ready()) == len(GPUS))
    return f"{loss}; done and refilled after {time.monotonic() - began:.1f} s"


def too_many():
    job = submit(HERE / "job.toml", {"resources.gpus": 64, "env.PYTHON": harness.PYTHON})
    why = rowen("why", job)
    rowen("cancel", job)
    wait_until("the cancel", 10, lambda: show(job)["state"] == "cancelled")
    return why.splitlines()[0]


def agent_killed():
    """With its agent gone, the task ends by itself within the lease; the GPU is empty then."""
    rowen("filler", "remove", "cuda-serve")
    wait_until("the GPUs to be empty", 30, lambda: not on_gpus())
    job = submit(HERE / "job.toml", {"env.PYTHON": harness.PYTHON, "env.STEPS": 10000,
                                     "env.STEP_PAUSE_MS": 50})
    wait_until("the gang on its GPU", 60, on_gpus)
    began = time.monotonic()
    os.kill(AGENT.pid, signal.SIGKILL)
    AGENT.wait()
    wait_until("the GPU to be empty", 30, lambda: not on_gpus())
    took_s = time.monotonic() - began
    rowen("cancel", job)
    used = [int(row[3]) for row in smi("gpu", "uuid,name,memory.total,memory.used")]
    rest = [int(row[3]) for row in GPUS]
    assert used == rest, f"memory in use {used} MiB, {rest} before anything ran"
    return f"empty after {took_s:.1f} s of a {LEASE_S} s lease, memory back at {rest} MiB"


def write_cluster():
    """One replica, and a fabric of this one node."""
    (WORK / "serve.toml").write_text(f"""
replica = 1
data = "{WORK}/replica"
listen = "{os.environ['ROWEN_ADDR']}"
bootstrap = true
[timing]
node_lease_ms = {LEASE_S * 1000}
heartbeat_ms = 500
kill_ms = 2000
""")
    gpu = {"model": GPUS[0][1], "count": len(GPUS), "memory_mib": int(GPUS[0][2])}
    node = {"names": NODE, "gpu": gpu, "cpus": os.cpu_count(), "memory_mib": 16384}
    (WORK / "fabric.yaml").write_text(json.dumps({"site": "here", "nodes": [node]}))


def start(*words):
    log = open(WORK / f"{words[0]}.log", "w")
    return subprocess.Popen([ROWEN, *map(str, words)], cwd=harness.ROOT, stdout=log, stderr=log)


def main():
    write_cluster()
    serve = start("serve", "--config", WORK / "serve.toml")
    global AGENT
    AGENT = None
    try:
        wait_until("the control plane", 30, lambda: subprocess.run(
            [ROWEN, "status"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0)
        rowen("fabric", "set", WORK / "fabric.yaml")
        AGENT = start("agent", "--server", os.environ["ROWEN_ADDR"], "--node", NODE,
                      "--dir", WORK / "agent")
        code = harness.run_cases("gpu", [
            ("the probe finds what nvidia-smi finds", probe),
            ("the node is up with its GPUs", node_up),
            ("a filler runs on every idle GPU", fills),
            ("a gang takes one back and trains on it", takes_back),
            ("more than there are waits and says why", too_many),
            ("a killed agent leaves no process on a GPU", agent_killed),
        ], nodes=1)
    finally:
        for process in (AGENT, serve):
            if process and process.poll() is None:
                process.terminate()
                process.wait()
    if code:
        for name in ("serve", "agent"):
            print(f"--- the end of {name}.log", (WORK / f"{name}.log").read_text()[-3000:], sep="\n")
    return code


sys.exit(main())
