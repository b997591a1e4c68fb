"""What the framework tests share: the `rowen` command line as functions, and the cases that
any training example must pass. Talks to the cluster through the CLI alone, as users do."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWEN = os.environ["ROWEN"]
PYTHON = os.environ["PYTHON"]  # with the framework under test
WORK = pathlib.Path(os.environ["ROWEN_TEST_DIR"])
ENDED = ("completed", "failed", "cancelled")


def run_cases(title, cases, nodes=4):
    """Runs (name, function) pairs, prints one line each and the closing one; returns the exit code."""
    wait_for_nodes(nodes)
    failed = 0
    for name, case in cases:
        began = time.monotonic()
        try:
            note = case() or ""
            print(f"ok    {title}: {name} ({time.monotonic() - began:.1f} s) {note}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAIL  {title}: {name}: {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc(file=sys.stdout)
    print(f"{title}: {len(cases) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


# --- the command line ---------------------------------------------------------------------


def rowen(*words, good=(0,)):
    """Standard output of one call; an exit code not in `good` is a failure of the test."""
    done = subprocess.run([ROWEN, *map(str, words)], cwd=ROOT, text=True, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode in good, (
        f"rowen {' '.join(map(str, words))}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def assignments(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def submit(file, settings):
    # 3: accepted, waits for GPUs, of the case before perhaps.
    job = rowen("submit", "--parsable", file, *assignments(settings), good=(0, 3)).strip()
    assert re.fullmatch(r"\d+", job), f"submit --parsable printed {job!r}, not an id"
    return job


def show(job):
    return json.loads(rowen("job", "show", job, "-o", "json"))


def logs(job, rank, attempt=0):
    which = ["--attempt", attempt] if attempt else []
    return rowen("job", "logs", job, "--rank", rank, *which)


def wait_until(what, limit_s, look):
    """The first true value of `look`, which is called until then."""
    deadline = time.monotonic() + limit_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.2)


def wait_for_nodes(count):
    def up():
        try:
            answer = json.loads(rowen("node", "list", "-o", "json"))
        except AssertionError:
            return False  # the control plane is still starting
        nodes = answer["nodes"] if isinstance(answer, dict) else answer
        return sum(node["state"] == "up" for node in nodes) >= count
    wait_until(f"{count} nodes to be up", 30, up)


def wait_for_end(job, limit_s=180):
    """The job as it ended; a failure shows the end of rank 0's log."""
    def ended():
        now = show(job)
        return now if now["state"] in ENDED else None
    try:
        end = wait_until(f"job {job} to end", limit_s, ended)
    except AssertionError:
        rowen("job", "cancel", job)  # leave the GPUs to the next case
        raise
    assert end["state"] == "completed", (
        f"job {job}: {end['state']}, exit code {end.get('exit_code')}: {end.get('reason')}; "
        f"rank 0 wrote: {logs(job, 0)[-800:]}")
    return end


# --- cases of a training example ------------------------------------------------------------


