"""What the server's tests share: the trio, its golden cases, and a running `proxytune serve`."""

import asyncio
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import threading
import time

import httpx
import openai

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROXYTUNE = pathlib.Path(os.environ["PROXYTUNE"]).resolve()
SMOLLM2 = pathlib.Path(os.environ["SMOLLM2"]).resolve()
FIXTURES = ROOT / "tests/fixtures"
HOST, TUNED, UNTUNED = (FIXTURES / f"{name}-f32.gguf" for name in ("host", "tuned", "untuned"))
GOLDEN = json.loads((ROOT / "tests/golden/golden.json").read_text())["cases"]
# A prompt of the tuned proxy's own comes as text here, not as tokens.
CASES = [case for case in GOLDEN if case["tuned_prompt_tokens"] == case["prompt_tokens"]]


def trio(host=HOST, tuned=TUNED, untuned=UNTUNED):
    """Flags that name the models."""
    return ["--host", host, "--tuned", tuned, "--untuned", untuned]


class Server:
    """A running server; a context manager."""

    def __init__(self, *arguments, models=None, env=None, program=PROXYTUNE):
        self.log = tempfile.TemporaryFile("w+")
        command = [program, "serve", "--port", "0", *(trio() if models is None else models), *arguments]
        self.process = subprocess.Popen(
            [str(c) for c in command], stdout=self.log, stderr=subprocess.STDOUT, env=os.environ | (env or {}), cwd=ROOT
        )
        self.address = None

    def __enter__(self):
        deadline = time.monotonic() + 300
        while self.address is None:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.output()}")
            if time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"the server does not listen:\n{self.output()}")
            if found := re.search(r"listening on http://(\S+)", self.output()):
                self.address = found[1]
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def output(self):
        """All that the server has written so far."""
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def stop(self, how=signal.SIGTERM):
        """Asks it to stop; returns the exit code."""
        self.process.send_signal(how)
        return self.process.wait(60)

    def url(self, path=""):
        return f"http://{self.address}{path}"

    def client(self, **options):
        return openai.OpenAI(**self._options(options))

    def async_client(self, **options):
        return openai.AsyncOpenAI(**self._options(options))

    def _options(self, options):
        return {"base_url": self.url("/v1"), "api_key": "none", "max_retries": 0, "timeout": 300} | options

    def post(self, path, body, **options):
        """A request as it is, bytes or an object; the raw response."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | options.pop("headers", {})
        return httpx.post(self.url(path), content=content, headers=headers, timeout=300, **options)

    def metrics(self):
        """Name with labels to value."""
        lines = httpx.get(self.url("/metrics"), timeout=60).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def settle(self, seconds=60):
        """Waits until nothing runs."""
        deadline = time.monotonic() + seconds
        while self.metrics()["proxytune_running_sequences"] > 0:
            assert time.monotonic() < deadline, "sequences still run"
            time.sleep(0.05)


def completion(client, prompt, max_tokens=96, proxy_tuning=None, **fields):
    """A greedy completion."""
    body = {"proxy_tuning": proxy_tuning} if proxy_tuning is not None else {}
    fields = {"model": "default", "temperature": 0} | fields
    return client.completions.create(prompt=prompt, max_tokens=max_tokens, extra_body=body, **fields)


@functools.cache
def _generated(name):
    [case] = [case for case in CASES if case["name"] == name]
    command = [PROXYTUNE, "generate", *trio(), "--format", "json", "--max-tokens", "96"]
    command += ["--tokens", ",".join(map(str, case["prompt_tokens"])), f"--alpha={case['alpha']}"]
    outcome = json.loads(subprocess.run([str(c) for c in command], check=True, capture_output=True).stdout)
    tokens = outcome["tokens"]
    assert tokens == case["tokens"][: len(tokens)], name
    return outcome


def outcome(case):
    """What llama.cpp's path makes of a golden case: the golden tokens, as far as the text goes."""
    return _generated(case["name"])


def expected(case):
    """A golden case's text; mistral.rs leaves out space at its beginning."""
    return outcome(case)["text"].lstrip()


def at_once(calls):
    """Runs calls on a thread each; their results in order."""
    results = [None] * len(calls)

    def run(index, call):
        try:
            results[index] = call()
        except Exception as error:  # noqa: BLE001, raised again below
            results[index] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def run_async(awaitable):
    return asyncio.run(awaitable)
