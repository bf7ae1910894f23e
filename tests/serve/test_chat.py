"""Chats with a model that has a chat template."""

import json

from harness import at_once

QUESTION = [{"role": "user", "content": "Name three colours."}]


def chat(client, messages=QUESTION, max_tokens=12, proxy_tuning=None, **fields):
    body = {"proxy_tuning": proxy_tuning} if proxy_tuning is not None else {}
    fields = {"model": "default", "temperature": 0} | fields
    return client.chat.completions.create(messages=messages, max_tokens=max_tokens, extra_body=body, **fields)


def test_equal_prompts_leave_the_host_as_it_is(chat_client):
    host = chat(chat_client, proxy_tuning={"enabled": False})
    tuned = chat(chat_client)
    assert tuned.choices[0].message.content == host.choices[0].message.content
    assert (host.proxy_tuning["alpha"], tuned.proxy_tuning["alpha"]) == (0.0, 1.0)
    assert tuned.proxy_tuning["shifted"] == 0


def test_the_tuned_proxys_system_prompt_tunes_the_host(chat_client):
    plain = chat(chat_client).choices[0].message.content
    told = chat(chat_client, proxy_tuning={"alpha": 2, "tuned_system": "You answer in French."})
    assert told.choices[0].message.content != plain
    assert told.proxy_tuning["shifted"] > 0


def test_a_stream_is_the_same_text(chat_client):
    tuning = {"alpha": 1, "tuned_system": "You answer like a pirate."}
    whole = chat(chat_client, proxy_tuning=tuning)
    chunks = list(chat(chat_client, proxy_tuning=tuning, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.strip() == whole.choices[0].message.content.strip()
    assert chunks[-1].proxy_tuning == whole.proxy_tuning
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_conversations_with_a_system_prompt(chat_client):
    messages = [{"role": "system", "content": "You are brief."}, *QUESTION, {"role": "assistant", "content": "Red."}]
    messages += [{"role": "user", "content": [{"type": "text", "text": "And more?"}]}]
    answer = chat(chat_client, messages, proxy_tuning={"tuned_system": "You are verbose."})
    assert answer.choices[0].message.content


def test_output_by_a_json_schema(chat_client):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green", "blue"]}, "warm": {"type": "boolean"}},
        "required": ["colour", "warm"],
        "additionalProperties": False,
        # Or a model may fill its answer with blank lines.
        "x-guidance": {"whitespace_flexible": False},
    }
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    for temperature in (0, 1):
        answer = chat(chat_client, max_tokens=40, response_format=form, temperature=temperature,
                      proxy_tuning={"tuned_system": "You answer in French."})  # fmt: skip
        said = json.loads(answer.choices[0].message.content)
        assert set(said) == {"colour", "warm"} and said["colour"] in ("red", "green", "blue")


def test_several_conversations_at_once(chat_client):
    questions = [[{"role": "user", "content": f"What is {n} plus {n}?"}] for n in range(3)]
    tuning = {"alpha": 1, "tuned_system": "You count aloud."}
    ask = lambda q: chat(chat_client, q, max_tokens=8, proxy_tuning=tuning).choices[0].message.content  # noqa: E731
    alone = [ask(q) for q in questions]
    assert at_once([lambda q=q: ask(q) for q in questions]) == alone


def test_two_choices(chat_client):
    answer = chat(chat_client, n=2, temperature=1, max_tokens=6)
    assert sorted(c.index for c in answer.choices) == [0, 1]
    streamed = list(chat(chat_client, n=2, temperature=1, max_tokens=6, stream=True))
    assert {choice.index for chunk in streamed for choice in chunk.choices} == {0, 1}
    assert streamed[-1].usage.completion_tokens <= 12
