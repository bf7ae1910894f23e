"""Predicts tokens/s of a host alone, proxy-tuned, and proxy-tuned with drafts, from shapes and a machine's figures.

    python benches/roofline.py
    python benches/roofline.py --machine cpu2 --trio 1.1b+92m --sequences 1 --drafts 3 --accept 0.8,0.9,1
    python benches/roofline.py --trio 70b+7b --sequences 1 --measured 21.5,4.1,4.1

A pass takes as long as its bytes need from memory or its arithmetic needs to compute, whichever is longer, and a fixed
time for each layer. docs/cost-at-scale.md has the formulas, and what they leave out. These are predictions, not
measurements.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "models"))
from shapes import SHAPES, VOCAB, Shape  # noqa: E402

KV_BYTES = 2  # f16
LOGIT_BYTES = 4  # f32
MOST_DRAFTS = 8
PLACEMENTS = ("in-turn", "together")


@dataclass(frozen=True)
class Machine:
    bandwidth: float  # bytes/s read from memory, as reached
    flops: float  # per s, as reached with such weights
    layer_s: float  # a layer's launches or its threads' meetings
    link: float  # bytes/s, logits to the processor that shifts them
    logit_s: float  # ours, for one logit of one sequence: copies, shift, choice
    memory: float  # bytes


MACHINES = {
    # 3.35 TB/s and 989 TFLOP/s (bf16, dense) are the peaks; 0.6 and 0.4 of them are assumed.
    "h100": Machine(0.6 * 3.35e12, 0.4 * 989e12, 12e-6, 25e9, 1e-9, 80e9),
    # Fitted to the host's passes over one and four positions in docs/performance.md (1.1 B, Q4_0): 22 and 54 ms.
    "cpu2": Machine(27e9, 153e9, 35e-6, float("inf"), 1e-9, 24e9),
}


@dataclass(frozen=True)
class Load:
    """What every pass is over."""

    machine: Machine
    sequences: int
    context: int  # tokens that each sequence holds
    bits: float  # a weight
    vocab: int


@dataclass(frozen=True)
class Pass:
    """Seconds."""

    memory: float
    arithmetic: float
    launch: float

    @property
    def time(self) -> float:
        return max(self.memory, self.arithmetic) + self.launch


def weights(shape: Shape, vocab: int) -> int:
    """Parameters, with a vocabulary of this size."""
    matrices = 1 if shape.tied else 2
    return shape.parameters() + matrices * (vocab - VOCAB) * shape.width


def kv_bytes(shape: Shape, load: Load) -> int:
    """Of all sequences."""
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * KV_BYTES
    return load.sequences * load.context * per_token


def forward(shape: Shape, load: Load, positions: int) -> Pass:
    """One forward pass over so many positions of each sequence."""
    # Of an embedding that is not the output matrix too, a pass reads single rows.
    used = weights(shape, load.vocab) - (0 if shape.tied else load.vocab * shape.width)
    rows = load.sequences * positions
    attention = 4 * rows * load.context * shape.layers * shape.heads * shape.head_dim
    return Pass(
        memory=(used * load.bits / 8 + kv_bytes(shape, load)) / load.machine.bandwidth,
        arithmetic=(2 * used * rows + attention) / load.machine.flops,
        launch=shape.layers * load.machine.layer_s,
    )


class Trio:
    """Host, tuned and untuned proxy under one load."""

    def __init__(self, host: Shape, proxy: Shape, load: Load, placement: str, measured: list[float] | None):
        self.shapes = (host, proxy, proxy)
        self.load, self.placement = load, placement
        # A measured pass over one position stretches every pass of that model alike.
        single = [forward(shape, load, 1).time for shape in self.shapes]
        self.stretch = [ms / 1e3 / s for ms, s in zip(measured, single)] if measured else [1.0] * 3

    def passes(self, *positions: int) -> float:
        """Seconds of one pass of each model over so many positions a sequence, 0 for none."""
        made = [
            Pass(p.memory * by, p.arithmetic * by, p.launch * by)
            for shape, count, by in zip(self.shapes, positions, self.stretch)
            if count
            for p in [forward(shape, self.load, count)]
        ]
        if self.placement == "in-turn":
            return sum(p.time for p in made)
        # On one device they share its memory and arithmetic; only their launches overlap.
        shared = max(sum(p.memory for p in made), sum(p.arithmetic for p in made))
        return max(shared, *(p.time for p in made))

    def logits(self, models: int, positions: int) -> float:
        """Seconds that the rows of so many models take to where they are shifted."""
        rows = models * self.load.sequences * positions
        return rows * self.load.vocab * LOGIT_BYTES / self.load.machine.link

    def ours(self, tokens: float) -> float:
        """Seconds of shifting and choosing so many tokens for each sequence."""
        return tokens * self.load.sequences * self.load.vocab * self.load.machine.logit_s

    def host_alone(self) -> float:
        """Tokens/s of all sequences together, as in the next two."""
        return self.load.sequences / (self.passes(1, 0, 0) + self.logits(1, 1))

    def plain(self) -> float:
        return self.load.sequences / (self.passes(1, 1, 1) + self.logits(3, 1) + self.ours(1))

    def speculative(self, drafts: int, accept: float) -> float:
        """With each drafted token accepted with this probability, whatever came before."""
        tokens = sum(accept**i for i in range(drafts + 1))
        if self.placement == "in-turn":
            # The rows after a draft are wanted only where all of it was accepted, by any of the sequences.
            last = 1 - (1 - accept**drafts) ** self.load.sequences
            time = drafts * self.passes(0, 1, 0) + self.passes(drafts + 1, 0, drafts) + last * self.passes(0, 1, 1)
        else:
            time = drafts * self.passes(0, 1, 0) + self.passes(drafts + 1, 1, drafts + 1)
        return self.load.sequences * tokens / (time + self.logits(3, drafts + 1) + self.ours(tokens))

    def memory(self) -> float:
        """Bytes of weights and caches."""
        bits = self.load.bits / 8
        return sum(weights(s, self.load.vocab) * bits + kv_bytes(s, self.load) for s in self.shapes)


def print_table(args: argparse.Namespace) -> None:
    machine = MACHINES[args.machine]
    print(f"{args.machine}, {args.bits:g} bits a weight, {args.context} tokens of context, {args.vocab} tokens of vocabulary")
    head = f"{'host+proxies':<13}{'sequences':>10}{'GB':>7}{'placement':>11}{'host alone':>12}{'plain':>9}{'of host':>9}"
    print(head + "".join(f"{f'drafts, P = {p:g}':>18}{'of host':>9}" for p in args.accept))
    crowded = False
    for host, proxy in args.trio:
        for sequences in args.sequences:
            load = Load(machine, sequences, args.context, args.bits, args.vocab)
            for placement in PLACEMENTS:
                trio = Trio(SHAPES[host], SHAPES[proxy], load, placement, args.measured)
                alone, plain = trio.host_alone(), trio.plain()
                mark = "*" if trio.memory() > machine.memory else " "
                crowded |= mark == "*"
                line = f"{host + '+' + proxy:<13}{sequences:>10}{trio.memory() / 1e9:>6.0f}{mark}{placement:>11}"
                line += f"{alone:>12.0f}{plain:>9.0f}{plain / alone:>9.2f}"
                for accept in args.accept:
                    lengths = [args.drafts] if args.drafts else range(1, MOST_DRAFTS + 1)
                    rate, drafts = max((trio.speculative(k, accept), k) for k in lengths)
                    line += f"{f'{rate:.0f} (K = {drafts})':>18}{rate / alone:>9.2f}"
                print(line)
    print("\nPredicted tokens/s of all sequences together; K tokens drafted a step, each accepted with probability P.")
    if not args.drafts:
        print(f"K is the best of 1 to {MOST_DRAFTS}.")
    if crowded:
        print(f"*: more than the {machine.memory / 1e9:.0f} GB of one device.")


def listed(of):
    """A parser of values between commas."""

    def parse(text: str) -> list:
        return [of(part) for part in text.split(",")]

    parse.__name__ = of.__name__
    return parse


def checked(kind, low: float, high: float):
    """A parser of one number from low to high."""

    def parse(text: str):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return value

    parse.__name__ = "number"
    return parse


def trio(text: str) -> tuple[str, str]:
    host, _, proxy = text.partition("+")
    if not {host, proxy} <= SHAPES.keys():
        raise argparse.ArgumentTypeError(f"{text} is not HOST+PROXY of {', '.join(SHAPES)}")
    return host, proxy


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Predicts tokens/s of a host alone, proxy-tuned, and proxy-tuned with drafts.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--trio", type=listed(trio), default="70b+7b,70b+1b,13b+7b", metavar="HOST+PROXY,...", help="parameters")
    add("--machine", choices=MACHINES, default="h100", help="its figures stand at the head of this script")
    add("--sequences", type=listed(checked(int, 1, 4096)), default="1,16,64", metavar="N,...", help="decoded at once")
    add("--context", type=checked(int, 1, 10**7), default=1024, help="tokens that each sequence holds")
    add("--vocab", type=checked(int, 1, 10**7), default=VOCAB, help="tokens of the vocabulary")
    add("--bits", type=checked(float, 1, 32), default=4.5, help="of a weight; 4.5 is Q4_0")
    add("--accept", type=listed(checked(float, 0, 1)), default="0.7,0.8,0.9", metavar="P,...", help="of drafted tokens")
    add("--drafts", type=checked(int, 0, 64), default=0, metavar="K", help="tokens drafted a step, 0: the best number")
    add(
        "--measured", type=listed(checked(float, 1e-6, 1e6)), metavar="HOST,TUNED,UNTUNED",
        help="milliseconds of a pass over one position of each sequence, in place of the computed ones",
    )
    args = parser.parse_args()
    if args.measured and (len(args.measured) != 3 or len(args.trio) != 1 or len(args.sequences) != 1):
        parser.error("--measured takes three times, and goes with one --trio and one number of --sequences")
    return args


if __name__ == "__main__":
    print_table(arguments())
