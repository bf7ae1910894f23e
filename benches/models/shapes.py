"""Shapes of models of the Llama architecture, by their size."""

from dataclasses import dataclass
from math import prod

VOCAB = 32_000


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    hidden: int  # of the feed-forward layers
    heads: int
    kv_heads: int
    tied: bool  # the output matrix is the token embedding
    head_dim: int = 64
    vocab: int = VOCAB

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape, in the order of the file."""
        kv = self.kv_heads * self.head_dim
        layer = {
            "attn_norm": (self.width,),
            "attn_q": (self.width, self.width),
            "attn_k": (kv, self.width),
            "attn_v": (kv, self.width),
            "attn_output": (self.width, self.width),
            "ffn_norm": (self.width,),
            "ffn_gate": (self.hidden, self.width),
            "ffn_up": (self.hidden, self.width),
            "ffn_down": (self.width, self.hidden),
        }
        tensors = {"token_embd.weight": (self.vocab, self.width)}
        for index in range(self.layers):
            tensors |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
        tensors["output_norm.weight"] = (self.width,)
        if not self.tied:
            tensors["output.weight"] = (self.vocab, self.width)
        return tensors

    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.tensors().values())


SHAPES = {
    "2m": Shape(2, 64, 192, 1, 1, tied=True),
    "20m": Shape(5, 256, 704, 4, 1, tied=False),
    "92m": Shape(14, 640, 2144, 10, 2, tied=True),
    "1.1b": Shape(22, 2048, 5632, 32, 4, tied=False),  # TinyLlama
    "1b": Shape(16, 2048, 8192, 32, 8, tied=True),  # Llama 3.2
    "7b": Shape(32, 4096, 11008, 32, 32, tied=False, head_dim=128),  # Llama 2
    "8b": Shape(32, 4096, 14336, 32, 8, tied=False, head_dim=128),  # Llama 3
    "13b": Shape(40, 5120, 13824, 40, 40, tied=False, head_dim=128),  # Llama 2
    "70b": Shape(80, 8192, 28672, 64, 8, tied=False, head_dim=128),  # Llama 2
}
