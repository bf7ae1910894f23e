"""Proxies that fail inside `proxytune serve`: it lives, each request is told what happened to it, and all is well after the fault.

`scripts/test-serve.sh` sets PROXYTUNE_FAULTS to a program that was built with the feature `fault-injection`.
"""

import os
import pathlib
import signal
import threading
import time

import openai
import pytest
from harness import CASES, PROXYTUNE, Server, at_once, completion, expected

FAULTS = pathlib.Path(os.environ["PROXYTUNE_FAULTS"]).resolve()
CASE = next(case for case in CASES if case["name"] == "prose-64")
# In no golden case.
POISON = 4000
WORDS = {
    "fail": ("a failure on command", "engine"),
    "nan": ("are NaN", "engine"),
    "short": ("a row of 4095", "engine"),
    "panic": ("a panic on command", "engine"),
}


class Faulty(Server):
    """A server whose tuned proxy fails as a file says."""

    def __init__(self, folder, *arguments):
        self.switch = folder / "fault"
        super().__init__(*arguments, env={"PROXYTUNE_FAULT": str(self.switch)}, program=FAULTS)

    def set(self, fault):
        self.switch.write_text(fault)
        time.sleep(0.2)  # the switch is looked at every 5 ms

    def ask(self, case=CASE, **fields):
        return completion(self.client(), case["prompt_tokens"], **fields)

    def alone(self):
        """The host's own text."""
        return self.ask(proxy_tuning={"enabled": False}).choices[0].text

    def until_golden(self):
        """Asks until the answer is shifted again."""
        deadline = time.monotonic() + 120
        while "unshifted" in self.ask(max_tokens=4).proxy_tuning:
            assert time.monotonic() < deadline, self.output()
        self.is_golden(self.ask())

    def is_golden(self, answer):
        assert answer.choices[0].text == expected(CASE)
        assert "unshifted" not in answer.proxy_tuning, answer.proxy_tuning

    def resident(self):
        """KiB of memory."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])

    def failures(self, kind):
        return self.metrics().get(f'proxytune_failures_total{{kind="{kind}"}}', 0)


@pytest.mark.parametrize("fault", WORDS)
def test_passes_that_fail(fault, tmp_path):
    words, kind = WORDS[fault]
    with Faulty(tmp_path) as server:
        server.is_golden(server.ask())
        host = server.alone()
        server.set(fault)
        for answer in at_once([server.ask] * 8):
            assert answer.choices[0].text == host
            told = answer.proxy_tuning
            assert told["unshifted"] == 96 and words in told["error"], told
        assert server.failures(kind) == 8 * 96
        assert server.output().count("(said once)") == 1, server.output()
        server.set("none")
        for answer in at_once([server.ask] * 8):
            server.is_golden(answer)


@pytest.mark.parametrize("fault", WORDS)
def test_a_fault_of_one_request_is_no_other_ones(fault, tmp_path):
    with Faulty(tmp_path) as server:
        server.set(f"{fault} at {POISON}")
        victim = {"prompt_tokens": [*CASE["prompt_tokens"], POISON]}
        jobs = [server.ask, lambda: server.ask(victim, max_tokens=24)] * 4
        answers = at_once(jobs)
        for answer in answers[0::2]:
            server.is_golden(answer)
        for answer in answers[1::2]:
            assert answer.proxy_tuning["unshifted"] == answer.usage.completion_tokens, answer.proxy_tuning
            assert WORDS[fault][0] in answer.proxy_tuning["error"]


@pytest.mark.parametrize("fault", WORDS)
def test_a_single_fault(fault, tmp_path):
    """One pass goes wrong: at most the position that asked for it goes unshifted."""
    with Faulty(tmp_path) as server:
        server.set(f"{fault} once")
        assert server.ask(max_tokens=24).proxy_tuning.get("unshifted", 0) <= 1
        server.is_golden(server.ask())


@pytest.mark.parametrize("placement", ["auto", "in-turn", "side-by-side", "together"])
def test_a_proxy_that_hangs(placement, tmp_path):
    with Faulty(tmp_path, "--proxy-timeout", "2", "--placement", placement) as server:
        server.is_golden(server.ask())
        host = server.alone()
        server.set("hang")
        # A wait for each of these tokens would take 25 minutes.
        began = time.monotonic()
        for answer in at_once([server.ask] * 8):
            assert answer.choices[0].text == host
            assert "no answer within 2 s" in answer.proxy_tuning["error"]
        assert time.monotonic() - began < 300
        assert server.failures("timeout") == 8 * 96
        server.set("none")
        server.until_golden()


def test_a_text_whose_proxy_hangs_in_the_middle(tmp_path):
    """What came before is shifted, what comes after is not, and nothing is missing."""
    with Faulty(tmp_path, "--proxy-timeout", "1") as server:
        stream = server.ask(max_tokens=400, stream=True)
        chunks = iter(stream)
        begin = [next(chunks) for _ in range(8)]
        server.set("hang")
        chunks = begin + list(chunks)
        told = chunks[-1].proxy_tuning
        assert 0 < told["unshifted"] < 400 and "no answer within 1 s" in told["error"], told
        assert chunks[-1].choices[0].finish_reason
        text = "".join(chunk.choices[0].text for chunk in chunks)
        assert text.lstrip().startswith("".join(chunk.choices[0].text for chunk in begin).lstrip())
        server.set("none")
        server.until_golden()


def test_a_proxy_a_hundred_times_slower_is_waited_for(tmp_path):
    with Faulty(tmp_path) as server:
        server.set("slow 20")
        answer = server.ask(max_tokens=24)
        assert expected(CASE).startswith(answer.choices[0].text) and "unshifted" not in answer.proxy_tuning


def test_a_proxy_slower_than_the_limit_costs_a_wait_now_and_then(tmp_path):
    with Faulty(tmp_path, "--proxy-timeout", "0.05") as server:
        host = server.alone()
        server.set("slow 500")
        answer = server.ask()
        assert answer.choices[0].text == host and answer.proxy_tuning["unshifted"] == 96
        assert "no answer within 0.05 s" in answer.proxy_tuning["error"]
        server.set("none")
        server.until_golden()


@pytest.mark.parametrize("fault", ["fail", "hang"])
def test_a_request_that_must_not_go_on_unshifted_ends(fault, tmp_path):
    config = tmp_path / "proxytune.toml"
    config.write_text('[proxy_tuning]\non_error = "stop"\nproxy_timeout = 1.0\n')
    with Faulty(tmp_path, "--config", config) as server:
        server.set(fault)
        with pytest.raises(openai.InternalServerError, match="a failure on command|no answer within 1 s"):
            server.ask()
        server.set("none")
        deadline = time.monotonic() + 120
        while True:
            try:
                server.is_golden(server.ask())
                break
            except openai.InternalServerError:
                assert time.monotonic() < deadline, server.output()


def test_the_server_ends_though_a_proxy_hangs_in_mid_stream(tmp_path):
    with Faulty(tmp_path, "--proxy-timeout", "1") as server:
        chunks = iter(server.ask(max_tokens=64, stream=True))
        next(chunks)
        server.set("hang")
        stopping = threading.Thread(target=server.process.send_signal, args=(signal.SIGTERM,))
        stopping.start()
        # Who runs is served to the end.
        assert list(chunks)[-1].choices[0].finish_reason
        stopping.join()
        assert server.process.wait(60) == 0, server.output()[-2000:]


def test_failures_leave_nothing_behind(tmp_path):
    with Faulty(tmp_path, "--proxy-timeout", "0.5") as server:
        ask = lambda: [server.ask(max_tokens=4) for _ in range(60)]  # noqa: E731
        for fault in ("fail", "panic", "hang"):
            server.set(fault)
            ask()
            before = server.resident()
            ask()
            assert server.resident() - before < 4096, fault
            server.set("none")
            server.until_golden()


def test_the_switch_is_not_in_the_release():
    assert b"PROXYTUNE_FAULT" not in PROXYTUNE.read_bytes()
    assert b"PROXYTUNE_FAULT" in FAULTS.read_bytes()
