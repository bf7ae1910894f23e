"""Proxy-tuning in transformers' ``generate``::

    from transformers import AutoModelForCausalLM
    from proxytune.transformers import ProxyTuning

    model = AutoModelForCausalLM.from_pretrained("my-model")
    model.generate(**inputs, logits_processor=[ProxyTuning("proxytune.toml", vocabulary="my-model")])
"""

import torch
import transformers

from ._native import ProxyPair
from ._once import Once

__all__ = ["ProxyTuning"]


class ProxyTuning(transformers.LogitsProcessor):
    """Shifts scores by ``alpha * (tuned - untuned)``, in batches and beams, on any device.

    ``config`` is a ``ProxyPair``, or what makes one: the path of a configuration or a mapping, with ``vocabulary`` the
    model's folder. ``alpha`` is the configured one where not given. A batch of prompts of different lengths is padded
    on the left; hand over its ``attention_mask``, or the padding counts as text.

    Scores come back as log-probabilities (softmax does not see the difference), so that beams can be compared: with
    beams ``generate`` hands over log-probabilities, whose sum after a shift would no longer be 1.
    """

    def __init__(self, config, *, alpha=None, attention_mask=None, **options):
        self.pair = config if isinstance(config, ProxyPair) else ProxyPair(config, **options)
        self.alpha = self.pair.alpha if alpha is None else float(alpha)
        self.padding = None if attention_mask is None else _padding(attention_mask)
        self._warn = Once()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.alpha == 0:
            return scores
        width = self.pair.vocab_size
        if scores.shape[-1] < width:
            raise ValueError(f"scores: got rows of {scores.shape[-1]}, expected at least {width}")
        # In the CPU's memory the shift works in place: on a copy, since `generate` may return the scores as well.
        shifted = scores.detach().to("cpu", copy=True).contiguous()
        self._warn.unshifted(self.pair.shift_(shifted, self._histories(input_ids), self.alpha))
        return torch.log_softmax(shifted.to(scores.device), dim=-1)

    def _histories(self, input_ids):
        ids = input_ids.cpu().numpy()
        if self.padding is None:
            return ids
        beams, rest = divmod(len(ids), len(self.padding))
        if rest or not beams:
            raise ValueError(f"got {len(ids)} rows for an attention_mask of {len(self.padding)} prompts")
        return [row[self.padding[at // beams] :] for at, row in enumerate(ids)]


def _padding(attention_mask):
    """Padded positions at the left of each prompt."""
    mask = torch.as_tensor(attention_mask).bool().cpu()
    padding = (~mask).sum(-1)
    expected = torch.arange(mask.shape[-1]) >= padding[:, None]
    if not torch.equal(mask, expected):
        raise ValueError('attention_mask: expected padding on the left alone (tokenizer.padding_side = "left")')
    return padding.tolist()
