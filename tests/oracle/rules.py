"""Other ways to combine than proxy-tuning, plainly computed from transformers' logits, as the reference for the tests.

    python tests/oracle/rules.py            write tests/golden/rules.json anew
    python tests/oracle/rules.py --check    recompute and compare

Contrastive decoding (Li et al. 2022): ln p_host - alpha * ln p_amateur where p_host >= mask * max p_host, else -inf.
Mixtures (Ormazabal et al. 2023): ln((1 - w) * p_host + w * p_tuned), with w constant or from a network of both
entropies and both largest log-probabilities, times alpha.
"""

import json
import math
import sys

import torch
from evaluation import TEXT
from oracle import GOLDEN, NEAR_TIE, ROLES, TESTS, Stream, load_model, load_tokenizer

STEPS = 48
TOP = 8
POSITIONS = (0, 1, 7)
WINDOW = 64
CASES = ("five-tokens", "code-17", "prose-64", "own-prompt-17")
NETWORK = {
    "mean": [2.5, 2.75, -1.0, -1.25], "deviation": [1.5, 1.25, 0.75, 1.0],
    "hidden": [[0.5, -1.0, 0.25, 0.75, 0.125], [-0.75, 0.5, 1.0, -0.5, -0.25], [1.5, 0.25, -0.5, 0.0, 0.5]],
    "output": [1.25, -1.5, 0.75], "bias": 0.25,
}
# name, the rule as a configuration has it, alpha
RULES = [
    ("contrastive", {"rule": "contrastive"}, 1.0),
    ("contrastive-tuned", {"rule": "contrastive", "mask": 0.25, "amateur": "tuned"}, 0.5),
    ("contrastive-unmasked", {"rule": "contrastive", "mask": 0.0}, 0.25),
    ("mean", {"rule": "mean"}, 1.0),
    ("scalar", {"rule": "scalar", "weight": 0.25}, 1.0),
    ("network", {"rule": "network", "network": NETWORK}, 1.0),
    ("network-less", {"rule": "network", "network": NETWORK}, 0.5),
]


def features(log_p: torch.Tensor) -> list:
    """[..., V] log-probabilities: their entropy and their largest, each [...]."""
    return -(log_p.exp() * log_p).sum(-1), log_p.max(-1).values


def weight(rule: dict, host: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """The tuned proxy's weight, [..., 1]."""
    if rule["rule"] != "network":
        return torch.full(host.shape[:-1] + (1,), {"mean": 0.5}.get(rule["rule"], rule.get("weight")), dtype=host.dtype)
    network = {key: torch.tensor(value, dtype=host.dtype) for key, value in rule["network"].items()}
    (h_entropy, h_top), (t_entropy, t_top) = features(host), features(tuned)
    x = torch.stack([h_entropy, t_entropy, h_top, t_top], -1)
    x = ((x - network["mean"]) / network["deviation"]).clamp(-5, 5)
    hidden = (x @ network["hidden"][:, :4].T + network["hidden"][:, 4]).tanh()
    return (hidden @ network["output"] + network["bias"]).sigmoid()[..., None]


def combined(rule: dict, alpha: float, logits: dict, mask_by: float = 0.0) -> torch.Tensor:
    """[..., V] scores from {role: [..., V] logits}; the mask is moved by `mask_by`."""
    log_p = {role: x.double().log_softmax(-1) for role, x in logits.items()}
    host = log_p["host"]
    if rule["rule"] == "contrastive":
        score = host - alpha * log_p[rule.get("amateur", "untuned")]
        mask = rule.get("mask", 0.1)
        plausible = host.max(-1, keepdim=True).values + (math.log(mask) if mask else -math.inf) + mask_by
        return score.where(host >= plausible, -math.inf)
    w = (alpha * weight(rule, host, log_p["tuned"])).clamp(0, 1)
    return ((1 - w) * host.exp() + w * log_p["tuned"].exp()).log()


def greedy(trio: dict, case: dict, rule: dict, alpha: float) -> tuple[list, list]:
    """Tokens up to the first that could fall either way elsewhere, and {token: log-probability} at some of their positions."""
    prompts = {role: case["tuned_prompt_tokens" if role == "tuned" else "prompt_tokens"] for role in trio}
    streams = {role: Stream(model, prompts[role]) for role, model in trio.items()}
    tokens, tops = [], []
    for step in range(STEPS):
        logits = {role: stream.logits() for role, stream in streams.items()}
        best = [combined(rule, alpha, logits, by).topk(2) for by in (0.0, -NEAR_TIE, NEAR_TIE)]
        token = int(best[0].indices[0])
        if any(int(b.indices[0]) != token or float(b.values[0] - b.values[1]) < NEAR_TIE for b in best):
            break
        if step in POSITIONS:
            top = combined(rule, alpha, logits).log_softmax(-1).topk(TOP)
            kept = [(int(i), float(p)) for i, p in zip(top.indices, top.values) if p > -math.inf]
            tops.append({"position": step, "top": kept})
        tokens.append(token)
        for stream in streams.values():
            stream.feed(token)
    return tokens, tops


@torch.inference_mode()
def bits_per_byte(trio: dict, tokenizer, rule: dict, alpha: float) -> float:
    """Of windows of the text side by side, as in evaluation.py."""
    encoding = tokenizer.encode(TEXT, add_special_tokens=False)
    nats, scored = 0.0, 0
    for begin in range(0, len(encoding.ids) - 1, WINDOW):
        ids = encoding.ids[begin : begin + WINDOW]
        scored += sum(len(token) for token in encoding.tokens[begin + 1 : begin + len(ids)])
        logits = {role: model(torch.tensor([ids[:-1]])).logits[0] for role, model in trio.items()}
        log_p = combined(rule, alpha, logits).log_softmax(-1)
        nats -= float(log_p.gather(1, torch.tensor(ids[1:])[:, None]).sum())
    return nats / math.log(2) / scored


def main() -> None:
    trio = {role: load_model(TESTS / "fixtures" / f"{role}-f32.gguf") for role in ROLES}
    tokenizer = load_tokenizer(TESTS / "fixtures" / "host-f32.gguf")
    cases = {case["name"]: case for case in json.loads((GOLDEN / "golden.json").read_text())["cases"]}
    found = []
    for name, rule, alpha in RULES:
        texts = []
        for case in CASES:
            tokens, tops = greedy(trio, cases[case], rule, alpha)
            texts.append({"case": case, "tokens": tokens, "tops": tops})
        bits = bits_per_byte(trio, tokenizer, rule, alpha)
        bits = bits if math.isfinite(bits) else None
        print(f"{name}: {bits} bits per byte; tokens {[len(text['tokens']) for text in texts]}")
        found.append({"name": name, "combine": rule, "alpha": alpha, "bits_per_byte": bits, "texts": texts})
    path = GOLDEN / "rules.json"
    if "--check" in sys.argv:
        expected = json.loads(path.read_text())
        worst = max(abs((a["bits_per_byte"] or 0) - (b["bits_per_byte"] or 0)) for a, b in zip(found, expected, strict=True))
        same = all(a["tokens"] == b["tokens"] for f, e in zip(found, expected) for a, b in zip(f["texts"], e["texts"]))
        print(f"tokens {'same' if same else 'DIFFERENT'}, largest difference of a score {worst:.1e}")
        sys.exit(not same or worst > 1e-5)
    path.write_text("[\n" + ",\n".join(json.dumps(rule) for rule in found) + "\n]\n")


if __name__ == "__main__":
    main()
