"""What the shift did to each token, as a request may ask for, held against `generate --explain`."""

import json
import subprocess

import openai
import pytest
from harness import CASES, PROXYTUNE, Server, completion, expected, trio
from test_chat import chat

CASE = next(case for case in CASES if case["alpha"] == 1)
TOP = 3


def generated(case, max_tokens, *flags):
    """The positions that llama.cpp's path tells of."""
    command = [PROXYTUNE, "generate", *trio(), "--format", "json", "--max-tokens", str(max_tokens), *flags]
    command += ["--tokens", ",".join(map(str, case["prompt_tokens"])), f"--alpha={case['alpha']}"]
    command += ["--explain", "--explain-top", str(TOP)]
    return json.loads(subprocess.run([str(c) for c in command], check=True, capture_output=True).stdout)["positions"]


def asked(case, **more):
    return {"prompt": case["prompt_tokens"], "proxy_tuning": {"alpha": case["alpha"], "explain": TOP} | more}


def positions(choice):
    return choice.proxy_tuning["positions"]


def same(got, wanted):
    """Equal, but for the engines' roundings."""
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        assert [ours[k] for k in ("token", "text", "host_top", "top")] == [
            theirs[k] for k in ("token", "text", "host_top", "top")
        ]
        for key in ("p_host", "p", "p_tuned", "p_untuned", "change"):
            assert ours[key] == pytest.approx(theirs[key], abs=2e-3)
        # Two of nearly the same probability may change places.
        ours, theirs = ({c["token"]: c for c in p["candidates"]} for p in (ours, theirs))
        assert TOP <= len(ours) <= 2 * TOP
        for token in ours.keys() & theirs.keys():
            for key in ("p_host", "p", "p_tuned", "p_untuned"):
                assert ours[token][key] == pytest.approx(theirs[token][key], abs=2e-3)
            assert ours[token]["text"] == theirs[token]["text"]
            assert ours[token]["moved_by"] in ("tuned", "untuned", None)
        assert len(ours.keys() & theirs.keys()) >= len(theirs) - 2


@pytest.mark.parametrize("case", [c for c in CASES if c["alpha"] > 0][:4], ids=lambda case: case["name"])
def test_a_completion_is_explained_as_generate_explains_it(client, case):
    answer = completion(client, max_tokens=40, **asked(case))
    assert expected(case).startswith(answer.choices[0].text)
    got = positions(answer.choices[0])
    same(got, generated(case, 40))
    assert sum(p["host_top"] != p["top"] for p in got) == answer.proxy_tuning["shifted"]
    movers = {c["moved_by"] for p in got for c in p["candidates"]}
    assert {"tuned", "untuned"} <= movers


def test_a_stream_tells_each_token_once(client):
    whole = completion(client, max_tokens=40, **asked(CASE))
    chunks = list(completion(client, max_tokens=40, **asked(CASE), stream=True))
    told = [p for chunk in chunks for p in positions(chunk.choices[0])]
    assert told == positions(whole.choices[0])
    # Not all at the end.
    assert sum(bool(positions(chunk.choices[0])) for chunk in chunks) > len(chunks) // 2
    assert chunks[-1].proxy_tuning == whole.proxy_tuning


def test_nothing_is_told_where_nobody_asks(client):
    for explain in ({}, {"explain": 0}, {"explain": None}):
        answer = completion(client, CASE["prompt_tokens"], max_tokens=4, proxy_tuning=explain)
        assert not hasattr(answer.choices[0], "proxy_tuning")


def test_the_text_is_the_same_and_the_tokens_are_those_that_were_drawn(client):
    for fields in ({}, {"temperature": 1, "seed": 5}, {"temperature": 1, "seed": 5, "top_p": 0.8}):
        plain = completion(client, CASE["prompt_tokens"], max_tokens=40, **fields)
        told = completion(client, max_tokens=40, **asked(CASE), **fields)
        assert told.choices[0].text == plain.choices[0].text
        spelt = "".join(p["text"] for p in positions(told.choices[0]))
        assert spelt.lstrip().startswith(told.choices[0].text)
        assert len(positions(told.choices[0])) == told.usage.completion_tokens


