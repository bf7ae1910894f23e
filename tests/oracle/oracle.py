"""Proxy-tuning written plainly on Hugging Face transformers, as the reference for the tests.

    python tests/oracle/oracle.py            write tests/golden/ anew from tests/fixtures/
    python tests/oracle/oracle.py --check    recompute and compare with tests/golden/
    python tests/oracle/oracle.py --speed models    tokens per second of a folder's trio

For host h, tuned proxy t and untuned proxy u the next token is the largest of
h + alpha * (t - u), logits in float32. V below is the vocabulary's size.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "golden"
ROLES = ("host", "tuned", "untuned")
STEPS = 96
POSITIONS = [0, 1, 17, 95]  # generated tokens whose logits are kept
NEAR_TIE = 2e-3  # a smaller gap between the two best tokens could fall either way elsewhere
TOLERANCE = 1e-3  # on logits

# name, prompt's length in tokens, kind of its text, alpha, text before the tuned proxy's prompt
CASES = [
    ("one-token", 1, "prose", 1.0, None),
    ("two-tokens", 2, "code", 1.0, None),
    ("five-tokens", 5, "prose", 0.5, None),
    ("code-17", 17, "code", 1.0, None),
    ("prose-17-double", 17, "prose", 2.0, None),
    ("prose-64", 64, "prose", 1.0, None),
    ("code-64-off", 64, "code", 0.0, None),
    ("code-64-away", 64, "code", -0.5, None),
    ("prose-200", 200, "prose", 1.0, None),
    ("code-400", 400, "code", 0.5, None),
    ("own-prompt-17", 17, "prose", 1.0, "# A Python module.\n\n"),
    ("own-prompt-64", 64, "prose", 0.5, "import os\nimport sys\n\n\ndef main():\n    "),
]


def load_model(path: Path) -> LlamaForCausalLM:
    """A GGUF file's weights, dequantised, in float32."""
    return LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def load_tokenizer(path: Path) -> Tokenizer:
    """The byte-level BPE in a GGUF file, with the splitting rule that GGUF calls "qwen2"."""
    reader = gguf.GGUFReader(path)
    tokens, merges, pre = (reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "pre"))
    assert pre == "qwen2"
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class Stream:
    """One model reading one sequence, with its key-value cache."""

    def __init__(self, model: LlamaForCausalLM, prompt: list[int]):
        self.model, self.cache, self.next = model, None, prompt

    @torch.inference_mode()
    def logits(self) -> torch.Tensor:
        """[V] logits of the next token, after all tokens given so far."""
        output = self.model(torch.tensor([self.next]), past_key_values=self.cache, use_cache=True)
        self.cache = output.past_key_values
        return output.logits[0, -1]

    def feed(self, token: int) -> None:
        self.next = [token]


def proxy_tuned(trio: dict, prompt: list[int], tuned_prompt: list[int], alpha: float, steps: int):
    """Yields (host logits [V], alpha * (t - u) [V], greedy token, gap to the second) at each step."""
    host, untuned = Stream(trio["host"], prompt), Stream(trio["untuned"], prompt)
    tuned = Stream(trio["tuned"], tuned_prompt)
    for _ in range(steps):
        h = host.logits()
        offset = alpha * (tuned.logits() - untuned.logits())
        best = (h + offset).topk(2)
        token = int(best.indices[0])
        yield h, offset, token, float(best.values[0] - best.values[1])
        for stream in (host, tuned, untuned):
            stream.feed(token)


def host_alone(model: LlamaForCausalLM, prompt: list[int], steps: int):
    """Yields (greedy token, gap to the second) at each step."""
    stream = Stream(model, prompt)
    for _ in range(steps):
        best = stream.logits().topk(2)
        yield int(best.indices[0]), float(best.values[0] - best.values[1])
        stream.feed(int(best.indices[0]))


def run_case(trio: dict, case: dict) -> tuple[dict, dict, float]:
    """The case with its tokens, its logits by tensor name, and the smallest gap met."""
    shifted = list(proxy_tuned(trio, case["prompt_tokens"], case["tuned_prompt_tokens"], case["alpha"], STEPS))
    host = list(host_alone(trio["host"], case["prompt_tokens"], STEPS))
    case = case | {
        "tokens": [step[2] for step in shifted], "host_tokens": [token for token, _ in host], "positions": POSITIONS,
    }
    tensors = {
        f"{case['name']}.host": torch.stack([shifted[p][0] for p in POSITIONS]),
        f"{case['name']}.offset": torch.stack([shifted[p][1] for p in POSITIONS]),
    }
    return case, tensors, min([step[3] for step in shifted] + [gap for _, gap in host])


