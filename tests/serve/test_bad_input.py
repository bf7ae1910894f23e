"""Requests that cannot be answered get a clear 4xx, and nobody else notices."""

import re

import httpx
import openai
import pytest
from harness import CASES, completion, expected

PROMPT = {"model": "default", "prompt": "import os", "max_tokens": 4}


def error_of(reply, status, param=None, code=None):
    """The message of an error in OpenAI's form."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    if param is not None:
        assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code, error
    return error["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"nonsense", b'{"prompt": "a", "temperature": NaN}', b"\xff\xfe"])
def test_what_is_no_json_object(server, path, body):
    error_of(server.post(path, body), 400, "body")


@pytest.mark.parametrize(
    "tuning, param",
    [
        ({"alpha": "much"}, "proxy_tuning.alpha"),
        ({"alpha": [1]}, "proxy_tuning.alpha"),
        ({"alpha": 1e39}, "proxy_tuning.alpha"),
        ({"enabled": "yes"}, "proxy_tuning.enabled"),
        ({"tuned_system": 7}, "proxy_tuning.tuned_system"),
        ({"alfa": 1}, "proxy_tuning.alfa"),
        ("on", "proxy_tuning"),
        ([], "proxy_tuning"),
    ],
)
def test_proxy_tuning_of_wrong_types(server, tuning, param):
    error_of(server.post("/v1/completions", PROMPT | {"proxy_tuning": tuning}), 400, param)


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"presence_penalty": 1e38}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"dry_multiplier": 1e39}, "dry_multiplier"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, 10**6]}, "prompt"),
        ({"prompt": [-1]}, None),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1], "proxy_tuning": {"tuned_system": "s"}}, "proxy_tuning.tuned_system"),
        ({"grammar": {"type": "regex", "value": "("}}, None),
    ],
)
def test_values_out_of_range(server, fields, param):
    error_of(server.post("/v1/completions", PROMPT | fields), 400, param)
    error_of(server.post("/v1/completions", PROMPT | {"stream": True} | fields), 400, param)


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as raised:
        completion(client, "import os", model="gpt-4")
    assert raised.value.code == "model_not_found" and "default" in raised.value.message


def test_the_models_own_name_is_known(client):
    names = [model.id for model in client.models.list()]
    assert "host-f32" in names
    assert completion(client, "import os", max_tokens=2, model="host-f32").model == "host-f32"


def test_a_chat_with_a_model_that_has_no_template(server):
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
    assert "chat template" in error_of(server.post("/v1/chat/completions", body), 400, "messages")


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        [{"role": "user"}],
        [{"content": "no role"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}]}],
    ],
)
def test_messages_that_are_none(chat_server, messages):
    body = {"model": "default", "messages": messages, "max_tokens": 4}
    error_of(chat_server.post("/v1/chat/completions", body), 400)


def test_a_prompt_that_fills_the_hosts_context(server):
    message = error_of(server.post("/v1/completions", PROMPT | {"prompt": [5] * 5000}), 400, code="context_length_exceeded")
    assert "host" in message and "5000" in message


def test_a_text_ends_where_the_hosts_context_does(server, client):
    message = server.post("/v1/completions", PROMPT | {"prompt": [5] * 5000}).json()["error"]["message"]
    context = int(re.search(r"holds (\d+)", message)[1])
    answer = completion(client, [600 + i % 50 for i in range(context - 10)], max_tokens=1000)
    assert answer.usage.completion_tokens <= 10
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_a_prompt_that_fills_a_proxys_own_context(chat_server):
    tuning = {"tuned_system": "word " * 2000}
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "proxy_tuning": tuning}
    message = error_of(chat_server.post("/v1/chat/completions", body), 400, code="context_length_exceeded")
    assert "tuned proxy" in message


def test_a_body_that_is_too_large(server):
    body = PROMPT | {"prompt": "x" * (5 << 20)}
    error_of(server.post("/v1/completions", body), 413, code="body_too_large")


def test_other_methods_and_places(server):
    assert httpx.get(server.url("/v1/completions")).status_code == 405
    assert httpx.get(server.url("/nowhere")).status_code == 404


def test_neighbours_of_bad_requests_get_their_text(server, client):
    from harness import at_once

    bad = [{"prompt": [1, 10**6]}, {"top_p": 7}, {"prompt": [5] * 5000}, {"grammar": {"type": "regex", "value": "("}}]
    calls = [lambda f=f: server.post("/v1/completions", PROMPT | f).status_code for f in bad * 4]
    good = [c for c in CASES if c["alpha"] == 1.0]
    calls += [lambda c=c: completion(client, c["prompt_tokens"]).choices[0].text for c in good]
    results = at_once(calls)
    assert results[: len(bad) * 4] == [400] * len(bad) * 4
    assert results[len(bad) * 4 :] == [expected(c) for c in good]
