#!/usr/bin/env python3
"""vllm-checkpoint.py MODEL.gguf FOLDER: writes a GGUF file of the tiny trio as a checkpoint folder of Hugging Face's form.

That is what vLLM and transformers load: config.json, model.safetensors in float32, tokenizer.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/oracle"))

from gguf import GGUFReader, TokenType
from oracle import load_model, load_tokenizer
from transformers import PreTrainedTokenizerFast

def control_tokens(model: Path) -> list[str]:
    fields = GGUFReader(model).fields
    tokens, kinds = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    return [token for token, kind in zip(tokens, kinds) if kind == TokenType.CONTROL]


def save_weights(model: Path, folder: Path) -> None:
    loaded = load_model(model)
    # Some versions of transformers take all that comes from GGUF for quantised, and refuse to save it.
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)


def main(model: Path, folder: Path) -> None:
    save_weights(model, folder)
    controls = control_tokens(model)
    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens(controls)
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token"), controls[0])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **end).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
