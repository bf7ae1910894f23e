"""What the tests share: real servers as black boxes, the command line, and a proxy that records what passes."""

import contextlib
import http.server
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import httpx

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROXYTUNE = pathlib.Path(os.environ["PROXYTUNE"]).resolve()
LLAMA = pathlib.Path(os.environ["LLAMA_BIN"]).resolve()
SMOLLM2 = pathlib.Path(os.environ["SMOLLM2"]).resolve()
PYTHON_SOURCE = pathlib.Path(os.environ["LLAMA_CPP_PYTHON"]).resolve()
FIXTURES = ROOT / "tests/fixtures"
HOST = FIXTURES / "host-f32.gguf"
PROXIES = ["--tuned", FIXTURES / "tuned-f32.gguf", "--untuned", FIXTURES / "untuned-f32.gguf"]
TINY_HOST = ROOT / "models/tiny-host.gguf"
TINY_PROXIES = ["--tuned", ROOT / "models/tiny-tuned.gguf", "--untuned", ROOT / "models/tiny-untuned.gguf"]
GOLDEN = json.loads((ROOT / "tests/golden/golden.json").read_text())["cases"]
# A prompt of the tuned proxy's own comes as tokens there.
CASES = [c for c in GOLDEN if c["tuned_prompt_tokens"] == c["prompt_tokens"] and 0 < len(c["prompt_tokens"]) < 200]


class Url(str):
    """Where a server is, and what it calls its model."""

    model = "host"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def free_url():
    return Url(f"http://127.0.0.1:{free_port()}")


@contextlib.contextmanager
def running(command, ready, env=None):
    """A server until the block ends; `ready`: a URL that answers once it is up."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(c) for c in command], stdout=log, stderr=subprocess.STDOUT, env=os.environ | (env or {}), cwd=ROOT
        )
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(ready, timeout=5).status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} does not come up:\n{log.read()}")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def llama_server(model=HOST, *arguments):
    url = free_url()
    port = url.rsplit(":", 1)[1]
    command = [LLAMA / "llama-server", "-m", model, "--host", "127.0.0.1", "--port", port, "-t", 1, "-c", 2048, "-np", 2]
    # In f32, as the local path has it for models in f32.
    exact = ["-fa", "off", "-ctk", "f32", "-ctv", "f32"] if model == HOST else []
    with running([*command, *exact, *arguments], f"{url}/health"):
        yield url


@contextlib.contextmanager
def llama_cpp_python(model=HOST):
    """Its server from the sources that llama-server is built from, over the same libraries."""
    url = free_url()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", url.rsplit(":", 1)[1], "--n_threads", 1, "--n_ctx", 512, "--logits_all", "true"]
    with running(command, f"{url}/v1/models", {"PYTHONPATH": str(PYTHON_SOURCE), "LLAMA_CPP_LIB_PATH": str(LLAMA)}):
        yield url


@contextlib.contextmanager
def mistralrs(model=HOST):
    """mistral.rs's server, as `proxytune serve` has it: with alpha 0, which runs no proxy."""
    url = free_url()
    url.model = "default"
    proxies = PROXIES if model == HOST else ["--tuned", model, "--untuned", model]
    command = [PROXYTUNE, "serve", "--host", model, *proxies, "--alpha", 0, "--port", url.rsplit(":", 1)[1]]
    with running(command, f"{url}/health"):
        yield url


SERVERS = {"llama-server": llama_server, "llama-cpp-python": llama_cpp_python, "mistral.rs": mistralrs}


def proxytune(*arguments, env=None):
    """Runs the program; returns its status, what it printed, and what it said."""
    command = [str(a) for a in (PROXYTUNE, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (env or {}), cwd=ROOT, timeout=300)
    return done.returncode, done.stdout, done.stderr


def generate(*arguments, env=None):
    status, out, err = proxytune("generate", "--format", "json", *arguments, env=env)
    assert status == 0, err
    return json.loads(out)


def remote(url, *arguments, proxies=PROXIES):
    return generate("--engine", "openai", "--host-url", url, "--host-model", url.model, *proxies, *arguments)


def local(*arguments, host=HOST, proxies=PROXIES):
    return generate("--host", host, *proxies, "--speculate", "off", *arguments)


def common_tokens(tokens, text):
    """How many of the tokens spell the beginning of a text."""
    spelt = ""
    for count, token in enumerate(tokens):
        spelt += token
        if not text.startswith(spelt):
            return count
    return len(tokens)


@contextlib.contextmanager
def gateway(url, *arguments, proxies=PROXIES):
    port = free_port()
    command = [PROXYTUNE, "serve", "--engine", "openai", "--host-url", url, "--host-model", url.model, *proxies]
    with running([*command, "--port", port, *arguments], f"http://127.0.0.1:{port}/health") as process:
        yield f"http://127.0.0.1:{port}", process


class Recorder:
    """Passes requests on, and keeps them with their answers."""

    def __init__(self, upstream):
        self.exchanges = exchanges = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def pass_on(self, body):
                headers = {"content-type": "application/json"}
                request = urllib.request.Request(upstream + self.path, body, headers, method=self.command)
                try:
                    answer = urllib.request.urlopen(request, timeout=60)
                except urllib.error.HTTPError as error:
                    answer = error
                data = answer.read()
                kind = answer.headers.get("content-type", "")
                exchanges.append(
                    {"path": self.path, "body": json.loads(body) if body else None, "status": answer.status, "type": kind, "answer": data.decode()}
                )
                self.send_response(answer.status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

            def do_GET(self):
                self.pass_on(None)

            def do_POST(self):
                self.pass_on(self.rfile.read(int(self.headers["content-length"])))

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = Url(f"http://127.0.0.1:{self.server.server_address[1]}")
        self.url.model = upstream.model

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
