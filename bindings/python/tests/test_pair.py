"""`ProxyPair`: the oracle's offsets, however histories come and go; what may not be given, and what is said then."""

import multiprocessing
import os
import random
import sys
import threading
import time

import numpy as np
import pytest
from conftest import CASES, FIXTURES, HOST, TOLERANCE, TUNED, UNTUNED, golden, settings

import proxytune
from proxytune import ProxyPair

CASE = next(case for case in CASES if case["name"] == "prose-64")


def histories(case):
    """The histories at which the oracle kept its logits."""
    return [case["prompt_tokens"] + case["tokens"][:position] for position in case["positions"]]


class TestOffsets:
    @pytest.mark.parametrize("case", [c for c in CASES if c["alpha"]], ids=lambda case: case["name"])
    def test_are_the_oracles(self, pair, case):
        offsets = case["alpha"] * pair.offsets(histories(case))
        assert offsets.dtype == np.float32 and offsets.shape == (4, 4096)
        np.testing.assert_allclose(offsets, golden(f"{case['name']}.offset"), atol=TOLERANCE)

    def test_do_not_depend_on_what_came_before(self, pair):
        fresh = ProxyPair(settings(slots=2), vocabulary=HOST)
        every = [history for case in CASES for history in histories(case)]
        expected = pair.offsets(every)
        order = random.Random(7)
        for _ in range(12):
            batch = order.sample(range(len(every)), order.randint(1, 9))
            got = fresh.offsets([every[at] for at in batch])
            np.testing.assert_allclose(got, expected[batch], atol=TOLERANCE)

    def test_of_one_history_twice_are_the_same(self, pair):
        first, second = pair.offsets([CASE["prompt_tokens"]] * 2)
        np.testing.assert_allclose(first, second, atol=TOLERANCE)

    def test_of_no_histories_are_no_rows(self, pair):
        assert pair.offsets([]).shape == (0, 4096)

    @pytest.mark.parametrize("form", [list, tuple, np.array, lambda t: np.array(t, np.int32), lambda t: np.array(t, np.uint32)])
    def test_histories_come_in_any_form(self, pair, form):
        expected = pair.offsets([CASE["prompt_tokens"]])
        for histories in ([form(CASE["prompt_tokens"])], np.array([CASE["prompt_tokens"]])):
            np.testing.assert_allclose(pair.offsets(histories), expected, atol=TOLERANCE)

    def test_a_history_that_goes_on_costs_one_token(self):
        pair = ProxyPair(settings(), vocabulary=HOST)
        prompt, tokens = CASE["prompt_tokens"], CASE["tokens"]
        pair.offsets([prompt])
        rounds = pair.stats["rounds"]
        for count in range(1, 9):
            pair.prefetch([prompt + tokens[:count]])
            pair.offsets([prompt + tokens[:count]])
        assert pair.stats["rounds"] == rounds + 8
        assert pair.stats["failed"] == 0


