"""The peers: each measures its ways of decoding one sequence, greedily, and returns tokens/s after the first token."""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from trios import PROMPT, ROOT, Trio

sys.path.insert(0, str(ROOT / "tests" / "oracle"))
from oracle import host_alone, load_model, proxy_tuned  # noqa: E402


class Transformers:
    """The paper's algorithm, written plainly; weights dequantised."""

    def __init__(self, trio: Trio, prompt: list[int], dtype: torch.dtype):
        self.name = f"transformers, {str(dtype).removeprefix('torch.')}"
        self.models = {role: load_model(path).to(dtype) for role, path in trio.models().items()}
        self.prompt, self.tokens = prompt, trio.tokens

    def measure(self) -> dict[str, float]:
        prompt, tokens = self.prompt, self.tokens
        return {
            "host alone": rate(host_alone(self.models["host"], prompt, tokens), tokens),
            "proxy-tuned": rate(proxy_tuned(self.models, prompt, prompt, 1.0, tokens), tokens),
        }


def rate(steps, tokens: int) -> float:
    next(steps)
    begin = time.perf_counter()
    for _ in steps:
        pass
    return (tokens - 1) / (time.perf_counter() - begin)


class Program:
    """`proxytune bench`, with the host in one engine; its naive way is three models after one another on all threads."""

    WAYS = {
        "llama": ("llama.cpp", {
            "host": "host alone", "naive": "naive", "lockstep": "proxytune", "speculative": "proxytune, drafts",
        }),
        "mistralrs": ("mistral.rs", {"host": "host alone", "naive": "naive processor", "lockstep": "proxytune"}),
    }

    def __init__(self, program: str, trio: Trio, engine: str, prompt_file: Path):
        self.name, self.ways = self.WAYS[engine]
        drafts = []
        if trio.accept and engine == "llama":
            self.ways = self.ways | {"speculative": f"proxytune, drafts, {trio.accept:.0%} accepted by force"}
            drafts = ["--speculate", "3", "--force-accept", str(trio.accept)]
        self.command = [
            program, "bench", "--engine", engine, "--format", "json", "--sequences", "1", "--rounds", "2",
            "--tokens", str(trio.tokens), "--prompt-file", str(prompt_file), *models(trio), *drafts,
        ]

    def measure(self) -> dict[str, float]:
        rows = json.loads(run(self.command))["rows"]
        return {self.ways[row["mode"]]: row["tokens_per_s"] for row in rows if row["mode"] in self.ways}


def models(trio: Trio) -> list[str]:
    return [argument for role, path in trio.models().items() for argument in (f"--{role}", str(path))]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"{command[0]} ended with {done.returncode}")
    return done.stdout


def prompt_tokens(program: str, trio: Trio) -> list[int]:
    command = [program, "generate", "--no-proxy", "--format", "json", "--max-tokens", "1", "--prompt", PROMPT]
    return json.loads(run([*command, "--host", str(trio.host)]))["prompt_tokens"]


def has_mistralrs(program: str) -> bool:
    """Whether mistral.rs is in the program: without it, it says so before it misses the models."""
    command = [program, "generate", "--engine", "mistralrs", "--prompt", "x"]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    return "which this build has not" not in said
