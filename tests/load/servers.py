"""The servers under load: started, looked at from outside, and ended."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOST, TUNED, UNTUNED = (ROOT / f"tests/fixtures/{name}-f32.gguf" for name in ("host", "tuned", "untuned"))
SLOTS = 16
CONTEXT = 1024


class Server:
    """One server in a process of its own; a context manager."""

    def __init__(self, name, command, port, env=None, fields=None):
        self.name = name
        # What its requests say besides.
        self.fields = fields or {}
        self.port = port
        self._log = tempfile.TemporaryFile("w+")
        self._began = None
        self._process = subprocess.Popen(
            [str(c) for c in command], stdout=self._log, stderr=subprocess.STDOUT, env=os.environ | (env or {}), cwd=ROOT
        )

    def __enter__(self):
        deadline = time.monotonic() + 300
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{self.output()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url("/health"), timeout=5):
                self._began = time.monotonic()
                return self
            if time.monotonic() > deadline:
                self._process.kill()
                raise RuntimeError(f"{self.name} does not answer:\n{self.output()}")
            time.sleep(0.1)

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._log.close()

    def stop(self):
        """Asks it to end; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def output(self):
        """All that it has written so far."""
        self._log.flush()
        self._log.seek(0)
        return self._log.read()

    def age(self):
        """Seconds since it was ready."""
        return time.monotonic() - self._began

    def resident(self):
        """MiB of memory."""
        status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s*(\d+)", status)[1]) / 1024

    def metrics(self):
        """Name, with labels, to value."""
        with urllib.request.urlopen(self.url("/metrics"), timeout=60) as reply:
            lines = reply.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def serve(program, shifted):
    """`proxytune serve`; not shifted: the same, with every request for the host alone."""
    port = free_port()
    command = [program, "serve", "--port", port, "--host", HOST, "--tuned", TUNED, "--untuned", UNTUNED]
    if shifted:
        return Server("proxytune serve", command, port)
    return Server("mistral.rs alone", command, port, fields={"proxy_tuning": {"enabled": False}})


def llama_server(folder, plugin, shifted, scratch):
    """An unmodified llama-server, with the plugin in it where it is shifted."""
    port, env = free_port(), {}
    if shifted:
        config = pathlib.Path(scratch) / "proxytune.toml"
        config.write_text(f'[proxy_tuning]\ntuned = "{TUNED}"\nuntuned = "{UNTUNED}"\nslots = {SLOTS}\n')
        env = {"LD_PRELOAD": str(plugin), "PROXYTUNE_CONFIG": str(config)}
    command = [pathlib.Path(folder) / "llama-server", "-m", HOST, "--port", port, "-np", SLOTS, "-c", CONTEXT * SLOTS]
    command += ["-ctk", "f32", "-ctv", "f32", "-fa", "off", "--threads", os.cpu_count(), "--metrics"]
    # Prompts that it would keep in memory for later would look like growth.
    command += ["--cache-ram", 0]
    return Server("llama-server with the plugin" if shifted else "llama-server alone", command, port, env)
