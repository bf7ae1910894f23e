"""What a request says in ``vllm_xargs``."""

import difflib
import math

KNOWN = ("proxy_tuning_alpha", "proxy_tuning_enabled")


def request_alpha(extra_args, otherwise):
    """The weight that a request asks for. Raises ``ValueError``, which vLLM answers with status 400."""
    given = {k: v for k, v in (extra_args or {}).items() if k.startswith("proxy_tuning")}
    for name in given.keys() - set(KNOWN):
        near = difflib.get_close_matches(name, KNOWN, 1, 0)[0]
        raise ValueError(f"vllm_xargs: unknown key {name!r}; did you mean {near!r}?")
    alpha = given.get("proxy_tuning_alpha", otherwise)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"vllm_xargs: proxy_tuning_alpha: got {alpha!r}, expected a finite number")
    enabled = given.get("proxy_tuning_enabled", True)
    if enabled not in (True, False):
        raise ValueError(f"vllm_xargs: proxy_tuning_enabled: got {enabled!r}, expected true or false")
    return float(alpha) if enabled else 0.0
