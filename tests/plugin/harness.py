"""What the plugin's tests share: the trio, its golden tokens, and an unmodified llama-server with the plugin in it."""

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
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]


def of_environment(name, what):
    """A path that the caller must have set."""
    if name not in os.environ:
        sys.exit(f"{name} is not set: name {what}, or let make test-plugin or make bench-plugin build it")
    return pathlib.Path(os.environ[name]).resolve()


PLUGIN = of_environment("PROXYTUNE_PLUGIN", "libproxytune_llama.so")
BIN = of_environment("LLAMA_BIN", "the folder of llama-server")
FIXTURES = ROOT / "tests/fixtures"
HOST, TUNED, UNTUNED = (FIXTURES / f"{name}-f32.gguf" for name in ("host", "tuned", "untuned"))

GOLDEN = json.loads((ROOT / "tests/golden/golden.json").read_text())["cases"]
# A server's proxies read the server's prompt; a prompt of the tuned proxy's own is not for it.
CASES = [case for case in GOLDEN if case["tuned_prompt_tokens"] == case["prompt_tokens"]]


def write_config(folder, tuned=TUNED, untuned=UNTUNED, **keys):
    """Writes a configuration and returns its path."""
    lines = ["[proxy_tuning]", f'tuned = "{tuned}"', f'untuned = "{untuned}"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path = pathlib.Path(folder) / "proxytune.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def environment(config):
    """The environment of a program with the plugin; `None` for a program without it."""
    env = dict(os.environ)
    if config is not None:
        env |= {"LD_PRELOAD": str(PLUGIN), "PROXYTUNE_CONFIG": str(config)}
    return env


class Server:
    """An unmodified llama-server, on all-f32 arithmetic; a context manager."""

    def __init__(self, config, *arguments, slots=1, context=1024, model=HOST, environ=None):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = tempfile.TemporaryFile("w+")
        command = [BIN / "llama-server", "-m", model, "--port", self.port, "-np", slots, "-c", context * slots]
        command += ["-ctk", "f32", "-ctv", "f32", "-fa", "off", "--threads", os.cpu_count(), *arguments]
        self.process = subprocess.Popen(
            [str(c) for c in command], stdout=self.log, stderr=subprocess.STDOUT, env=environ or environment(config)
        )

    def __enter__(self):
        deadline = time.monotonic() + 300
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"llama-server ended with {self.process.returncode}:\n{self.output()}")
            try:
                with urllib.request.urlopen(self.url("/health"), timeout=5) as reply:
                    if reply.status == 200:
                        return self
            except OSError:
                pass
            if time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"llama-server does not answer:\n{self.output()}")
            time.sleep(0.1)

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def output(self):
        """All that the server has written so far."""
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def lines(self):
        """What the plugin has said so far; the server's own lines may be under way on another thread."""
        return re.findall("proxytune: .*", self.output())

    def post(self, path, body, timeout=300):
        """The answer to a request, parsed."""
        request = urllib.request.Request(
            self.url(path), json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{error}: {error.read().decode()}\n{self.output()[-4000:]}") from error

    def complete(self, prompt, n_predict=96, **fields):
        """A greedy completion of tokens or text."""
        body = {"prompt": prompt, "n_predict": n_predict, "temperature": 0, "return_tokens": True} | fields
        return self.post("/completion", body)


def at_once(calls):
    """Runs calls on a thread each; their results in order."""
    results = [None] * len(calls)
    errors = []

    def run(index, call):
        try:
            results[index] = call()
        except Exception as error:  # noqa: BLE001, raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def with_foreign_vocabulary(source, target):
    """A copy of a GGUF file in whose tokens each letter is another one: no two become the same, which llama.cpp forbids."""
    turned = bytes.maketrans(bytes(range(97, 123)), bytes(range(110, 123)) + bytes(range(97, 110)))
    data = bytearray(source.read_bytes())
    number = lambda at, size: int.from_bytes(data[at : at + size], "little")  # noqa: E731
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def skip(at, kind, rename=False):
        if kind == 8:
            length = number(at, 8)
            if rename:
                start = at + 8
                data[start : start + length] = data[start : start + length].translate(turned)
            return at + 8 + length
        if kind == 9:
            kind, count, at = number(at, 4), number(at + 4, 8), at + 12
            for _ in range(count):
                at = skip(at, kind, rename)
            return at
        return at + sizes[kind]

    at = 24
    for _ in range(number(16, 8)):
        length = number(at, 8)
        key = bytes(data[at + 8 : at + 8 + length]).decode()
        at += 8 + length
        at = skip(at + 4, number(at, 4), rename=key == "tokenizer.ggml.tokens")
    target.write_bytes(data)
    return target
