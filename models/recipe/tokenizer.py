"""One byte-level BPE vocabulary for all models, and the token streams they train on."""

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

import data
from sources import CACHE

VOCAB = 4096
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
PATH = CACHE / "tokenizer.json"
TOKENS = CACHE / "tokens"

# Qwen2's splitting rule, which llama.cpp knows as the pre-tokenizer "qwen2".
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CODE_SHARE = 0.12  # of the pre-training tokens


def byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save(tokenizer: Tokenizer) -> None:
    PATH.parent.mkdir(parents=True, exist_ok=True)
    temporary = PATH.with_suffix(".tmp")
    tokenizer.save(str(temporary))
    temporary.rename(PATH)


def train() -> None:
    """Learns the vocabulary from 4 MB of prose and 4 MB of code (once)."""
    if PATH.exists():
        return
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    sample = [text for kind in ("prose", "code") for text in head(data.load(f"{kind}.train"), 4_000_000)]
    tokenizer.train_from_iterator(sample, trainer)
    save(tokenizer)


def restore(path) -> None:
    """Takes the vocabulary from a GGUF file that the recipe made (once)."""
    import gguf

    if PATH.exists():
        return
    fields = gguf.GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges"))
    vocab = {token: id for id, token in enumerate(tokens)}
    tokenizer = byte_level(models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    save(tokenizer)


def head(texts: list[str], size: int):
    """The first texts, `size` characters together."""
    for text in texts:
        if size <= 0:
            return
        yield text
        size -= len(text)


def load() -> Tokenizer:
    return Tokenizer.from_file(str(PATH))


def encode() -> None:
    """Writes CACHE/tokens/{pretrain,code}.npy, uint16, each document ended by <|endoftext|> (once).

    "pretrain" is all prose with code spread evenly through it, "code" all the code.
    """
    if all((TOKENS / f"{name}.npy").exists() for name in ("pretrain", "code")):
        return
    TOKENS.mkdir(parents=True, exist_ok=True)
    tokenizer = load()
    prose, code = (
        [np.array(tokenizer.encode(text, add_special_tokens=False).ids + [0], np.uint16)
         for text in tqdm(data.load(f"{kind}.train"), desc=f"tokenise {kind}", unit="file")]
        for kind in ("prose", "code")
    )
    mixed, n_prose, n_code, spare = [], 0, 0, iter(code)
    for document in prose:
        mixed.append(document)
        n_prose += len(document)
        while n_code < CODE_SHARE / (1 - CODE_SHARE) * n_prose:
            document = next(spare)
            mixed.append(document)
            n_code += len(document)
    print(f"pretrain: {n_prose / 1e6:.2f} M tokens of prose, {n_code / 1e6:.2f} M of code")
    print(f"code: {sum(map(len, code)) / 1e6:.2f} M tokens")
    for name, documents in (("pretrain", mixed), ("code", code)):
        temporary = TOKENS / f"{name}.tmp.npy"
        np.save(temporary, np.concatenate(documents))
        temporary.rename(TOKENS / f"{name}.npy")
