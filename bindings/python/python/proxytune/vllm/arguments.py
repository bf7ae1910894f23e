"""What a request says in ``vllm_xargs``."""

import difflib

KNOWN = ("proxy_tuning_alpha", "proxy_tuning_enabled")
# The largest float32.
MOST = (2 - 2**-23) * 2.0**127


def request_alpha(extra_args, otherwise):
    """The weight that a request asks for. Raises ``ValueError``, which vLLM answers with status 400."""
    given = {name: value for name, value in (extra_args or {}).items() if str(name).startswith("proxy_tuning")}
    for name in given.keys() - set(KNOWN):
        near = difflib.get_close_matches(name, KNOWN, 1, 0)[0]
        raise ValueError(f"vllm_xargs: unknown key {name!r}; did you mean {near!r}?")
    alpha = given.get("proxy_tuning_alpha", otherwise)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= MOST:
        raise ValueError(f"vllm_xargs: proxy_tuning_alpha: got {shown(alpha)}, expected a finite number")
    enabled = given.get("proxy_tuning_enabled", True)
    if enabled not in (True, False):
        raise ValueError(f"vllm_xargs: proxy_tuning_enabled: got {shown(enabled)}, expected true or false")
    return float(alpha) if enabled else 0.0


def shown(value):
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
