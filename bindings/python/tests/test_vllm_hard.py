"""`vllm serve` short of memory, with a padded vocabulary and LoRA adapters, where the processor is found by entry point."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import vllm_server
from conftest import CASES
from vllm_server import Client, Server, metric, write_config

pytest.importorskip("vllm")
if not vllm_server.MODEL:
    pytest.skip("PROXYTUNE_VLLM_MODEL is not set: run `make test-vllm`", allow_module_level=True)
import vllm_checkpoints  # noqa: E402

PADDED = 4160
CASE = next(case for case in CASES if case["name"] == "prose-64")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The host padded; a folder with an adapter, and the host with that in its weights."""
    folder = tmp_path_factory.mktemp("models")
    host = vllm_checkpoints.padded(vllm_server.MODEL, folder / "host", PADDED)
    return host, folder / "adapter", vllm_checkpoints.lora(host, folder / "adapter")


@pytest.fixture(scope="module")
def client(models, tmp_path_factory):
    host, adapter, _ = models
    # Places for 576 tokens in all.
    arguments = ["--max-model-len", 512, "--block-size", 32, "--num-gpu-blocks-override", 18]
    arguments += ["--enable-lora", "--max-lora-rank", vllm_checkpoints.RANK, "--lora-modules", f"adapted={adapter}"]
    config = write_config(tmp_path_factory.mktemp("config"))
    with Server(config, *arguments, processor=None, model=host) as server:
        yield Client(server)


def test_the_processor_is_found(client):
    assert any("proxytune: LogitsProcessor(vocab_size=4160" in line for line in client.server.lines())


def test_requests_that_are_preempted(client):
    """More than memory holds: some give way and are read again when their turn comes."""
    cases = [case for case in CASES if len(case["prompt_tokens"]) <= 64]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(client.complete, cases * 2))
    for case, tokens in zip(cases * 2, answers):
        assert tokens == case["tokens"], case["name"]
    assert metric(client.server, "vllm:num_preemptions_total") > 0


def test_a_request_for_an_adapter_is_shifted(client, models, pair):
    expected = vllm_checkpoints.greedy(models[2], pair, CASE["prompt_tokens"], 48)
    assert expected != CASE["tokens"][:48]
    with ThreadPoolExecutor(2) as pool:
        adapted = [pool.submit(client.complete, CASE, max_tokens=48, model="adapted") for _ in range(2)]
        assert [answer.result() for answer in adapted] == [expected] * 2
    # Not at once: without proxies too, vLLM's CPU build gives an adapter to those that share its batch.
    assert client.complete(CASE, max_tokens=48) == CASE["tokens"][:48]


def test_nothing_went_wrong_meanwhile(client):
    said = [line for line in client.server.lines() if "WARNING" in line or "ERROR" in line]
    assert not said, said
