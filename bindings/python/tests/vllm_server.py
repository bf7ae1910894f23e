"""`vllm serve` on the test trio's host, for tests and figures."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

MODEL = os.environ.get("PROXYTUNE_VLLM_MODEL", "")
PROCESSOR = "proxytune.vllm:ProxyTuning"


def offline():
    """The environment of an engine on this machine's CPU, which asks nobody for anything."""
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{os.cpu_count() - 1}",
    }


class Server:
    """An unmodified `vllm serve`, in float32; a context manager.

    `config` goes into PROXYTUNE_CONFIG, `processor` to --logits-processors; `None` leaves either out.
    """

    def __init__(self, config, *arguments, processor=PROCESSOR, environment=None, model=None):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = tempfile.TemporaryFile("w+")
        command = [Path(sys.executable).parent / "vllm", "serve", model or MODEL, "--port", self.port, "--dtype", "float32"]
        command += ["--served-model-name", "host", "--max-num-seqs", 16, "--max-model-len", 1024, "--enforce-eager"]
        command += ["--logits-processors", processor] if processor else []
        env = os.environ | offline()
        env |= {"PROXYTUNE_CONFIG": str(config)} if config else {}
        env |= environment or {}
        command = [str(c) for c in (*command, *arguments)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=env)

    def __enter__(self):
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait_until_ready(self, seconds=400):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"vllm serve ended with {self.process.returncode}:\n{self.output()}")
            try:
                with urllib.request.urlopen(self.url("/health"), timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        raise RuntimeError(f"vllm serve does not answer:\n{self.output()}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.text = self.output()
        self.log.close()

    def url(self, path=""):
        return f"http://127.0.0.1:{self.port}{path}"

    def output(self):
        """All that the server has written so far."""
        if self.log.closed:
            return self.text
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def lines(self):
        """What proxytune has said so far."""
        return [line for line in self.output().splitlines() if "proxytune: " in line]


def metric(server, name):
    """A counter of vLLM's, over all its labels."""
    with urllib.request.urlopen(server.url("/metrics"), timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


class Client:
    """The `openai` client, for prompts of tokens."""

    def __init__(self, server):
        import openai

        self.server = server
        self.api = openai.OpenAI(base_url=server.url("/v1"), api_key="none", max_retries=0, timeout=300)

    def create(self, prompt, max_tokens=96, extra=None, **fields):
        extra = {"ignore_eos": True, "return_token_ids": True} | (extra or {})
        fields = {"temperature": 0, "model": "host", "max_tokens": max_tokens} | fields
        return self.api.completions.create(prompt=prompt, extra_body=extra, **fields)

    def complete(self, case, alpha=None, **fields):
        """A case's tokens; its own alpha where none is given."""
        xargs = {"proxy_tuning_alpha": case["alpha"] if alpha is None else alpha}
        return self.create(case["prompt_tokens"], extra={"vllm_xargs": xargs}, **fields).choices[0].token_ids


def write_config(folder, **keys):
    """Writes a configuration for the test trio's proxies and returns its path."""
    fixtures = Path(__file__).resolve().parents[3] / "tests/fixtures"
    keys = {"tuned": str(fixtures / "tuned-f32.gguf"), "untuned": str(fixtures / "untuned-f32.gguf")} | keys
    path = Path(folder) / "proxytune.toml"
    path.write_text("\n".join(["[proxy_tuning]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]) + "\n")
    return path
