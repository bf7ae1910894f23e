"""Two engines of vLLM in one program, which has proxies of its own loaded when it starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm_server
from conftest import CASES, TUNED, UNTUNED

pytest.importorskip("vllm")
if not vllm_server.MODEL:
    pytest.skip("PROXYTUNE_VLLM_MODEL is not set: run `make test-vllm`", allow_module_level=True)

CASE = next(case for case in CASES if case["name"] == "prose-64")


@pytest.mark.parametrize("method", ["fork", "spawn", None])
def test_each_has_its_own_proxies(method):
    """In processes of their own, or in the program's."""
    program = Path(__file__).with_name("vllm_engines.py")
    arguments = [vllm_server.MODEL, TUNED, UNTUNED, json.dumps(CASE["prompt_tokens"]), "48"]
    env = os.environ | vllm_server.offline()
    env |= {"VLLM_WORKER_MULTIPROCESSING_METHOD": method} if method else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    run = subprocess.run([sys.executable, program, *arguments], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    # vLLM logs there as well.
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("[["))
    shifted, host = json.loads(line)
    assert shifted == CASE["tokens"][:48]
    assert host == CASE["host_tokens"][:48]
