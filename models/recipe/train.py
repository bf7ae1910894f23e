"""Trains the models. `python models/recipe/train.py all` does everything, and resumes.

Steps one by one: fetch, data, fit RUN..., export, evaluate. Everything made on the way lies
in the cache folder (PROXYTUNE_CACHE, by default ~/.cache/proxytune-models).
"""

import json
import multiprocessing.connection
import os
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

import data
import sources
import tokenizer
from model import Llama
from optim import Optimizer
from runs import RUNS, Run, folder, load_checkpoint, save_checkpoint

MICRO = 1024  # tokens a backward pass
WINDOW, LONG_WINDOW = 256, 1024  # training context, and that of the last part
WORKERS = int(os.environ.get("PROXYTUNE_WORKERS", os.cpu_count()))  # processes, one thread each
SAVE_EVERY, EVALUATE_EVERY = 120, 300  # seconds


class Windows:
    """Windows of a token stream, each seen once an epoch, in an order fixed by the seed."""

    def __init__(self, stream: str, seed: int):
        self.tokens = np.load(tokenizer.TOKENS / f"{stream}.npy", mmap_mode="r")
        self.seed, self.orders = seed, {}

    def get(self, position: int, count: int, size: int) -> torch.Tensor:
        """`count` windows of `size` + 1 tokens; `position` tokens have been seen before."""
        per_epoch = len(self.tokens) // size - 1
        rows = []
        for index in range(position // size, position // size + count):
            epoch, index = divmod(index, per_epoch)
            if (epoch, size) not in self.orders:
                rng = np.random.default_rng((self.seed, epoch, size))
                self.orders = {(epoch, size): (rng.permutation(per_epoch), int(rng.integers(size)))}
            order, shift = self.orders[epoch, size]
            begin = int(order[index]) * size + shift
            rows.append(self.tokens[begin : begin + size + 1].astype(np.int64))
        return torch.from_numpy(np.stack(rows))


def rate(run: Run, seen: int) -> float:
    """The learning rate's factor in 0..1 after `seen` tokens."""
    return min(1, (seen + run.batch) / run.warmup, (1 - seen / run.tokens) / run.decay)


def fit(name: str) -> None:
    """Runs one training run to its end, going on from its checkpoint if there is one."""
    run = RUNS[name]
    folder(name).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    net = Llama(run.arch).to(torch.bfloat16).share_memory()
    optimizer = Optimizer(net, run.muon_lr, run.adam_lr)
    seen = 0
    if (folder(name) / "checkpoint.pt").exists():
        checkpoint = load_checkpoint(name)
        seen = checkpoint["seen"]
        optimizer.load(checkpoint["optimizer"])
    elif run.start:
        optimizer.load_weights(load_checkpoint(run.start)["optimizer"]["master"])
    if seen >= run.tokens:
        return
    context = torch.multiprocessing.get_context("spawn")
    team = Team(net, context)
    processes = [context.Process(target=work, args=(name, net, optimizer, team, rank, seen), daemon=True)
                 for rank in range(WORKERS)]
    for process in processes:
        process.start()
    # The list is made once a turn: waiting for nobody would never end.
    while running := [process.sentinel for process in processes if process.is_alive()]:
        multiprocessing.connection.wait(running)
        if any(p.exitcode for p in processes):
            break  # the others end with this one
    if any(p.exitcode for p in processes):
        sys.exit(f"{name}: a process failed")


class Team:
    """What the processes training one net share: gradients, the queue of a step's parts, a barrier."""

    def __init__(self, net, context):
        zeros = lambda: {n: torch.zeros_like(p).share_memory_() for n, p in net.named_parameters()}
        self.gradients = [zeros() for _ in range(WORKERS)]
        self.loss = torch.zeros(WORKERS).share_memory_()
        self.taken = context.Value("i", 0)
        self.barrier = context.Barrier(WORKERS)

    def parts(self, count: int):
        """Yields the parts of a step that are still free: a slower process takes fewer."""
        while True:
            with self.taken.get_lock():
                part = self.taken.value
                self.taken.value += 1
            if part >= count:
                return
            yield part


def work(name: str, net, optimizer: Optimizer, team: Team, rank: int, seen: int) -> None:
    """One process's share of a run: parts of each step, then a share of the parameters' updates."""
    torch.set_num_threads(1)
    run = RUNS[name]
    step_net = torch.compile(net)
    for n, p in net.named_parameters():
        p.grad = team.gradients[rank][n]
    mine = list(optimizer.net)[rank::WORKERS]
    windows = Windows(run.stream, run.seed)
    parts = run.batch // MICRO
    if rank == 0:
        watch = Watch(name, net, optimizer, seen)
    while seen < run.tokens:
        size = LONG_WINDOW if seen >= (1 - run.long) * run.tokens else WINDOW
        team.loss[rank] = 0
        for part in team.parts(parts):
            loss = step_net(windows.get(seen + part * MICRO, MICRO // size, size)) / parts
            loss.backward()
            team.loss[rank] += loss.item()
        team.barrier.wait()
        optimizer.step({n: sum(g[n].float() for g in team.gradients) for n in mine}, rate(run, seen))
        seen += run.batch
        if rank == 0:
            step_loss = float(team.loss.sum())
            team.taken.value = 0
        team.barrier.wait()
        for g in team.gradients[rank].values():
            g.zero_()
        if rank == 0:
            watch.after_step(seen, step_loss)


class Watch:
    """Progress bar, log and checkpoints of a run."""

    def __init__(self, name: str, net, optimizer: Optimizer, seen: int):
        self.name, self.net, self.optimizer, self.total = name, net, optimizer, RUNS[name].tokens
        self.bar = tqdm(total=self.total, initial=seen, desc=name, unit="tok", unit_scale=True, mininterval=10)
        self.probes = {kind: probe(kind) for kind in ("prose", "code")}
        self.saved = self.evaluated = time.monotonic()
        self.loss = None

    def after_step(self, seen: int, loss: float) -> None:
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        self.bar.update(seen - self.bar.n)
        self.bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)
        now, done = time.monotonic(), seen >= self.total
        if done or now - self.evaluated > EVALUATE_EVERY:
            with torch.no_grad():
                scores = {kind: round(float(self.net(x)), 4) for kind, x in self.probes.items()}
            with open(folder(self.name) / "log.jsonl", "a") as log:
                log.write(json.dumps({"seen": seen, "loss": round(self.loss, 4), **scores}) + "\n")
            self.evaluated = now
        if done or now - self.saved > SAVE_EVERY:
            save_checkpoint(self.name, {"seen": seen, "optimizer": self.optimizer.state()})
            self.saved = now
        if done:
            self.bar.close()


def probe(kind: str) -> torch.Tensor:
    """[32, 257] held-out tokens to watch a run by."""
    text = "".join(data.load(f"{kind}.heldout"))[:200_000]
    ids = tokenizer.load().encode(text).ids[: 32 * 1001]
    return torch.tensor(ids).view(32, -1)[:, :257]


def main(steps: list[str]) -> None:
    torch.set_num_threads(1)
    command, *names = steps or ["help"]
    if command in ("all", "fetch"):
        sources.fetch()
    if command in ("all", "data"):
        data.build()
        data.write_samples()
        tokenizer.train()
        tokenizer.encode()
    if command in ("all", "fit"):
        for name in names or RUNS:
            fit(name)
    if command in ("all", "export"):
        import export_gguf

        export_gguf.main()
    if command in ("all", "evaluate"):
        import evaluate

        evaluate.main()
    if command not in ("all", "fetch", "data", "fit", "export", "evaluate"):
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
