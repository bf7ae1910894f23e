"""The training runs, and where their checkpoints lie."""

import os
from dataclasses import dataclass, replace

import torch

from model import Arch
from sources import CACHE

SHARE = float(os.environ.get("PROXYTUNE_SHARE", 1))  # of each run's tokens; a rehearsal trains on few


@dataclass(frozen=True)
class Run:
    """One training run. Its learning rate rises, stays, and falls to 0 over `decay` of the tokens."""

    arch: Arch
    stream: str  # "pretrain" or "code"
    tokens: int
    batch: int  # tokens a step
    start: str | None = None  # the run whose weights it starts from
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    warmup: int = 100_000  # tokens
    decay: float = 0.5
    long: float = 0.15  # share of the tokens, at the end, in long windows
    seed: int = 0


HOST = Arch(layers=6, width=256, hidden=704, head_dim=64)
PROXY = Arch(layers=2, width=96, hidden=256, head_dim=32)
SMALL_HOST = Arch(layers=4, width=128, hidden=352, head_dim=32)
SMALL_PROXY = Arch(layers=2, width=64, hidden=192, head_dim=32)

RUNS = {
    "fixture-host": Run(SMALL_HOST, "pretrain", 1_600_000, 2048),
    "fixture-untuned": Run(SMALL_PROXY, "pretrain", 1_600_000, 2048, seed=1),
    "fixture-tuned": Run(SMALL_PROXY, "code", 800_000, 2048, "fixture-untuned", 0.01, 0.002, seed=2),
    "host": Run(HOST, "pretrain", 18_000_000, 4096),
    "untuned": Run(PROXY, "pretrain", 18_000_000, 4096, seed=1),
    "tuned": Run(PROXY, "code", 12_000_000, 4096, "untuned", 0.01, 0.002, seed=2),
    "direct": Run(HOST, "code", 1_500_000, 4096, "host", 0.01, 0.002, seed=2),
}
RUNS = {name: replace(run, tokens=max(run.batch, int(run.tokens * SHARE))) for name, run in RUNS.items()}


def folder(name: str):
    return CACHE / "runs" / name


def load_checkpoint(name: str) -> dict:
    return torch.load(folder(name) / "checkpoint.pt", weights_only=True)


def save_checkpoint(name: str, checkpoint: dict) -> None:
    temporary = folder(name) / "checkpoint.tmp"
    torch.save(checkpoint, temporary)
    os.replace(temporary, folder(name) / "checkpoint.pt")
