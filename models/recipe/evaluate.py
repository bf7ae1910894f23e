"""Held-out bits per byte of the shipped files: host, proxies, shifted host, direct tuning.

A text is cut into windows of 512 tokens side by side; the first token of each is not scored;
the bits are divided by the bytes of the scored tokens.
"""

import math
from pathlib import Path

import torch

import export_gguf
import tokenizer

MODELS = Path(__file__).resolve().parents[1]
WINDOW = 512
ALPHAS = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5)


@torch.no_grad()
def bits_per_byte(text: str, nets: dict) -> dict:
    """{column: bits per byte}; a column is a model's name or an alpha."""
    encoding = tokenizer.load().encode(text, add_special_tokens=False)
    ids = torch.tensor(encoding.ids)
    # In the byte-level alphabet each character of a token stands for one byte.
    sizes = torch.tensor([len(token) for token in encoding.tokens])
    nats, scored_bytes = {}, 0
    for begin in range(0, len(ids) - 1, WINDOW):
        window = ids[begin : begin + WINDOW]
        targets = window[1:, None]
        scored_bytes += int(sizes[begin + 1 : begin + len(window)].sum())
        logits = {name: net.logits(window[None, :-1])[0] for name, net in nets.items()}
        offset = logits["tuned"] - logits["untuned"]
        columns = logits | {alpha: logits["host"] + alpha * offset for alpha in ALPHAS}
        for name, x in columns.items():
            loss = -x.log_softmax(-1).gather(1, targets).sum().item()
            nats[name] = nats.get(name, 0.0) + loss
    return {name: value / math.log(2) / scored_bytes for name, value in nats.items()}


def main() -> None:
    nets = {
        name: export_gguf.read_gguf(MODELS / f"tiny-{name}.gguf") for name in ("host", "untuned", "tuned", "direct")
    }
    scores = {kind: bits_per_byte((MODELS / f"heldout-{kind}.txt").read_text(), nets) for kind in ("code", "prose")}
    best = min(ALPHAS, key=scores["code"].get)
    print("| model | code | prose |\n|---|---|---|")
    for name in ("host", "untuned", "tuned", *ALPHAS, "direct"):
        label = name if isinstance(name, str) else f"shifted, alpha {name}" + (" (best)" if name == best else "")
        print(f"| {label} | {scores['code'][name]:.3f} | {scores['prose'][name]:.3f} |")
    code = scores["code"]
    closed = (code["host"] - code[best]) / (code["host"] - code["direct"] or math.inf)
    print(f"\nOn code the shift with alpha {best} closes {closed:.0%} of the gap between host and direct.")


if __name__ == "__main__":
    main()