def prompts(tokenizer: Tokenizer, kind: str, length: int, skip: int):
    """Yields pieces of held-out text, each `length` tokens long however it is cut off again."""
    paragraphs = (TESTS.parent / "models" / f"heldout-{kind}.txt").read_text()
    starts = [i + 2 for i in range(len(paragraphs)) if paragraphs.startswith("\n\n", i)]
    for start in starts[skip:]:
        text = paragraphs[start : start + 6 * length + 50].lstrip("\n")
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:length]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        if text.isascii() and text.strip() and tokenizer.encode(text, add_special_tokens=False).ids == ids:
            if len(ids) == length:
                yield text


def write(trio: dict, tokenizer: Tokenizer, digests: dict) -> None:
    cases, tensors = [], {}
    for number, (name, length, kind, alpha, before) in enumerate(CASES):
        for prompt in prompts(tokenizer, kind, length, skip=40 * number):
            encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
            case = {
                "name": name, "prompt": prompt, "alpha": alpha, "prompt_tokens": encode(prompt),
                "tuned_prompt_tokens": encode((before or "") + prompt),
            }
            case, logits, gap = run_case(trio, case)
            if gap >= NEAR_TIE:
                break
        print(f"{name}: smallest gap {gap:.4f}\n{tokenizer.decode(case['tokens'])!r}")
        cases.append(case)
        tensors |= logits
    GOLDEN.mkdir(exist_ok=True)
    save_file(tensors, GOLDEN / "golden.safetensors")
    lines = ",\n".join(json.dumps(case) for case in cases)
    (GOLDEN / "golden.json").write_text(f'{{"models": {json.dumps(digests)},\n"cases": [\n{lines}\n]}}\n')


def check(trio: dict, tokenizer: Tokenizer, digests: dict) -> bool:
    golden = json.loads((GOLDEN / "golden.json").read_text())
    tensors = load_file(GOLDEN / "golden.safetensors")
    good = golden["models"] == digests
    print("models:", "same" if good else "DIFFERENT FILES")
    for expected in golden["cases"]:
        same_prompt = tokenizer.encode(expected["prompt"], add_special_tokens=False).ids == expected["prompt_tokens"]
        case, logits, _ = run_case(trio, expected)
        error = max(float((logits[key] - tensors[key]).abs().max()) for key in logits)
        passed = same_prompt and case == expected and error < TOLERANCE
        print(f"{case['name']}: {'ok' if passed else 'FAILED'}, largest difference of a logit {error:.1e}")
        good &= passed
    return good


def speed(folder: Path, steps: int = 128) -> None:
    paths = {role: next(folder.glob(f"*{role}*.gguf")) for role in ("host", "untuned")}
    paths["tuned"] = next(p for p in folder.glob("*tuned*.gguf") if "untuned" not in p.name)
    trio = {role: load_model(path) for role, path in paths.items()}
    prompt = load_tokenizer(paths["host"]).encode("The module reads a file and returns its lines.\n").ids
    for name, run in {
        "host alone": lambda: list(host_alone(trio["host"], prompt, steps)),
        "proxy-tuned": lambda: list(proxy_tuned(trio, prompt, prompt, 1.0, steps)),
    }.items():
        run()  # warm up
        seconds = min(timed(run) for _ in range(3))
        print(f"{name}: {steps / seconds:.1f} tokens/s ({torch.get_num_threads()} threads, best of 3)")


def timed(run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--speed", type=Path, metavar="FOLDER", help="time the algorithm on a folder's trio")
    options = parser.parse_args()
    if options.speed:
        return speed(options.speed)
    paths = {role: TESTS / "fixtures" / f"{role}-f32.gguf" for role in ROLES}
    digests = {
        role: {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for role, path in paths.items()
    }
    trio = {role: load_model(path) for role, path in paths.items()}
    tokenizer = load_tokenizer(paths["host"])
    if options.check:
        sys.exit(0 if check(trio, tokenizer, digests) else 1)
    write(trio, tokenizer, digests)


if __name__ == "__main__":
    main()
