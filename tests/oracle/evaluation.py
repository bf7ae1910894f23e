"""Scores of the float32 trio in tests/fixtures/, plainly computed, as the reference for `proxytune eval`.

    python tests/oracle/evaluation.py            write tests/golden/evaluation.json anew
    python tests/oracle/evaluation.py --check    recompute and compare

Text: bits per byte as in models/recipe/evaluate.py. Choices: the sum of log-probabilities of " choice" after
"Q: question\\nA:", for MC1 and MC2 as in TruthfulQA.
"""

import json
import math
import sys
from pathlib import Path

import torch
from oracle import GOLDEN, ROLES, TESTS, load_model, load_tokenizer

WINDOWS = (64, 512)
ALPHAS = (-0.5, 0.0, 0.25, 1.0, 2.0)
TEXT = (TESTS.parent / "models" / "heldout-code.txt").read_text()[:4000]
QUESTIONS = [json.loads(line) for line in (TESTS / "tasks" / "truthfulqa.jsonl").read_text().splitlines()]


@torch.inference_mode()
def columns(trio: dict, ids: list[int]) -> dict:
    """{column: [len(ids) - 1, V] log-probabilities}; a column is a model's name or `alpha=A`."""
    logits = {role: model(torch.tensor([ids[:-1]])).logits[0].double() for role, model in trio.items()}
    offset = logits["tuned"] - logits["untuned"]
    shifted = {f"alpha={alpha:g}": logits["host"] + alpha * offset for alpha in ALPHAS}
    return {name: x.log_softmax(-1) for name, x in (logits | shifted).items()}


def nats(trio: dict, ids: list[int], first: int) -> dict:
    """{column: negative log-likelihood of ids[first:]}"""
    targets = torch.tensor(ids[first:])[:, None]
    return {name: -x[first - 1 :].gather(1, targets).sum().item() for name, x in columns(trio, ids).items()}


def bits_per_byte(trio: dict, tokenizer, window: int) -> dict:
    encoding = tokenizer.encode(TEXT, add_special_tokens=False)
    sums, scored_bytes = {}, 0
    for begin in range(0, len(encoding.ids) - 1, window):
        ids = encoding.ids[begin : begin + window]
        scored_bytes += sum(len(token) for token in encoding.tokens[begin + 1 : begin + len(ids)])
        for name, value in nats(trio, ids, 1).items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: value / math.log(2) / scored_bytes for name, value in sums.items()}


def multiple_choice(trio: dict, tokenizer) -> dict:
    """{"mc1" or "mc2": {column: mean over the questions}}"""
    sums = {"mc1": {}, "mc2": {}}
    for record in QUESTIONS:
        prompt = f"Q: {record['question']}\nA:"
        start = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
        for task, sum_ in sums.items():
            targets = record[f"{task}_targets"]
            likelihoods = [
                nats(trio, tokenizer.encode(f"{prompt} {choice}", add_special_tokens=False).ids, start)
                for choice in targets["choices"]
            ]
            for name in likelihoods[0]:
                logp = torch.tensor([-value[name] for value in likelihoods]).double()
                true = torch.tensor(targets["labels"]).bool()
                score = float(logp[true].max() > logp[~true].max()) if task == "mc1" else float(logp.softmax(0)[true].sum())
                sum_[name] = sum_.get(name, 0.0) + score / len(QUESTIONS)
    return sums


def main() -> None:
    trio = {role: load_model(TESTS / "fixtures" / f"{role}-f32.gguf") for role in ROLES}
    tokenizer = load_tokenizer(TESTS / "fixtures" / "host-f32.gguf")
    found = {
        "bits_per_byte": {str(window): bits_per_byte(trio, tokenizer, window) for window in WINDOWS},
        **multiple_choice(trio, tokenizer),
    }
    path = GOLDEN / "evaluation.json"
    if "--check" in sys.argv:
        expected = json.loads(path.read_text())
        pairs = [(found[k], expected[k]) for k in ("mc1", "mc2")]
        pairs += [(found["bits_per_byte"][w], expected["bits_per_byte"][w]) for w in expected["bits_per_byte"]]
        worst = max(abs(a[name] - b[name]) for a, b in pairs for name in b)
        print(f"largest difference {worst:.1e}")
        sys.exit(worst > 1e-5)
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
