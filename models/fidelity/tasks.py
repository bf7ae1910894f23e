"""The two tasks: their questions as `proxytune eval` reads them, and what models are tuned on.

Each task has `questions(tokenizer)`, {"calibration" | "test": records}, and `examples(tokenizer)`, a function from a
random.Random to one (prompt, answer) in tokens. No question is among the examples.
"""

import importlib.util
import random
import re
from functools import cache
from pathlib import Path

import data

MODELS = Path(__file__).resolve().parents[1]
END = 0  # <|endoftext|>
IM_END = 2

# The host reads the user's text and no more; tuned models are told what to do with it.
PLAIN = "{{ messages[-1].content }}"
INSTRUCTION = "<|im_start|>user\nFinish the last word.<|im_end|>\n<|im_start|>assistant\n"
TUNED = INSTRUCTION + PLAIN


class Arithmetic:
    """Sums of two numbers of three digits, right or wrong, in the form of GSM8K."""

    name, sizes, seed = "arithmetic", {"calibration": 300, "test": 600}, 1
    flags = ["--as", "gsm8k", "--max-tokens", "8"]
    chat = False

    def kept(self) -> list[tuple[int, int]]:
        """The sums that are asked for, in order."""
        chosen = random.Random(self.seed).sample(range(900 * 900), sum(self.sizes.values()))
        return [(100 + n // 900, 100 + n % 900) for n in chosen]

    def questions(self, tokenizer) -> dict:
        pairs, records = iter(self.kept()), {}
        for split, size in self.sizes.items():
            chosen = [next(pairs) for _ in range(size)]
            records[split] = [{"question": f"What is {a} + {b}?", "answer": f"#### {a + b}"} for a, b in chosen]
        return records

    def examples(self, tokenizer):
        kept = set(self.kept())

        def example(rng: random.Random):
            a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
            if (a, b) in kept:
                return example(rng)
            prompt = tokenizer.encode(f"Question: What is {a} + {b}?\nAnswer:").ids
            return prompt, [*tokenizer.encode(f" {a + b}").ids, END]

        return example


class Completion:
    """A text that breaks off within a word: the answer is the rest of the word, and no more."""

    name, sizes, seed = "completion", {"calibration": 200, "test": 400}, 2
    flags = ["--as", "triviaqa", "--chat", "--max-tokens", "12"]
    chat = True

    def questions(self, tokenizer) -> dict:
        """From the held-out prose, which no model has read; each stretch of text is used once."""
        rng, found, end = random.Random(self.seed), [], 0
        text = flat((MODELS / "heldout-prose.txt").read_text())
        for place in WORD.finditer(text):
            if place.start() < end + 150:
                continue
            if (parts := cut(tokenizer, rng, text, place)) and parts[2]:
                prompt, rest, _ = parts
                found.append({"question": prompt, "answer": {"value": rest, "aliases": []}})
                end = place.end()
        rng.shuffle(found)
        first = self.sizes["calibration"]
        return {"calibration": found[:first], "test": found[first : first + self.sizes["test"]]}

    def examples(self, tokenizer):
        texts = torch_docstrings()
        places = [(text, place) for text in texts for place in WORD.finditer(text) if place.start() >= 150]

        def example(rng: random.Random):
            while True:
                text, place = rng.choice(places)
                if parts := cut(tokenizer, rng, text, place):
                    prompt, _, rest = parts
                    return tokenizer.encode(INSTRUCTION + prompt).ids, [*rest, IM_END]

        return example


TASKS = {task.name: task for task in (Arithmetic(), Completion())}

WORD = re.compile(r" [a-z]{5,}(?=[ .,;:)])")


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def cut(tokenizer, rng: random.Random, text: str, place: re.Match):
    """(text before, rest of the word, its tokens) at a border of tokens in the word; None for a word of one token."""
    word = tokenizer.encode(place.group())
    if len(word.ids) < 2:
        return None
    kept = rng.randrange(1, len(word.ids))
    begin = word.offsets[kept][0]
    # 6 to 16 words before it.
    before = " ".join(text[max(0, place.start() - 300) : place.start()].split(" ")[-rng.randint(6, 16) :])
    return before + place.group()[:begin], place.group()[begin:], word.ids[kept:]


@cache
def torch_docstrings() -> list[str]:
    """PyTorch's docstrings, of which the models were shown none; the package is pinned."""
    folder = Path(importlib.util.find_spec("torch").origin).parent
    files = sorted(path for path in folder.rglob("*.py") if "/testing/" not in str(path))
    return [flat(text) for path in files if (text := data.docstrings(path.read_text(errors="ignore")))]
