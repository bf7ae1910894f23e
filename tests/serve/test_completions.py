"""Completions, held against the golden cases: the same tokens as the paper's algorithm in transformers."""

import pytest
from harness import CASES, at_once, completion, expected, outcome


def of(case):
    return {"prompt": case["prompt_tokens"], "proxy_tuning": {"alpha": case["alpha"]}}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_each_golden_case(client, case):
    answer = completion(client, **of(case))
    assert answer.choices[0].text == expected(case)
    assert answer.proxy_tuning["alpha"] == case["alpha"]
    assert answer.proxy_tuning["on_error"] == "host"
    assert "unshifted" not in answer.proxy_tuning
    assert answer.proxy_tuning["shifted"] == outcome(case)["stats"]["shifted"]


def test_sixteen_at_once(client):
    cases = (CASES * 2)[:16]
    answers = at_once([lambda c=c: completion(client, **of(c)) for c in cases])
    assert [a.choices[0].text for a in answers] == [expected(c) for c in cases]


def test_a_stream_is_the_same_text_and_ends_with_the_report(client):
    for case in CASES[:4]:
        chunks = list(completion(client, **of(case), stream=True))
        text = "".join(c.choices[0].text for c in chunks)
        assert text.lstrip() == expected(case)
        assert [c.choices[0].finish_reason is not None for c in chunks].index(True) == len(chunks) - 1
        assert chunks[-1].proxy_tuning["alpha"] == case["alpha"]
        assert not any(hasattr(c, "proxy_tuning") for c in chunks[:-1])


def test_sixteen_streams_at_once(client):
    cases = (CASES * 2)[:16]
    read = lambda c: "".join(chunk.choices[0].text for chunk in completion(client, **of(c), stream=True))  # noqa: E731
    texts = at_once([lambda c=c: read(c) for c in cases])
    assert [text.lstrip() for text in texts] == [expected(c) for c in cases]


def test_two_choices(client):
    case = CASES[3]
    answer = completion(client, **of(case), n=2)
    assert [c.text for c in answer.choices] == [expected(case)] * 2
    assert sorted(c.index for c in answer.choices) == [0, 1]


def test_two_choices_of_a_stream_both_come_to_their_end(client):
    chunks = list(completion(client, [689], max_tokens=80, n=2, stream=True, temperature=1.5, seed=3, stop=[" the"]))
    texts = {0: "", 1: ""}
    ends = []
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends += [choice.index] if choice.finish_reason else []
    assert sorted(ends) == [0, 1]
    assert texts[0] and texts[1] and texts[0] != texts[1]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].proxy_tuning["alpha"] == 1.0


def test_a_seed_gives_the_same_text_again(client):
    draw = lambda seed: completion(client, [689], temperature=1, seed=seed).choices[0].text  # noqa: E731
    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) == 4


def test_off_is_the_host_alone(client):
    case = next(c for c in CASES if c["alpha"] == 0)
    off = completion(client, case["prompt_tokens"], proxy_tuning={"enabled": False, "alpha": 2})
    assert off.choices[0].text == expected(case)
    assert off.proxy_tuning["alpha"] == 0 and off.proxy_tuning["shifted"] == 0


def test_a_system_prompt_changes_what_the_tuned_proxy_reads(client):
    plain = completion(client, "import os\n", proxy_tuning={"alpha": 1})
    told = completion(client, "import os\n", proxy_tuning={"alpha": 1, "tuned_system": "Write about the weather."})
    none = completion(client, "import os\n", proxy_tuning={"alpha": 1, "tuned_system": ""})
    assert plain.choices[0].text == none.choices[0].text != told.choices[0].text


def test_log_probabilities_and_stop(client):
    case = CASES[5]
    answer = completion(client, **of(case), logprobs=2, stop=[expected(case)[20:26]])
    assert answer.choices[0].text == expected(case)[:20]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.content
