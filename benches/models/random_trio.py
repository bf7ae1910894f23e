"""Writes three GGUF models with random weights, to measure latency at real sizes without a download.

    pip install -r benches/models/requirements.txt
    python benches/models/random_trio.py OUT_DIR

A host of 1.1 B parameters, shaped as TinyLlama, and two proxies of 92 M that differ in their weights only:
host.gguf, tuned.gguf and untuned.gguf, Llama architecture, Q4_0, one vocabulary. --host and --proxy name larger
shapes, such as those of Llama 2 with 70 B and 7 B parameters. A forward pass takes as long
as with trained weights, but the text means nothing, and the models never agree: whatever depends on agreement,
such as the acceptance of drafted tokens, can't be measured with them. --tokenizer-of HOST.gguf writes the two proxies
alone, with the vocabulary of a host that is there already; --lora RANK writes tuned-lora.gguf besides, an adapter over
untuned.gguf for all its matrices of attention and feed-forward.
"""

import argparse
import os
from dataclasses import replace
from itertools import islice, product
from math import prod, sqrt
from pathlib import Path
from string import ascii_lowercase

import gguf
import numpy as np
from shapes import SHAPES, VOCAB, Shape
from tqdm import tqdm

CONTEXT = 2048
END = "<|endoftext|>"  # id 0
DISTINCT_ROWS = 4096
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # of Q4_0: 32 weights, each (nibble - 8) * scale


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level BPE vocabulary, as in GPT-2."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def words():
    """Made-up words, shorter ones first: each is an earlier word or a single byte, and one more letter."""
    space = byte_characters()[ord(" ")]
    for length in range(1, 4):
        for start in ("", space):
            if length > 1 or start:  # single letters are byte tokens
                yield from (start + "".join(letters) for letters in product(ascii_lowercase, repeat=length))


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """A byte-level BPE vocabulary that can spell any text."""
    tokens = [END, *byte_characters()]
    made_up = list(islice(words(), VOCAB - len(tokens)))
    tokens += made_up
    assert len(tokens) == len(set(tokens)) == VOCAB
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (VOCAB - 1))
    writer.add_token_merges([f"{word[:-1]} {word[-1]}" for word in made_up])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)


def copy_tokenizer(writer: gguf.GGUFWriter, model: gguf.GGUFReader) -> None:
    """The tokenizer of another model's file, as it stands there."""
    for key, field in model.fields.items():
        if key.startswith("tokenizer.ggml."):
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)


