#!/usr/bin/env python3
"""Proxies that fail in an unmodified llama-server: it lives, what was asked for comes, and all is well after the fault.

`scripts/test-plugin.sh` sets PROXYTUNE_PLUGIN_FAULTS to a plugin that was built with the feature `fault-injection`.
"""

import json
import os
import pathlib
import signal
import socket
import threading
import time
import unittest

import harness
from harness import CASES, TUNED, at_once, write_config
from test_plugin import Plugin, of_alpha

FAULTS = pathlib.Path(os.environ["PROXYTUNE_PLUGIN_FAULTS"]).resolve()
# In no golden case.
POISON = 4000


def resident(server):
    """KiB of memory of a server."""
    text = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])


class Faults(Plugin):
    def setUp(self):
        super().setUp()
        self.switch = self.folder / "fault"
        os.environ["PROXYTUNE_FAULT"] = str(self.switch)
        self.addCleanup(os.environ.pop, "PROXYTUNE_FAULT")
        self.addCleanup(setattr, harness, "PLUGIN", harness.PLUGIN)
        harness.PLUGIN = FAULTS

    def set(self, fault):
        self.switch.write_text(fault)
        time.sleep(0.2)  # the switch is looked at every 5 ms

    def until_golden(self, server, case):
        """Asks until the answer is shifted again."""
        deadline = time.monotonic() + 120
        while server.complete(case["prompt_tokens"], n_predict=32)["tokens"] != case["tokens"][:32]:
            self.assertLess(time.monotonic(), deadline)
        self.assert_golden(case, server.complete(case["prompt_tokens"]))

    def test_passes_that_fail(self):
        words = {"fail": "a failure on command", "nan": "are NaN", "short": "a row of 4095", "panic": "a panic on command"}
        case = of_alpha(1.0)[0]
        for fault, word in words.items():
            with self.subTest(fault), self.server(slots=4) as server:
                self.assert_golden(case, server.complete(case["prompt_tokens"]))
                self.set(fault)
                for answer in at_once([lambda: server.complete(case["prompt_tokens"])] * 8):
                    self.assert_golden(case, answer, case["host_tokens"])
                said = [line for line in server.lines() if word in line]
                self.assertEqual(len(said), 1, server.lines())
                self.assertIn("go on unshifted where this happens (said once)", said[0])
                self.set("none")
                for answer in at_once([lambda: server.complete(case["prompt_tokens"])] * 8):
                    self.assert_golden(case, answer)

    def test_a_fault_of_one_request_is_no_other_ones(self):
        """Four at once in one batch, one of which reads the token that the fault waits for."""
        case = of_alpha(1.0)[0]
        victim = [*case["prompt_tokens"], POISON]
        with self.server(slots=4) as server:
            quiet = server.complete(victim, n_predict=32)["tokens"]
        with self.server(slots=4) as server:
            self.set(f"fail at {POISON}")
            calls = [lambda: server.complete(case["prompt_tokens"])] * 6 + [lambda: server.complete(victim, n_predict=32)] * 2
            *answers, first, second = at_once(calls)
            for answer in answers:
                self.assert_golden(case, answer)
            self.assertNotEqual(first["tokens"], quiet)
            self.assertEqual(first["tokens"], second["tokens"])
            self.set("none")
            self.assertEqual(server.complete(victim, n_predict=32)["tokens"], quiet)

    def test_a_single_fault_is_nobodys(self):
        """A pass that fails for several is tried again for each, so that nobody pays for another."""
        case = of_alpha(1.0)[0]
        with self.server(slots=4) as server:
            self.set("fail once")
            for answer in at_once([lambda: server.complete(case["prompt_tokens"])] * 8):
                self.assertEqual(answer["tokens_predicted"], 96)
            self.assert_golden(case, server.complete(case["prompt_tokens"]))

    def test_a_proxy_a_hundred_times_slower(self):
        case = of_alpha(1.0)[0]
        with self.server() as server:
            self.set("slow 20")
            self.assert_golden(case, server.complete(case["prompt_tokens"], n_predict=24))
        with self.server(config={"proxy_timeout": 0.05}) as server:
            self.set("slow 500")
            self.assert_golden(case, server.complete(case["prompt_tokens"]), case["host_tokens"])
            self.set("none")
            self.until_golden(server, case)

    def test_a_proxy_that_hangs(self):
        case = of_alpha(1.0)[0]
        for placement in ("auto", "in-turn", "side-by-side", "together"):
            config = {"proxy_timeout": 2.0, "placement": placement}
            with self.subTest(placement), self.server(slots=4, config=config) as server:
                self.assert_golden(case, server.complete(case["prompt_tokens"]))
                self.set("hang")
                # 8 answers of up to 96 tokens: a wait for each token would take 20 minutes.
                began = time.monotonic()
                for answer in at_once([lambda: server.complete(case["prompt_tokens"])] * 8):
                    self.assert_golden(case, answer, case["host_tokens"])
                self.assertLess(time.monotonic() - began, 300)
                self.assertTrue(any("no answer within 2 s" in line for line in server.lines()), server.lines())
                self.set("none")
                self.until_golden(server, case)

    def test_a_text_whose_proxy_hangs_in_the_middle(self):
        case = next(case for case in CASES if case["name"] == "prose-64")
        with self.server(config={"proxy_timeout": 1.0}) as server:
            hanging = threading.Timer(0.3, self.set, ["hang"])
            hanging.start()
            answer = server.complete(case["prompt_tokens"], n_predict=400, ignore_eos=True)
            self.assertEqual(answer["tokens_predicted"], 400)
            hanging.join()
            self.set("none")
            self.until_golden(server, case)

    def test_the_server_ends_though_a_proxy_hangs(self):
        with self.server(config={"proxy_timeout": 1.0}) as server:
            self.set("hang")
            server.complete(CASES[0]["prompt_tokens"], n_predict=4)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(60), 0, server.output()[-2000:])

    def test_a_request_whose_proxy_hangs_ends_where_it_must_not_go_on(self):
        with self.server(config={"proxy_timeout": 1.0, "on_error": "stop"}) as server:
            self.set("hang")
            answer = server.complete(CASES[0]["prompt_tokens"], n_predict=50)
            self.assertEqual((answer["stop_type"], answer["tokens_predicted"] <= 1), ("eos", True), answer)

    def test_failures_leave_nothing_behind(self):
        prompt = CASES[0]["prompt_tokens"]
        with self.server(slots=2, config={"proxy_timeout": 0.5}) as server:
            for fault in ("fail", "panic", "hang"):
                self.set(fault)
                ask = lambda: [server.complete(prompt, n_predict=4) for _ in range(100)]  # noqa: E731
                ask()
                before = resident(server)
                ask()
                self.assertLess(resident(server) - before, 4096, fault)
                self.set("none")
                self.until_golden(server, of_alpha(1.0)[0])


