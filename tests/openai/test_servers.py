"""Unmodified servers as black boxes, held against the local path, whose rows of logits are whole."""

import json
import os
import time

import httpx
import openai
import pytest

import harness
from harness import CASES, HOST, PROXIES, ROOT, TINY_HOST, TINY_PROXIES, common_tokens, local, proxytune, remote

TOKENS = 24


@pytest.fixture(scope="module")
def llama():
    with harness.llama_server() as url:
        yield url


@pytest.fixture(scope="module", params=harness.SERVERS)
def server(request):
    with harness.SERVERS[request.param]() as url:
        yield url


@pytest.fixture
def name(request):
    return request.node.callspec.params["server"]


WAYS = {
    "one by one": ["--speculate", "off"],
    "drafted": [],
    "by bias": ["--way", "bias", "--host-vocab", HOST],
}


@pytest.mark.parametrize("way", WAYS)
def test_greedy_text_is_the_local_paths_as_long_as_the_winner_is_visible(server, name, way, llama):
    if (name, way) == ("mistral.rs", "by bias"):
        pytest.skip("it takes logit_bias and leaves it out, which a test of its own looks at")
    equal = positions = calls = tokens = diverged = 0
    for case in CASES:
        prompt = ["--prompt", case["prompt"], "--alpha", case["alpha"], "--max-tokens", TOKENS]
        here = local(*prompt)
        there = remote(server, *prompt, *WAYS[way])
        same = len(os.path.commonprefix([here["text"], there["text"]]))
        whole = here["text"] == there["text"]
        stats = there["stats"]
        assert stats["unshifted"] == 0 and stats["unreadable"] == 0 and stats["resumed"] == 0, stats
        calls, tokens = calls + stats["calls"], tokens + stats["tokens"]
        positions += TOKENS
        kept = TOKENS if whole else common_tokens(there["tokens"], here["text"])
        equal += kept
        if not whole:
            diverged += 1
            if way == "by bias":
                reason = split_otherwise(llama, case["prompt"], there["tokens"][:kept])
            else:
                reason = hidden(server, case["prompt"], here["text"], same)
            assert reason, (case["name"], here["text"], there["text"])
    print(f"\n{name}, {way}: {equal} of {positions} tokens up to there, {diverged} of {len(CASES)} texts parted at a hidden "
          f"winner or where the text so far is split otherwise; {calls} calls for {tokens} tokens, {calls / tokens:.2f} a token")
    assert equal > positions / 3


def split_otherwise(url, prompt, written):
    """Whether what was written, which goes back as text, is split into other tokens than it was written in."""
    count = lambda text: len(httpx.post(f"{url}/tokenize", json={"content": text}).json()["tokens"])
    return count(prompt + "".join(written)) != count(prompt) + len(written)


def hidden(url, prompt, text, same):
    """Whether the local path's next token is none that the server shows after their common text."""
    # A token may have begun before the place where the texts part.
    for back in range(0, min(same, 12) + 1):
        start = same - back
        body = {"model": url.model, "prompt": prompt + text[:start], "max_tokens": 1, "temperature": 1, "logprobs": 20}
        shown = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["logprobs"]
        if "content" in shown:
            # mistral.rs has the number there.
            top = [t["token"] if isinstance(t["token"], str) else t["bytes"] for t in shown["content"][0]["top_logprobs"]]
        else:
            top = list(shown["top_logprobs"][0])
        if not any(len(t) > back and text[start:].startswith(t) for t in top):
            return True
    return False


def test_a_bias_that_changes_nothing_is_refused():
    with harness.mistralrs() as url:
        flags = ["--engine", "openai", "--host-url", url, "--host-model", url.model, *PROXIES, "--prompt", "It"]
        status, _, err = proxytune("generate", *flags, "--way", "bias", "--host-vocab", HOST)
        assert status == 2 and "takes no logit_bias" in err, err


def test_fewer_calls_with_drafts(server):
    prompt = ["--prompt", "The file is", "--alpha", "1", "--max-tokens", 32]
    one, drafted = remote(server, *prompt, "--speculate", "off"), remote(server, *prompt)
    assert one["text"] == drafted["text"]
    assert one["stats"]["calls"] == one["stats"]["tokens"] and drafted["stats"]["calls"] < one["stats"]["calls"]


def test_the_tiny_trio_in_an_unmodified_server():
    prompt = ["--prompt", "How to open a file and read its lines.", "--alpha", "0.6", "--max-tokens", 32]
    with harness.llama_server(TINY_HOST) as url:
        here = local(*prompt, host=TINY_HOST, proxies=TINY_PROXIES)
        for flags in (["--speculate", "off"], [], ["--way", "bias"]):
            assert remote(url, *prompt, *flags, proxies=TINY_PROXIES)["text"] == here["text"], flags


def test_characters_of_several_tokens_survive(server):
    there = remote(server, "--prompt", "# 你好 €€ 😀😀 naïve ", "--alpha", "0.5", "--max-tokens", 16)
    assert there["stats"]["tokens"] == 16 and there["text"]


def test_multiple_choice_is_the_same_as_from_whole_rows(llama, tmp_path):
    task = tmp_path / "task.jsonl"
    record = {"question_sentence": "Which of these is an article?", "answer": ["0"]}
    choices = (["the", "def", "run", "off"], ["a", "of", "in", "to"])
    task.write_text("".join(json.dumps(record | {"choices": c}) + "\n" for c in choices))
    flags = ["--task", task, "--alpha", "0.5,1", "--format", "json", "--fresh"]
    status, here, err = proxytune("eval", "--host", HOST, *PROXIES, *flags)
    assert status == 0, err
    flags += ["--top-logprobs", 4096]
    status, there, err = proxytune("eval", "--engine", "openai", "--host-url", llama, "--host-model", "h", *PROXIES, *flags)
    assert status == 0, err
    here, there = json.loads(here), json.loads(there)
    for key in ("host", "tuned", "untuned", "shifted"):
        assert here[key] == there[key], key


