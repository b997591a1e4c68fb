#!/usr/bin/env python3
"""A filler that serves a real language model; run.sh --all calls this."""

import json
import sys
import threading
import time
import urllib.error
import urllib.request

import harness
from harness import assignments, rowen, wait_until

FILE = "examples/smollm/filler.yaml"


def instances():
    filler = json.loads(rowen("filler", "show", "smollm", "-o", "json"))
    return [one for one in filler["instances"] if one["state"] == "ready"]


def complete(address, prompt, max_tokens):
    body = json.dumps({"prompt": prompt, "max_tokens": max_tokens}).encode()
    request = urllib.request.Request(f"http://{address}/v1/completions", body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def serves():
    settings = {"env.PYTHON": harness.PYTHON, "instances.max": 1}
    rowen("filler", "deploy", FILE, *assignments(settings))
    began = time.monotonic()
    address = wait_until("an instance to be ready", 60, instances)[0]["address"]
    ready_s = time.monotonic() - began
    began = time.monotonic()
    answer = complete(address, "The capital of France is", 32)
    pace = answer["usage"]["completion_tokens"] / (time.monotonic() - began)
    text = answer["choices"][0]["text"]
    assert "Paris" in text, answer
    assert answer["usage"]["completion_tokens"] == 32, answer
    return f"ready after {ready_s:.1f} s, {pace:.0f} tokens/s: {text[:30]!r}"


def drains():
    """An answer that was begun before the notice comes whole; then nobody listens."""
    address = instances()[0]["address"]
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(complete(address, "Once upon a time", 200)))
    asking.start()
    time.sleep(0.3)
    rowen("filler", "remove", "smollm")
    asking.join()
    assert answers and answers[0]["usage"]["completion_tokens"] == 200, answers

    def gone():
        try:
            urllib.request.urlopen(f"http://{address}/health", timeout=5).close()
            return False
        except (urllib.error.URLError, ConnectionError):
            return True
    wait_until("the instance to end", 30, gone)


sys.exit(harness.run_cases("smollm", [
    ("answers a prompt", serves), ("finishes its answers on notice", drains)]))