class Clients(Plugin):
    """Clients that break off, with the plugin as it is released."""

    def connect(self, server, body, share=1.0):
        """A connection over which a share of a request was sent, and nothing has been read."""
        connection = socket.socket()
        self.addCleanup(connection.close)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(("127.0.0.1", server.port))
        body = json.dumps(body).encode()
        head = b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        whole = head % len(body) + body
        connection.sendall(whole[: int(share * len(whole))])
        return connection

    def test_half_requests_deaf_clients_and_those_that_leave(self):
        case = next(case for case in CASES if case["name"] == "prose-64")
        long = {"prompt": case["prompt_tokens"], "n_predict": 600, "temperature": 0, "stream": True, "ignore_eos": True}
        with self.server(slots=4) as server:
            self.assert_golden(case, server.complete(case["prompt_tokens"]))
            sizes = []
            for _ in range(12):
                half = [self.connect(server, long, share) for share in (0.1, 0.5, 0.9)]
                deaf = self.connect(server, long)
                gone = self.connect(server, long)
                gone.recv(200)
                gone.close()
                for answer in at_once([lambda: server.complete(case["prompt_tokens"])] * 3):
                    self.assert_golden(case, answer)
                for connection in (*half, deaf):
                    connection.close()
                sizes.append(resident(server))
            self.assertLess(sizes[-1] - sizes[len(sizes) // 2], 4096, sizes)
            self.assertEqual(len(server.lines()), 1, server.lines())

    def test_the_end_in_the_middle_of_texts(self):
        case = next(case for case in CASES if case["name"] == "prose-64")
        long = {"prompt": case["prompt_tokens"], "n_predict": 900, "stream": True, "ignore_eos": True}
        with self.server(slots=4) as server:
            for connection in [self.connect(server, long) for _ in range(4)]:
                self.assertTrue(connection.recv(200))
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(60), 0, server.output()[-2000:])


class Files(Plugin):
    """With the plugin as it is released."""

    def test_a_proxy_file_that_is_cut_short_while_in_use(self):
        copy = self.folder / "tuned.gguf"
        copy.write_bytes(TUNED.read_bytes())
        case = of_alpha(1.0)[0]
        with self.server(config=write_config(self.folder, tuned=copy)) as server:
            self.assert_golden(case, server.complete(case["prompt_tokens"]))
            os.truncate(copy, 1000)
            self.assert_golden(case, server.complete(case["prompt_tokens"], cache_prompt=False))
            long = next(case for case in CASES if case["name"] == "prose-200")
            self.assert_golden(long, server.complete(long["prompt_tokens"]))

    def test_the_switch_is_not_in_the_release(self):
        self.assertNotIn(b"PROXYTUNE_FAULT", harness.PLUGIN.read_bytes())
        self.assertIn(b"PROXYTUNE_FAULT", FAULTS.read_bytes())

    def test_a_configuration_that_everybody_may_write(self):
        config = write_config(self.folder)
        config.chmod(0o666)
        case = of_alpha(1.0)[0]
        with self.server(config=config) as server:
            self.assert_golden(case, server.complete(case["prompt_tokens"]), case["host_tokens"])
            self.assertRegex(server.lines()[0], "every user of this machine may write it; .* chmod o-w .*unshifted")
        config.chmod(0o664)
        with self.server(config=config) as server:
            self.assert_golden(case, server.complete(case["prompt_tokens"]))


if __name__ == "__main__":
    unittest.main(verbosity=2)