class Training:
    """The cases of one training example: `file` is its job file, `script` its train.py."""

    def __init__(self, file, script, env):
        self.file, self.script, self.env = file, script, env
        self.steps, self.workers = 200, 4
        self.expected = None

    def cases(self):
        return [
            ("one process trains to the reference loss", self.reference),
            ("4 workers train to the same loss, each with its own log", self.trains),
            ("a requeued gang goes on from the checkpoint it made on notice", self.preempted),
            ("a killed worker restarts the gang from the last checkpoint", self.killed),
        ]

    def reference(self):
        env = {**os.environ, **self.env, "STEPS": str(self.steps), "LOG_EVERY": "1"}
        done = subprocess.run([PYTHON, ROOT / self.script, "--reference"], env=env, text=True,
                              check=True, stdout=subprocess.PIPE, timeout=120)
        self.expected = final_loss(done.stdout)
        first = float(re.search(r"step 1 loss (\S+)", done.stdout)[1])
        assert self.expected < first / 100, f"did not learn: {first} to {self.expected}"
        return f"loss {first} to {self.expected}"

    def trains(self):
        job = self.submit("trains")
        end = wait_for_end(job)
        assert end["attempt"] == 1, f"attempt {end['attempt']}; nothing should have stopped it"
        homes = set()
        for rank in range(self.workers):
            text = logs(job, rank)
            homes.add(re.search(rf"^rank {rank} of 4 on (\S+), attempt 1", text, re.M)[1])
            assert steps_of(text, rank) == list(range(10, self.steps + 1, 10)), text
            assert {int(other) for other in re.findall(r"^rank (\d+)", text, re.M)} == {rank}, (
                f"rank {rank}'s log holds lines of others")
            self.check_loss(text)
        assert len(homes) == self.workers, f"one worker a node was asked for, ran on {homes}"
        pace = re.search(r"steps, (\S+) ms each", text)[1]
        return f"loss {final_loss(text)}, {pace} ms a step"

    def preempted(self):
        job = self.submit("preempted", {"env.STEP_PAUSE_MS": 20})
        wait_until("step 50", 90, lambda: self.reached(job, 50))
        began = time.monotonic()
        rowen("job", "requeue", job)
        wait_until("attempt 2", 60, lambda: show(job)["attempt"] == 2)
        moved_s = time.monotonic() - began
        end = wait_for_end(job)
        assert end["attempt"] == 2, f"attempt {end['attempt']}, not 2"
        stops = {int(re.search(r"stopped at step (\d+)", logs(job, rank, 1))[1])
                 for rank in range(self.workers)}
        assert len(stops) == 1, f"ranks stopped at different steps: {stops}"
        stop = stops.pop()
        for rank in range(self.workers):
            self.check_resumed(logs(job, rank, 2), rank, stop)
        return f"stopped at step {stop}, attempt 2 after {moved_s:.1f} s"

    def killed(self):
        job = self.submit("killed", {"env.STEP_PAUSE_MS": 20})
        wait_until("step 50", 90, lambda: self.reached(job, 50))
        os.kill(self.pid_of(job, 2), signal.SIGKILL)
        began = time.monotonic()
        wait_until("attempt 2", 60, lambda: show(job)["attempt"] == 2)
        moved_s = time.monotonic() - began
        end = wait_for_end(job)
        assert end["attempt"] == 2, f"attempt {end['attempt']}, not 2"
        text = logs(job, 2, 2)
        resumed = int(re.search(r"resumed at step (\d+)", text)[1])
        assert resumed >= 50, f"resumed at {resumed}, but step 50 was saved"
        for rank in range(self.workers):
            self.check_resumed(logs(job, rank, 2), rank, resumed)
        return f"resumed at step {resumed}, attempt 2 after {moved_s:.1f} s"

    def submit(self, name, more=None):
        settings = {"env.PYTHON": PYTHON, "env.STEPS": self.steps,
                    "env.CHECKPOINT_DIR": WORK / f"{pathlib.Path(self.file).parent.name}-{name}"}
        return submit(self.file, settings | (more or {}))

    def reached(self, job, step):
        return show(job)["state"] == "running" and step in steps_of(logs(job, 2), 2)

    def check_loss(self, text):
        loss = final_loss(text)
        # Ranks add up their shares in another order than one process does: rounding alone,
        # 4e-7 measured. A step too many or too few makes 8e-4, a lost momentum 3e-2.
        assert abs(loss - self.expected) <= 1e-5 * self.expected, (
            f"final loss {loss}, one process reaches {self.expected}")

    def check_resumed(self, text, rank, step):
        assert f"rank {rank} resumed at step {step}\n" in text, f"rank {rank}: {text[:300]}"
        first = (step // 10 + 1) * 10
        assert steps_of(text, rank) == list(range(first, self.steps, 10)) + [self.steps], (
            f"rank {rank} should go on at step {step}: {steps_of(text, rank)}")
        self.check_loss(text)

    def pid_of(self, job, rank):
        """The training process of a rank, by its environment: agents of `dev` share this machine."""
        wanted = {f"ROWEN_JOB_ID={job}".encode(), f"RANK={rank}".encode()}
        found = []
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                environment = set((process / "environ").read_bytes().split(b"\0"))
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted <= environment and str(self.script).encode() in words:
                found.append(int(process.name))
        assert len(found) == 1, f"processes of rank {rank}: {found}"
        return found[0]


def steps_of(text, rank):
    return [int(step) for step in re.findall(rf"^rank {rank} step (\d+) loss ", text, re.M)]


def final_loss(text):
    found = re.search(r"final loss (\S+)", text)
    assert found, f"no final loss in: {text[-300:]}"
    return float(found[1])
