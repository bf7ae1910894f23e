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
        env = os.environ | {
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{os.cpu_count() - 1}",
        }  # fmt: skip
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

    def metrics(self):
        with urllib.request.urlopen(self.url("/metrics"), timeout=30) as reply:
            return reply.read().decode()


def write_config(folder, **keys):
    """Writes a configuration for the test trio's proxies and returns its path."""
    fixtures = Path(__file__).resolve().parents[3] / "tests/fixtures"
    keys = {"tuned": str(fixtures / "tuned-f32.gguf"), "untuned": str(fixtures / "untuned-f32.gguf")} | keys
    path = Path(folder) / "proxytune.toml"
    path.write_text("\n".join(["[proxy_tuning]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]) + "\n")
    return path