def test_each_choice_has_its_own(client):
    ask = asked(CASE) | {"max_tokens": 20, "n": 3, "temperature": 1, "seed": 4}
    answer = completion(client, **ask)
    for choice in answer.choices:
        spelt = "".join(p["text"] for p in positions(choice))
        assert spelt.lstrip().startswith(choice.text)
    told = {0: [], 1: [], 2: []}
    for chunk in completion(client, **ask, stream=True):
        for choice in chunk.choices:
            told[choice.index] += positions(choice)
    assert told == {choice.index: positions(choice) for choice in answer.choices}


def test_the_host_alone_is_explained_without_proxies(client):
    answer = completion(client, CASE["prompt_tokens"], max_tokens=5, proxy_tuning={"enabled": False, "explain": 2})
    for position in positions(answer.choices[0]):
        assert position["p"] == position["p_host"] > 0 and position["change"] == 0
        assert position["p_tuned"] is None and len(position["candidates"]) == 2
        assert all(c["moved_by"] is None for c in position["candidates"])


def test_a_schedule_leaves_the_rest_to_the_host(client):
    answer = completion(client, max_tokens=6, **asked(CASE, alpha_schedule="stop:2"))
    of = [p["p_tuned"] is not None for p in positions(answer.choices[0])]
    assert of == [True, True, False, False, False, False]


def test_as_many_candidates_as_asked_for_and_no_more(client):
    for count in (1, 20):
        answer = completion(client, max_tokens=3, **asked(CASE, explain=count))
        for position in positions(answer.choices[0]):
            assert count <= len(position["candidates"]) <= 2 * count


@pytest.mark.parametrize("explain", [21, -1, 1.5, "3", True])
def test_other_counts_are_refused(client, explain):
    with pytest.raises(openai.BadRequestError) as refused:
        completion(client, max_tokens=3, **asked(CASE, explain=explain))
    assert refused.value.param == "proxy_tuning.explain"


def test_log_probabilities_of_mistral_rs_are_another_thing(client):
    with pytest.raises(openai.BadRequestError, match="one of the two"):
        completion(client, max_tokens=3, logprobs=2, **asked(CASE))


def test_chats(chat_client):
    tuning = {"alpha": 2, "tuned_system": "You answer in French.", "explain": 2}
    whole = chat(chat_client, proxy_tuning=tuning)
    got = positions(whole.choices[0])
    assert "".join(p["text"] for p in got).startswith(whole.choices[0].message.content)
    assert any(p["change"] > 0.1 for p in got)
    chunks = list(chat(chat_client, proxy_tuning=tuning, stream=True))
    assert [p for chunk in chunks for p in positions(chunk.choices[0])] == got


def test_a_token_that_a_grammar_refuses_is_not_told(chat_client):
    schema = {"enum": ["red", "green", "blue"]}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    ask = {"max_tokens": 20, "response_format": form, "proxy_tuning": {"explain": 2}}
    whole = chat(chat_client, **ask)
    got = positions(whole.choices[0])
    assert "".join(p["text"] for p in got).startswith(whole.choices[0].message.content)
    chunks = list(chat(chat_client, **ask, stream=True))
    assert [p for chunk in chunks for p in positions(chunk.choices[0])] == got


def test_another_rule_tells_of_the_proxies_that_it_reads():
    with Server("--combine", "mean") as server:
        answer = completion(server.client(), CASE["prompt_tokens"], max_tokens=4, proxy_tuning={"alpha": 1, "explain": 2})
    for position in positions(answer.choices[0]):
        assert position["p_tuned"] > 0 and position["p_untuned"] is None
