"""An unmodified `vllm serve` with the processor in it, through the `openai` client, held against the golden files.

`make test-vllm` runs it: it needs vLLM, and the test trio's host as a checkpoint folder in PROXYTUNE_VLLM_MODEL.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import vllm_server
from conftest import CASES, TOLERANCE, golden
from vllm_server import Client, Server, metric, write_config

pytest.importorskip("vllm")
openai = pytest.importorskip("openai")

if not vllm_server.MODEL:
    pytest.skip("PROXYTUNE_VLLM_MODEL is not set: run `make test-vllm`", allow_module_level=True)

CASE = next(case for case in CASES if case["name"] == "prose-64")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    # Prompts in chunks; no whitespace between the parts of JSON, of which a tiny model would write no end.
    arguments = ["--logprobs-mode", "processed_logprobs", "--max-num-batched-tokens", 128]
    arguments += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    with Server(write_config(tmp_path_factory.mktemp("config")), *arguments) as server:
        yield Client(server)


class TestGreedy:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
    def test_tokens_are_the_oracles(self, client, case):
        assert client.complete(case) == case["tokens"]

    def test_sixteen_requests_at_once_each_with_its_own_alpha(self, client):
        cases = (CASES * 2)[:16]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(client.complete, cases))
        for case, tokens in zip(cases, answers):
            assert tokens == case["tokens"], case["name"]

    def test_requests_that_come_and_go(self, client):
        """More than the batch holds, of different lengths: rows are added, removed and moved."""
        lengths = [(case, 1 + (at * 37) % 96) for at, case in enumerate(CASES * 4)]
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda item: client.complete(item[0], max_tokens=item[1]), lengths))
        for (case, length), tokens in zip(lengths, answers):
            assert tokens == case["tokens"][:length], case["name"]

    def test_prefix_cache(self, client):
        case = next(case for case in CASES if case["name"] == "code-400")
        hits = metric(client.server, "vllm:prefix_cache_hits_total")
        for _ in range(2):
            assert client.complete(case) == case["tokens"]
        assert metric(client.server, "vllm:prefix_cache_hits_total") >= hits + 128


class TestRequest:
    def test_switched_off(self, client):
        off = client.create(CASE["prompt_tokens"], extra={"vllm_xargs": {"proxy_tuning_enabled": False}})
        assert off.choices[0].token_ids == CASE["host_tokens"]
        assert client.complete(CASE, alpha=0) == CASE["host_tokens"]

    def test_the_configurations_alpha_where_none_is_given(self, client):
        assert client.create(CASE["prompt_tokens"]).choices[0].token_ids == CASE["tokens"]

    @pytest.mark.parametrize(
        ("xargs", "message"),
        [
            ({"proxy_tuning_alpha": "much"}, "proxy_tuning_alpha: got 'much', expected a finite number"),
            ({"proxy_tuning_alpha": [1.0]}, "expected a finite number"),
            ({"proxy_tuning_alpha": 1e39}, "got 1e+39, expected a finite number"),
            ({"proxy_tuning_alpha": 10**40}, "."),
            ({"proxy_tuning_alfa": 1.0}, "unknown key 'proxy_tuning_alfa'; did you mean 'proxy_tuning_alpha'"),
            ({"proxy_tuning_enabled": "maybe"}, "expected true or false"),
            ({"proxy_tuning": {"alpha": 1}}, "."),
        ],
    )
    def test_wrong_arguments_are_answered_with_400(self, client, xargs, message):
        with pytest.raises(openai.BadRequestError, match=re.escape(message) if message != "." else message):
            client.create(CASE["prompt_tokens"], max_tokens=4, extra={"vllm_xargs": xargs})
        assert client.complete(CASE, max_tokens=8) == CASE["tokens"][:8]

    def test_several_answers_to_one_prompt(self, client):
        answer = client.create(CASE["prompt_tokens"], n=3, max_tokens=48, temperature=1.0, extra={"top_k": 1})
        assert [choice.token_ids for choice in answer.choices] == [CASE["tokens"][:48]] * 3
        sampled = client.create(CASE["prompt_tokens"], n=4, max_tokens=24, temperature=1.0)
        assert len({choice.text for choice in sampled.choices}) > 1

    def test_streaming(self, client):
        tokens = []
        for chunk in client.create(CASE["prompt_tokens"], stream=True):
            tokens += chunk.choices[0].token_ids
        assert tokens == CASE["tokens"]

    def test_a_cancelled_request_leaves_the_others_alone(self, client):
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(client.complete, CASE)
            stream = client.create(CASES[0]["prompt_tokens"], max_tokens=800, stream=True)
            for _, _ in zip(stream, range(4)):
                pass
            stream.close()
            assert other.result() == CASE["tokens"]
        assert client.complete(CASE) == CASE["tokens"]

    def test_logprobs_are_the_shifted_ones(self, client):
        choice = client.create(CASE["prompt_tokens"], max_tokens=18, logprobs=2).choices[0]
        host, offset = (golden(f"{CASE['name']}.{what}").astype(float) for what in ("host", "offset"))
        for at, position in enumerate(CASE["positions"][:3]):
            row = host[at] + offset[at]
            expected = row - np.log(np.exp(row - row.max()).sum()) - row.max()
            assert choice.logprobs.token_logprobs[position] == pytest.approx(expected.max(), abs=TOLERANCE)
            best = sorted(choice.logprobs.top_logprobs[position].values())[-2:]
            assert best == pytest.approx(np.sort(expected)[-2:].tolist(), abs=TOLERANCE)

    def test_penalties_come_after_the_shift(self, client):
        penalised = client.create(CASE["prompt_tokens"], extra={"repetition_penalty": 1.3}).choices[0].token_ids
        assert penalised != CASE["tokens"]

    def test_a_json_schema_is_obeyed(self, client):
        schema = {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": [1, 2, 3]}},
            "required": ["name", "size"],
            "additionalProperties": False,
        }
        extra = {"structured_outputs": {"json": schema}, "ignore_eos": False}
        texts = [client.create("Config: ", extra=extra, max_tokens=80).choices[0].text for _ in range(2)]
        print(texts[0])
        assert texts[0] == texts[1]
        value = json.loads(texts[0])
        assert value["size"] in (1, 2, 3) and len(value["name"]) <= 8

    def test_nothing_went_wrong_meanwhile(self, client):
        said = [line for line in client.server.lines() if "WARNING" in line or "ERROR" in line]
        assert not said, said


def start_up_text(config, *arguments, **options):
    """All that `vllm serve` says before it ends."""
    with pytest.raises(RuntimeError, match="vllm serve ended with") as error, Server(config, *arguments, **options):
        pass
    return str(error.value)


def start_up_failure(config, *arguments, **options):
    """What of that is proxytune's."""
    return [line for line in start_up_text(config, *arguments, **options).splitlines() if "proxytune: " in line]