def test_finished_questions_are_not_paid_again(llama, tmp_path):
    task, journal = tmp_path / "task.jsonl", tmp_path / "journal.jsonl"
    record = {"question_sentence": "Which?", "choices": ["a", "b"], "answer": ["0"]}
    task.write_text("".join(json.dumps(record | {"question_sentence": f"Which {i}?"}) + "\n" for i in range(4)))
    run = ["eval", "--engine", "openai", "--host-url", llama, "--host-model", "h", *PROXIES, "--task", task]
    run += ["--journal", journal, "--format", "json"]
    status, _, err = proxytune(*run, "--max-requests", 3)
    assert status == 2 and "--max-requests" in err
    status, out, err = proxytune(*run)
    assert status == 0, err
    asked = next(note for note in json.loads(out)["notes"] if "requests" in note)
    # One looks at the API; two of the four were answered before.
    assert asked.startswith("3 requests"), asked


def test_the_key_is_sent_and_never_shown():
    with harness.llama_server(HOST, "--api-key", "sk-very-secret") as url:
        flags = ["--engine", "openai", "--host-url", url, "--host-model", "h", *PROXIES, "--prompt", "It", "--max-tokens", 2]
        status, out, err = proxytune("-vv", "generate", *flags, env={"MY_KEY": "sk-wrong"} | {"OPENAI_API_KEY": ""})
        assert status == 2 and "--host-key-env" in err, err
        flags += ["--host-key-env", "MY_KEY"]
        status, out, err = proxytune("-vv", "generate", *flags, env={"MY_KEY": "sk-very-secret"})
        assert status == 0 and "very-secret" not in out + err, err
        status, out, err = proxytune("-vv", "generate", *flags, env={"MY_KEY": "sk-wrong-one"})
        assert status == 2 and "401" in err and "wrong-one" not in err, err


def test_gateway_serves_the_official_client_with_and_without_streaming(llama):
    with harness.gateway(llama, "--alpha", "1") as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        expected = local("--prompt", "The file is", "--alpha", "1", "--max-tokens", 16)["text"]
        request = {"model": "host", "prompt": "The file is", "max_tokens": 16, "temperature": 0}
        whole = client.completions.create(**request)
        assert whole.choices[0].text == expected and whole.model_extra["proxy_tuning"]["way"] == "reweigh"
        parts = list(client.completions.create(**request, stream=True))
        assert "".join(p.choices[0].text for p in parts) == expected
        assert parts[-1].choices[0].finish_reason == "length" and len(parts) == 17
        alone = client.completions.create(**request, extra_body={"proxy_tuning": {"enabled": False}})
        assert alone.choices[0].text == local("--prompt", "The file is", "--max-tokens", 16, "--no-proxy")["text"]
        assert client.models.list().data[0].id == "host"
        for bad, named in (({"n": 2}, "n"), ({"model": "other"}, "model"), ({"temperature": -1}, "--temperature")):
            with pytest.raises(openai.BadRequestError) as error:
                client.completions.create(**(request | bad))
            assert error.value.param == named


def test_a_client_that_leaves_stops_the_host(llama):
    busy = lambda: any(slot["is_processing"] for slot in httpx.get(f"{llama}/slots", timeout=30).json())
    with harness.gateway(llama, "--speculate", "16") as (url, _):
        body = {"prompt": "The file is", "max_tokens": 400, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
            next(response.iter_lines())
        deadline = time.monotonic() + 10
        idle = 0
        while idle < 10:
            idle = 0 if busy() else idle + 1
            assert time.monotonic() < deadline, "the host goes on"
            time.sleep(0.05)


def test_errors_of_the_host_come_with_their_status(llama):
    with harness.llama_server() as url, harness.gateway(url, "--host-retries", "0") as (ours, _):
        long = {"prompt": "word " * 5000, "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{ours}/v1/completions", json=long, timeout=60)
        assert answer.status_code in (400, 500) and answer.json()["error"]["message"], answer.text
    # Gone in the meantime.
    server = harness.llama_server()
    url = server.__enter__()
    with harness.gateway(url, "--host-retries", "0") as (ours, _):
        server.__exit__(None, None, None)
        answer = httpx.post(f"{ours}/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=60)
        assert answer.status_code == 502 and answer.json()["error"]["code"] == "upstream", answer.text


@pytest.mark.skipif("RECORD" not in os.environ, reason="RECORD=1 records what cargo's tests replay")
@pytest.mark.parametrize("name", harness.SERVERS)
def test_record(name):
    with harness.SERVERS[name]() as url, harness.Recorder(url) as recorder:
        flags = ["--prompt", "The file is", "--alpha", "1", "--max-tokens", 12, "--top-logprobs", 8]
        texts = {way: remote(recorder.url, *flags, "--speculate", speculate)["text"] for way, speculate in (("off", "off"), ("drafted", "4"))}
        assert texts["off"] == texts["drafted"]
        once = {json.dumps([e["path"], e["body"]], sort_keys=True): e for e in recorder.exchanges}
        recorded = {"text": texts["off"], "exchanges": list(once.values())}
        path = ROOT / "tests/openai/recorded" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(recorded, indent=1, ensure_ascii=False).replace(f"{ROOT}/", "") + "\n")
