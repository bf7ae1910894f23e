"""`LogitsProcessor`: requests that come, go, move between rows and take tokens back."""

import numpy as np
import pytest
from conftest import CASES, HOST, OWN_PROMPT, TOLERANCE, golden, settings

from proxytune import LogitsProcessor


@pytest.fixture(scope="module")
def processor():
    return LogitsProcessor(settings(), vocabulary=HOST)


@pytest.mark.parametrize("case", OWN_PROMPT, ids=lambda case: case["name"])
def test_a_prompt_of_the_tuned_proxys_own(processor, case):
    processor.add_request(1, case["prompt_tokens"], alpha=case["alpha"], tuned_prompt=case["tuned_prompt_tokens"])
    for at, position in enumerate(case["positions"]):
        processor.update(1, case["tokens"][:position])
        out = np.empty((1, 4096), np.float32)
        assert processor.offsets_(out, [1]) == {}
        np.testing.assert_allclose(out[0], golden(f"{case['name']}.offset")[at], atol=TOLERANCE)
    processor.remove_request(1)


def test_a_batch_whose_rows_move(processor):
    for number, case in enumerate(CASES):
        processor.add_request(number, case["prompt_tokens"], alpha=case["alpha"])
    for at in range(4):
        order = [*range(at, len(CASES)), *range(at), None]
        logits = np.zeros((len(order), 4096), np.float32)
        for number in order[:-1]:
            processor.update(number, CASES[number]["tokens"][: CASES[number]["positions"][at]])
        processor.prefetch(order)
        assert processor.apply(logits, order) == {}
        for row, number in enumerate(order[:-1]):
            expected = golden(f"{CASES[number]['name']}.offset")[at]
            np.testing.assert_allclose(logits[row], expected, atol=TOLERANCE)
        assert not logits[-1].any()
    for number in range(len(CASES)):
        processor.remove_request(number)


def test_tokens_are_taken_back_by_a_shorter_list(processor):
    case = CASES[3]
    processor.add_request(5, case["prompt_tokens"], alpha=1.0)
    rows = {}
    for generated in ([], [9], [9, 10], [9, 11, 12], [9], case["tokens"][:5], [9, 10], []):
        processor.update(5, list(generated))
        out = np.empty((1, 4096), np.float32)
        processor.offsets_(out, [5])
        known = rows.setdefault(tuple(generated), out)
        np.testing.assert_allclose(out, known, atol=TOLERANCE)
    assert not np.allclose(rows[(9, 10)], rows[(9, 11, 12)], atol=TOLERANCE)
    processor.remove_request(5)


def test_what_is_refused(processor):
    logits = np.zeros((1, 4096), np.float32)
    for call, error, message in [
        (lambda: processor.apply(logits, [77]), ValueError, "request: got 77, expected one that was added"),
        (lambda: processor.update(77, []), ValueError, "got 77"),
        (lambda: processor.remove_request(77), ValueError, "got 77"),
        (lambda: processor.prefetch([77]), ValueError, "got 77"),
        (lambda: processor.add_request(1, [1], alpha=float("inf")), ValueError, "alpha: got inf"),
        (lambda: processor.add_request(-1, [1]), OverflowError, "."),
        (lambda: processor.add_request(1, [1], tuned_prompt=[]), ValueError, "tuned proxy"),
        (lambda: processor.offsets_(np.zeros((1, 4096), np.float16), []), ValueError, "shape"),
    ]:
        with pytest.raises(error, match=message):
            call()
    processor.add_request(1, [1])
    with pytest.raises(ValueError, match="request: got 1, expected a number that no other"):
        processor.add_request(1, [1])
    with pytest.raises(ValueError, match="token -1"):
        processor.update(1, [4, -1])
    with pytest.raises(TypeError, match="float32"):
        processor.offsets_(np.zeros((1, 4096), np.float16), [1])
    processor.remove_request(1)


def test_a_request_that_fails_leaves_the_others_alone(processor):
    case = CASES[0]
    processor.add_request(1, case["prompt_tokens"], alpha=1.0)
    processor.add_request(2, [5] * 2000, alpha=1.0)
    logits = np.ones((2, 4096), np.float32)
    failures = processor.apply(logits, [2, 1])
    assert list(failures) == [0] and "2000 tokens do not fit" in failures[0]
    assert (logits[0] == 1).all()
    np.testing.assert_allclose(logits[1] - 1, golden(f"{case['name']}.offset")[0], atol=TOLERANCE)
    processor.remove_request(1)
    processor.remove_request(2)
