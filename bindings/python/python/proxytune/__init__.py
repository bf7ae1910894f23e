"""Proxy-tuning: customise a large language model by the difference of two small ones.

At each step the large model's logits ``h`` become ``h + alpha * (t - u)``, with ``t`` and ``u`` the logits of a tuned and
of an untuned small model for the same text (Liu et al. 2024, arXiv 2401.08565). The small models run in here, by
llama.cpp from GGUF files, batched over all sequences; the large one stays in its engine:

``proxytune.vllm``
    ``PROXYTUNE_CONFIG=proxytune.toml vllm serve MODEL``
``proxytune.transformers``
    ``model.generate(..., logits_processor=[ProxyTuning("proxytune.toml")])``
``proxytune.llama_cpp``
    ``llama.create_completion(..., logits_processor=LogitsProcessorList([ProxyTuning("proxytune.toml")]))``
``ProxyPair``
    for a loop of one's own: ``pair.shift_(logits, histories)``
``LogitsProcessor``
    for a serving loop: requests come and go by number

All take the same configuration file. ``help(proxytune.ProxyPair)`` says more.
"""

from ._native import LogitsProcessor, ProxyPair

__all__ = ["LogitsProcessor", "ProxyPair"]
