"""A Llama-architecture language model for training, with Hugging Face's parameter names.

Its state dict loads into `transformers.LlamaForCausalLM` unchanged. Shapes: B sequences,
T tokens, D width, H heads of size K = D / H, V vocabulary entries.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Arch:
    """Sizes of a model."""

    layers: int
    width: int
    hidden: int  # of the SwiGLU
    head_dim: int
    vocab: int = 4096
    context: int = 1024
    rope_theta: float = 10_000.0
    eps: float = 1e-5

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    def hf_config(self):
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocab, hidden_size=self.width, intermediate_size=self.hidden,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, head_dim=self.head_dim,
            max_position_embeddings=self.context, rms_norm_eps=self.eps, rope_theta=self.rope_theta,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        )


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


def linear(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias=False)


class Attention(nn.Module):
    def __init__(self, arch: Arch):
        super().__init__()
        self.head_dim = arch.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(arch.width, arch.width) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (p(x).view(B, T, -1, self.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, D))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, all [B, H, T, K]."""
    T = q.shape[2]
    if T > 256:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # Spelled out: on a CPU, compiled, short windows are faster this way.
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    scores = (q @ k.mT).float() * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(future, float("-inf")), -1).to(v.dtype) @ v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in Hugging Face's layout: x [B, H, T, K], the halves of K make the pairs."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class MLP(nn.Module):
    def __init__(self, arch: Arch):
        super().__init__()
        self.gate_proj, self.up_proj = linear(arch.width, arch.hidden), linear(arch.width, arch.hidden)
        self.down_proj = linear(arch.hidden, arch.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, arch: Arch):
        super().__init__()
        self.self_attn, self.mlp = Attention(arch), MLP(arch)
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(arch.width, arch.eps) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    def __init__(self, arch: Arch):
        super().__init__()
        self.embed_tokens = nn.Embedding(arch.vocab, arch.width)
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch.layers))
        self.norm = RMSNorm(arch.width, arch.eps)


class Llama(nn.Module):
    """Tied embeddings: the output matrix is the input embedding."""

    def __init__(self, arch: Arch):
        super().__init__()
        self.model = Trunk(arch)
        angle = torch.outer(
            torch.arange(arch.context).float(),
            arch.rope_theta ** (-torch.arange(0, arch.head_dim, 2).float() / arch.head_dim),
        )
        self.register_buffer("cos", angle.cos(), persistent=False)  # [context, K / 2]
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[1] ** -0.5)
                if "o_proj" in name or "down_proj" in name:
                    nn.init.zeros_(p)  # each layer starts as the identity

    def logits(self, tokens: Tensor, wanted: Tensor | None = None) -> Tensor:
        """[B, T] token ids → [B, T, V] logits of the next token, or [n, V] for the n places where `wanted` [B, T] is true."""
        x = self.model.embed_tokens(tokens)
        cos, sin = (c[: tokens.shape[1]].to(x.dtype) for c in (self.cos, self.sin))
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        if wanted is not None:
            x = x[wanted]  # the output matrix is the dearest of a small model
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def forward(self, window: Tensor) -> Tensor:
        """[B, T + 1] token ids → mean cross entropy in nats of the last T."""
        logits = self.logits(window[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())
