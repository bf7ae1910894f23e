"""Writes the trained runs as GGUF files (and as Hugging Face folders in the cache).

models/tiny-*.gguf are Q8_0 (norms float32); tests/fixtures/*-f32.gguf are float32 throughout.
"""

import json
import os
from pathlib import Path

import gguf
import numpy as np
import torch

import tokenizer
from model import Arch
from runs import RUNS, load_checkpoint
from sources import CACHE

REPO = Path(__file__).resolve().parents[2]

# run → (file, is Q8_0, description)
FILES = {
    "host": ("models/tiny-host.gguf", True, "Host: pre-trained on technical prose with some Python code."),
    "untuned": ("models/tiny-untuned.gguf", True, "Untuned proxy: a small model pre-trained on the host's data."),
    "tuned": ("models/tiny-tuned.gguf", True, "Tuned proxy: the untuned proxy, fine-tuned on Python code."),
    "direct": ("models/tiny-direct.gguf", True, "The host itself, fine-tuned on Python code: the yardstick."),
    "fixture-host": ("tests/fixtures/host-f32.gguf", False, "Host of the test trio."),
    "fixture-untuned": ("tests/fixtures/untuned-f32.gguf", False, "Untuned proxy of the test trio."),
    "fixture-tuned": ("tests/fixtures/tuned-f32.gguf", False, "Tuned proxy of the test trio."),
}

LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight → blk.3.ffn_up.weight"""
    parts = name.split(".")
    if parts[1] == "layers":
        return f"blk.{parts[2]}.{LAYER_NAMES['.'.join(parts[3:-1])]}.weight"
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[1]]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of a query or key matrix: GGUF's Llama rotates neighbouring rows of a
    head together, Hugging Face's the two halves of the head."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path, arch: Arch, weights: dict, quantise: bool, description: str, chat_template: str | None = None
) -> None:
    """Writes one model; the file appears under its name only when it is whole."""
    temporary = path.with_suffix(".tmp")
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("proxytune " + path.stem)
    writer.add_description(description)
    writer.add_license("mit or apache-2.0")
    writer.add_languages(["en"])
    writer.add_size_label(f"{sum(w.numel() for w in weights.values()) / 1e6:.1f}M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantise else gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(arch.context)
    writer.add_embedding_length(arch.width)
    writer.add_block_count(arch.layers)
    writer.add_feed_forward_length(arch.hidden)
    writer.add_head_count(arch.heads)
    writer.add_head_count_kv(arch.heads)
    writer.add_key_length(arch.head_dim)
    writer.add_value_length(arch.head_dim)
    writer.add_rope_dimension_count(arch.head_dim)
    writer.add_rope_freq_base(arch.rope_theta)
    writer.add_layer_norm_rms_eps(arch.eps)
    writer.add_vocab_size(arch.vocab)
    add_tokenizer(writer)
    if chat_template:
        writer.add_chat_template(chat_template)
    for name, weight in weights.items():
        weight = weight.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleave(weight, arch.heads)
        if quantise and weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(temporary, path)
    print(f"{path.relative_to(REPO) if path.is_relative_to(REPO) else path}: {path.stat().st_size / 1e6:.2f} MB")


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    spec = json.loads(tokenizer.PATH.read_text())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["merges"]]
    kinds = [gguf.TokenType.CONTROL if t in tokenizer.SPECIAL else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)


def read_gguf(path: Path):
    """A `model.Llama` in float32 with the (dequantised) weights of a file."""
    return read_model(path)[1]


def read_model(path: Path):
    """The sizes of a file's model, and the model as `read_gguf` gives it."""
    from model import Llama

    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields["llama." + key].contents()
    arch = Arch(field("block_count"), field("embedding_length"), field("feed_forward_length"),
                field("attention.key_length"))
    net = Llama(arch)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    for name, parameter in net.named_parameters():
        weight = tensors[gguf_name(name)]
        if "q_proj" in name or "k_proj" in name:
            weight = weight.reshape(arch.heads, -1, 2, arch.width).swapaxes(1, 2).reshape(weight.shape)
        parameter.data = torch.from_numpy(np.array(weight, np.float32))
    return arch, net.eval()


def write_hf(folder: Path, arch: Arch, weights: dict) -> None:
    """A checkpoint folder for transformers and vLLM: float32 weights and the tokenizer."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    model = LlamaForCausalLM(arch.hf_config())
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected  # tied to the embedding
    model.save_pretrained(folder)
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token"), tokenizer.SPECIAL[0])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.load(), **end).save_pretrained(folder)


def main(names=FILES) -> None:
    for name in names:
        file, quantise, description = FILES[name]
        weights = load_checkpoint(name)["optimizer"]["master"]
        (REPO / file).parent.mkdir(parents=True, exist_ok=True)
        write_gguf(REPO / file, RUNS[name].arch, weights, quantise, description)
        write_hf(CACHE / "hf" / name, RUNS[name].arch, weights)
