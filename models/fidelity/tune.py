"""Tunes a shipped model on the answers of a task, with the recipe's model and optimizers, and resumes where it was stopped."""

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import export_gguf
import tokenizer
import torch
import torch.nn.functional as F
from optim import Optimizer
from sources import CACHE
from tasks import TUNED, MODELS, TASKS
from tqdm import tqdm

SAVE_EVERY = 60  # seconds


@dataclass(frozen=True)
class Run:
    """One model. Its learning rate rises over `warmup` steps and falls to 0 over the last half."""

    task: str
    start: str  # the shipped model whose weights it starts from
    steps: int
    batch: int = 64  # questions a step
    muon_lr: float = 0.01
    adam_lr: float = 0.002
    warmup: int = 20
    seed: int = 0


# Proxy and host see the same questions in the same order. Small models are cheap to tune: "longer" is the proxy with more of them.
RUNS = {
    "arithmetic-tuned": Run("arithmetic", "untuned", 600, batch=128),
    "arithmetic-longer": Run("arithmetic", "untuned", 1500, batch=128),
    "arithmetic-direct": Run("arithmetic", "host", 600, batch=128),
    "completion-tuned": Run("completion", "untuned", 150),
    "completion-longer": Run("completion", "untuned", 600),
    "completion-direct": Run("completion", "host", 150),
}


def batch(run: Run, example, step: int):
    """The questions of a step: tokens [B, T], which places predict answers [B, T], and the answers [n]."""
    rng = random.Random(f"{run.seed} {step}")
    rows = [example(rng) for _ in range(run.batch)]
    length = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    tokens = torch.zeros(run.batch, length, dtype=torch.long)
    wanted = torch.zeros(run.batch, length, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        # What stands after the answer is never looked back at.
        tokens[row, : len(prompt) + len(answer) - 1] = torch.tensor([*prompt, *answer[:-1]])
        wanted[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = True
    return tokens, wanted, torch.tensor([token for _, answer in rows for token in answer])


def tune(name: str, file: Path) -> None:
    """Makes the GGUF file of a run (once), going on from its checkpoint if there is one."""
    if file.exists():
        return
    run, checkpoint = RUNS[name], CACHE / f"{name}.pt"
    torch.set_num_threads(1)
    arch, net = export_gguf.read_model(MODELS / f"tiny-{run.start}.gguf")
    net = net.train().to(torch.bfloat16)
    optimizer = Optimizer(net, run.muon_lr, run.adam_lr)
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        done = saved["done"]
        optimizer.load(saved["optimizer"])
    example = TASKS[run.task].examples(tokenizer.load())
    saved_at, loss_mean = time.monotonic(), None
    bar = tqdm(range(done, run.steps), initial=done, total=run.steps, desc=name, unit="step", mininterval=10)
    for step in bar:
        tokens, wanted, answers = batch(run, example, step)
        loss = F.cross_entropy(net.logits(tokens, wanted).float(), answers)
        loss.backward()
        rate = min(1, (step + 1) / run.warmup, 2 * (1 - step / run.steps))
        optimizer.step({n: p.grad.float() for n, p in net.named_parameters()}, rate)
        net.zero_grad(set_to_none=False)
        loss_mean = loss.item() if loss_mean is None else 0.98 * loss_mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{loss_mean:.3f}", refresh=False)
        if time.monotonic() - saved_at > SAVE_EVERY:
            save(checkpoint, {"done": step + 1, "optimizer": optimizer.state()})
            saved_at = time.monotonic()
    template = TUNED if TASKS[run.task].chat else None
    export_gguf.write_gguf(file, arch, optimizer.master, True, f"{run.start}, tuned on {run.task}.", template)
    checkpoint.unlink(missing_ok=True)


def save(path: Path, checkpoint: dict) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(checkpoint, temporary)
    os.replace(temporary, path)