class TestStartUp:
    def test_without_a_configuration(self):
        (line,) = start_up_failure(None)
        assert "no configuration: set PROXYTUNE_CONFIG" in line

    def test_with_a_wrong_one(self, tmp_path):
        (line,) = start_up_failure(write_config(tmp_path, alfa=1.0))
        assert "proxytune.toml: line 4" in line and "did you mean `alpha`" in line

    def test_with_a_model_that_is_not_there(self, tmp_path):
        (line,) = start_up_failure(write_config(tmp_path, untuned=str(tmp_path / "absent.gguf")))
        assert "absent.gguf: no such file" in line

    def test_with_speculative_decoding(self, tmp_path):
        """vLLM refuses it by itself, also where the processor is found by entry point."""
        method = '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}'
        for processor in (vllm_server.PROCESSOR, None):
            text = start_up_text(write_config(tmp_path), "--speculative-config", method, processor=processor)
            assert "Custom logits processors are not supported when speculative decoding is enabled" in text

    def test_with_tensor_parallelism(self, tmp_path):
        cores = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
        lines = start_up_failure(write_config(tmp_path), "--tensor-parallel-size", 2, environment=cores)
        assert lines and all("tensor parallelism is not supported, and --tensor-parallel-size is 2" in line for line in lines)

    def test_named_twice(self, tmp_path):
        name = "proxytune.vllm:ProxyTuning"
        (line,) = start_up_failure(write_config(tmp_path), name)
        assert "names proxytune.vllm:ProxyTuning twice" in line


def test_data_parallelism(tmp_path):
    """Two engines behind one server, each with its own proxies."""
    cores = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    with Server(write_config(tmp_path), "--data-parallel-size", 2, environment=cores) as server:
        assert sum("proxytune: LogitsProcessor" in line for line in server.lines()) == 2
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(Client(server).complete, CASES))
        for case, tokens in zip(CASES, answers):
            assert tokens == case["tokens"], case["name"]


def test_proxies_that_are_full(tmp_path):
    """A context of 80 tokens for a request of 64 and 48 more, with both kinds of `on_error`, configured by a flag."""
    for policy in ("host", "stop"):
        config = str(write_config(tmp_path, ctx=80, on_error=policy))
        with Server(None, "--additional-config", json.dumps({"proxytune": config})) as server:
            client = Client(server)
            choice = client.create(CASE["prompt_tokens"], max_tokens=48, extra={"ignore_eos": False}).choices[0]
            shifted = [a == b for a, b in zip(choice.token_ids, CASE["tokens"])]
            assert all(shifted[:16])
            said = [line for line in server.lines() if "do not fit" in line]
            assert len(said) == 1 and "the tuned proxy: 81 tokens" in said[0]
            if policy == "stop":
                assert choice.finish_reason == "stop" and len(choice.token_ids) <= 18
                assert "requests end" in said[0]
            else:
                assert len(choice.token_ids) == 48 and "unshifted" in said[0]
