"""What the tests share: the float32 trio, and what the oracle says it generates."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests/fixtures"
HOST, TUNED, UNTUNED = (FIXTURES / f"{name}-f32.gguf" for name in ("host", "tuned", "untuned"))
TOLERANCE = 2e-3  # on offsets


def cases():
    return json.loads((ROOT / "tests/golden/golden.json").read_text())["cases"]


# Those whose tuned proxy reads the host's prompt.
CASES = [case for case in cases() if case["tuned_prompt_tokens"] == case["prompt_tokens"]]
OWN_PROMPT = [case for case in cases() if case["tuned_prompt_tokens"] != case["prompt_tokens"]]


def golden(name):
    """A tensor of the oracle's, read without any library: a header in JSON, then numbers."""
    data = (ROOT / "tests/golden/golden.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[name]
    begin, end = (8 + length + at for at in entry["data_offsets"])
    return np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"])


def settings(**keys):
    return {"proxy_tuning": {"tuned": TUNED, "untuned": UNTUNED, "placement": "in-turn"} | keys}


@pytest.fixture(scope="session")
def pair():
    from proxytune import ProxyPair

    return ProxyPair(settings(), vocabulary=HOST)