class TestLoop:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
    def test_the_oracles_host_logits_give_its_tokens(self, pair, case):
        host = golden(f"{case['name']}.host").copy()
        assert pair.shift_(host, histories(case), case["alpha"]) == {}
        assert host.argmax(-1).tolist() == [case["tokens"][position] for position in case["positions"]]

    def test_the_interpreters_lock_is_released(self, pair):
        """A thread that never takes the lock from another goes on while a model runs."""
        ticks, done = 0, threading.Event()

        def tick():
            nonlocal ticks
            while not done.is_set():
                ticks += 1
                time.sleep(0.0001)

        thread = threading.Thread(target=tick)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            thread.start()
            order = random.Random(1)
            history = [[order.randrange(5, 4000) for _ in range(900)]]
            before = ticks
            pair.offsets(history)
            during = ticks - before
        finally:
            sys.setswitchinterval(interval)
            done.set()
            thread.join()
        assert during > 0

    def test_threads_may_share_a_pair(self, pair):
        expected = {case["name"]: pair.offsets(histories(case)) for case in CASES}
        wrong = []

        def work(case):
            for _ in range(3):
                if not np.allclose(pair.offsets(histories(case)), expected[case["name"]], atol=TOLERANCE):
                    wrong.append(case["name"])

        threads = [threading.Thread(target=work, args=[case]) for case in CASES]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not wrong

    def test_two_pairs_in_one_process(self, pair):
        """Proxies exchanged: each pair keeps to its own."""
        other = ProxyPair(settings(tuned=UNTUNED, untuned=TUNED), vocabulary=HOST)
        expected = pair.offsets(histories(CASE))
        got = {}
        threads = [
            threading.Thread(target=lambda name=name, p=p: got.update({name: p.offsets(histories(CASE))}))
            for name, p in (("same", pair), ("other", other))
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        np.testing.assert_allclose(got["same"], expected, atol=TOLERANCE)
        np.testing.assert_allclose(got["other"], -expected, atol=TOLERANCE)

    def test_a_vocabulary_that_is_padded(self, pair):
        padded = ProxyPair(settings(), vocabulary=HOST, vocab_size=4160)
        offsets = padded.offsets(histories(CASE))
        assert offsets.shape == (4, 4160) and not offsets[:, 4096:].any()
        np.testing.assert_allclose(offsets[:, :4096], pair.offsets(histories(CASE)), atol=TOLERANCE)


class TestFailures:
    def refused(self, message, config=None, error=ValueError, **options):
        with pytest.raises(error, match=message):
            ProxyPair(config or settings(), **{"vocabulary": HOST, **options})

    def test_of_configurations(self, tmp_path):
        self.refused("no-such.toml.*cannot be read", config=tmp_path / "no-such.toml")
        (tmp_path / "bad.toml").write_text("[proxy_tuning]\ntunned = 3\n")
        self.refused("line 2.*did you mean `tuned`", config=str(tmp_path / "bad.toml"))
        self.refused("unknown field `tunned`", config={"proxy_tuning": {"tunned": "x"}})
        self.refused("expected the path of a TOML file or a mapping", config=3, error=TypeError)
        self.refused("slots: got 0, expected 1 to 256", config=settings(slots=0))

    def test_a_prompt_of_the_tuned_proxys_own_has_no_effect_and_that_is_said(self):
        with pytest.warns(UserWarning, match="tuned_prompt is not used here"):
            ProxyPair(settings(tuned_prompt={"system": "You are helpful."}), vocabulary=HOST)

    def test_of_models(self, tmp_path):
        self.refused("no-such.gguf: no such file", config=settings(tuned=tmp_path / "no-such.gguf"))
        (tmp_path / "cut.gguf").write_bytes(TUNED.read_bytes()[:5000])
        self.refused("cut.gguf", config=settings(untuned=tmp_path / "cut.gguf"))

    def test_of_vocabularies(self, tmp_path):
        self.refused("vocabulary: got nothing, expected", vocabulary=None)
        self.refused("no-such", vocabulary=tmp_path / "no-such.gguf")
        self.refused("vocab_size: got 100, expected at least 4096", vocab_size=100)

    def test_of_histories(self, pair):
        for histories, error, message in [
            ([[]], ValueError, r"histories\[0\]: no tokens"),
            ([[1], [2, -1]], ValueError, r"histories\[1\]: got token -1"),
            ([[1, "a"]], TypeError, r"histories\[0\]: got str among the tokens"),
            ([np.array([0.5])], TypeError, r"histories\[0\]: got ndarray of float64"),
            ([np.array([[1]])], ValueError, r"histories\[0\]: got 2 dimensions"),
        ]:
            with pytest.raises(error, match=message):
                pair.offsets(histories)

    def test_a_history_beyond_the_context_is_an_error(self, pair):
        with pytest.raises(RuntimeError, match=f"row 1: .*{pair.context + 1} tokens do not fit its context of {pair.context}"):
            pair.offsets([[5, 6], [5] * (pair.context + 1)])

    def test_a_token_that_no_vocabulary_has_does_no_harm(self, pair):
        expected = pair.offsets([CASE["prompt_tokens"]])
        pair.shift_(np.zeros((1, 4096), np.float32), [[5, 999_999]])
        assert np.allclose(pair.offsets([CASE["prompt_tokens"]]), expected, atol=TOLERANCE)


def use(pair, queue):
    """What a child says of its parent's pair, and what it gets from one that it loads itself."""
    try:
        queue.put(repr(pair.offsets([[5, 6]])))
    except RuntimeError as error:
        queue.put(str(error))
    queue.put(ProxyPair(settings(), vocabulary=HOST).offsets([[5, 6]]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_told_so_loads_its_own_and_ends(pair):
    expected = pair.offsets([[5, 6]])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=use, args=[pair, queue])
    process.start()
    assert "forked" in queue.get(timeout=60)
    np.testing.assert_allclose(queue.get(timeout=60), expected, atol=TOLERANCE)
    process.join(60)
    assert process.exitcode == 0
    np.testing.assert_allclose(pair.offsets([[5, 6]]), expected, atol=TOLERANCE)


def test_help_teaches():
    for text in (proxytune.__doc__, ProxyPair.__doc__, ProxyPair.shift_.__doc__, proxytune.LogitsProcessor.apply.__doc__):
        assert len(text) > 200
    assert "vocab_size=4096" in repr(ProxyPair(settings(), vocabulary=FIXTURES / "host-f32.gguf"))
    assert ProxyPair({"host": {"model": HOST}, **settings()}).vocab_size == 4096
