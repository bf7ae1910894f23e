"""Variants of the test trio's host as a checkpoint folder."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

RANK = 8
MODULES = ("q_proj", "v_proj")


def padded(model, folder, vocab):
    """The model with rows of logits longer than its vocabulary."""
    host = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    host.resize_token_embeddings(vocab, mean_resizing=False)
    host.save_pretrained(folder)
    for file in Path(model).glob("*token*"):
        shutil.copy(file, folder)
    return folder


def lora(model, folder):
    """Writes a random LoRA adapter for the model, and returns the model with the adapter in its weights."""
    host = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    generator, adapter = torch.Generator().manual_seed(1), {}
    with torch.no_grad():
        for name, layer in host.named_modules():
            if name.endswith(MODULES):
                out, width = layer.weight.shape
                a, b = (torch.randn(*shape, generator=generator) * 0.1 for shape in ((RANK, width), (out, RANK)))
                adapter |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
                layer.weight += b @ a
    folder.mkdir()
    save_file(adapter, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": MODULES, "base_model_name_or_path": str(model)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return host


@torch.inference_mode()
def greedy(host, pair, prompt, tokens):
    """Proxy-tuned text, computed from scratch for each token."""
    history = list(prompt)
    for _ in range(tokens):
        logits = host(torch.tensor([history])).logits[0, -1].contiguous()
        pair.shift_(logits, [history])
        history.append(int(logits.argmax()))
    return history[len(prompt) :]