def add_metadata(writer: gguf.GGUFWriter, name: str, shape: Shape) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"random {name}")
    writer.add_description("Random weights, to measure latency; its text means nothing.")
    writer.add_size_label(f"{shape.parameters() / 1e6:.0f}M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)


def nibble_pairs() -> tuple[np.ndarray, float]:
    """What a random byte becomes in a block, and the standard deviation of its two nibbles.

    -8 has no counterpart among the nibbles; 0 takes its place, else the mean of the weights were not 0.
    """
    nibbles = np.arange(16, dtype=np.uint8)
    nibbles[0] = 8
    pairs = nibbles[:, None] << 4 | nibbles[None, :]
    return pairs.reshape(256), np.std(nibbles.astype(float))


def random_q4(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Rows of Q4_0 blocks; the standard deviation 1 / sqrt(inputs) keeps activations near 1."""
    rows, inputs = shape
    pairs, deviation = nibble_pairs()
    # Large matrices repeat their first rows: what a pass costs does not depend on the weights.
    distinct = np.empty((min(rows, DISTINCT_ROWS), inputs // 32), BLOCK)
    distinct["scale"] = 1 / sqrt(inputs) / deviation
    noise = np.frombuffer(rng.bytes(distinct["nibbles"].size), np.uint8)
    distinct["nibbles"] = pairs[noise].reshape(distinct["nibbles"].shape)
    return np.resize(distinct, (rows, inputs // 32)).view(np.uint8)


def random_tensor(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return np.ones(shape, np.float32) if len(shape) == 1 else random_q4(shape, rng)


def stored_bytes(shape: tuple[int, ...]) -> int:
    return 4 * shape[0] if len(shape) == 1 else prod(shape) // 32 * BLOCK.itemsize


def write_head(path: Path, name: str, shape: Shape, like: gguf.GGUFReader | None) -> tuple[gguf.GGUFWriter, int]:
    """Starts a file with all but the weights, and says how long the whole will be."""
    writer = gguf.GGUFWriter(path, "llama")
    add_metadata(writer, name, shape)
    copy_tokenizer(writer, like) if like else add_tokenizer(writer)
    kinds = gguf.GGMLQuantizationType
    for tensor, dims in shape.tensors().items():
        kind = kinds.F32 if len(dims) == 1 else kinds.Q4_0
        writer.add_tensor_info(tensor, dims, np.dtype(np.float32), stored_bytes(dims), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    parts = [path.stat().st_size, *map(stored_bytes, shape.tensors().values())]
    return writer, sum(writer.ggml_pad(size, writer.data_alignment) for size in parts)


def write_model(path: Path, shape: Shape, seed: int, like: gguf.GGUFReader | None) -> None:
    """Writes one model; the file appears under its name only when it is whole."""
    temporary = path.with_suffix(".tmp")
    writer, size = write_head(temporary, path.stem, shape, like)
    summary = f"{path}: {shape.parameters() / 1e6:.1f} M parameters, {size / 1e6:.1f} MB"
    if path.exists() and path.stat().st_size == size:
        writer.close()
        temporary.unlink()
        print(f"{summary}, already there")
        return
    rng = np.random.default_rng(seed)
    # One tensor in memory at a time.
    for dims in tqdm(shape.tensors().values(), desc=path.name, unit="tensor", leave=False):
        writer.write_tensor_data(random_tensor(dims, rng))
    writer.close()
    assert temporary.stat().st_size == size
    os.replace(temporary, path)
    print(summary)


def write_lora(path: Path, shape: Shape, rank: int, seed: int) -> None:
    """Writes a LoRA adapter in float32: for each matrix of a layer two factors, inputs to `rank` and `rank` to outputs."""
    temporary = path.with_suffix(".tmp")
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, rank)
    rng = np.random.default_rng(seed)
    for tensor, dims in shape.tensors().items():
        if len(dims) == 2 and tensor.startswith("blk."):
            outputs, inputs = dims
            for factor, end in (((rank, inputs), "lora_a"), ((outputs, rank), "lora_b")):
                values = rng.standard_normal(factor, np.float32) / np.float32(sqrt(factor[1]))
                writer.add_tensor(f"{tensor}.{end}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(temporary, path)
    print(f"{path}: rank {rank}, {path.stat().st_size / 1e6:.1f} MB")


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Writes host.gguf, tuned.gguf and untuned.gguf: models with random weights, to measure latency. "
        "Q4_0, 0.56 GB for each billion parameters. A file that already has the right size is kept.",
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder for the files; made where it lacks")
    parser.add_argument("--host", choices=SHAPES, default="1.1b", help="parameters of the host (default: %(default)s)")
    parser.add_argument("--proxy", choices=SHAPES, default="92m", help="and of the proxies (default: %(default)s)")
    parser.add_argument(
        "--scale", type=positive, default=1.0, metavar="X",
        help="times as many layers, in all three models, at least one each (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenizer-of", type=Path, metavar="GGUF", help="the host, whose tokenizer the proxies get; none is written",
    )
    parser.add_argument("--lora", type=int, metavar="RANK", help="writes tuned-lora.gguf as well, an adapter of this rank")
    args = parser.parse_args()
    if args.lora is not None and args.lora < 1:
        parser.error(f"--lora: got {args.lora}, expected a rank of at least 1")
    return args


def main() -> None:
    args = arguments()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    shapes = (SHAPES[args.host], SHAPES[args.proxy])
    host, proxy = (replace(shape, layers=max(1, round(shape.layers * args.scale))) for shape in shapes)
    like = gguf.GGUFReader(args.tokenizer_of) if args.tokenizer_of else None
    if like:
        proxy = replace(proxy, vocab=len(like.fields["tokenizer.ggml.tokens"].data))
    for seed, (name, shape) in enumerate((("host", host), ("tuned", proxy), ("untuned", proxy))):
        if name != "host" or not like:
            write_model(args.out_dir / f"{name}.gguf", shape, seed, like)
    if args.lora:
        write_lora(args.out_dir / "tuned-lora.gguf", proxy, args.lora, seed=3)


if __name__ == "__main__":
    main()
