"""Proxy-tuning in llama-cpp-python::

    from llama_cpp import Llama, LogitsProcessorList
    from proxytune.llama_cpp import ProxyTuning

    llama = Llama("host.gguf")
    processor = ProxyTuning("proxytune.toml", vocabulary="host.gguf")
    llama("def main():", logits_processor=LogitsProcessorList([processor]))
"""

import numpy as np

from ._native import ProxyPair
from ._once import Once

__all__ = ["ProxyTuning"]


class ProxyTuning:
    """Shifts scores by ``alpha * (tuned - untuned)``: a callable of ``(input_ids, scores)`` that returns scores.

    ``config`` is a ``ProxyPair``, or what makes one: the path of a configuration or a mapping, with ``vocabulary`` the
    host's GGUF file. ``alpha`` is the configured one where not given. One processor serves any number of calls, one
    after the other.
    """

    def __init__(self, config, *, alpha=None, **options):
        self.pair = config if isinstance(config, ProxyPair) else ProxyPair(config, **options)
        self.alpha = self.pair.alpha if alpha is None else float(alpha)
        self._warn = Once()

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        shifted = np.array(scores, np.float32)
        self._warn.unshifted(self.pair.shift_(shifted, [input_ids], self.alpha))
        return shifted
