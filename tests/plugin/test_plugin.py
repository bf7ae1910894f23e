#!/usr/bin/env python3
"""The plugin in an unmodified llama-server and llama-simple, held against the golden files.

Standard library only; `make test-plugin` sets PROXYTUNE_PLUGIN and LLAMA_BIN.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import urllib.request

from harness import (
    BIN, CASES, FIXTURES, HOST, PLUGIN, ROOT, TUNED, UNTUNED, Server, at_once, environment, with_foreign_vocabulary, write_config,
)  # fmt: skip

# Tokens that end a text in this vocabulary; the oracle goes on after them, a server does not.
ENDS = set(range(3))


def until_end(tokens):
    """A server's share of the oracle's tokens."""
    for i, token in enumerate(tokens):
        if token in ENDS:
            return tokens[:i]
    return tokens


def of_alpha(alpha):
    return [case for case in CASES if case["alpha"] == alpha]


class Plugin(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def server(self, *arguments, config=None, **options):
        """A running server that is shifted as the configuration's keys say; `None`: alpha 1."""
        if not isinstance(config, pathlib.Path):
            config = write_config(self.folder, **(config or {}))
        server = Server(config, *arguments, **options)
        self.addCleanup(server.log.close)
        return server

    def assert_golden(self, case, answer, tokens=None):
        expected = until_end(case["tokens"] if tokens is None else tokens)
        got = until_end(answer["tokens"])
        self.assertEqual(got, expected[: len(got)], case["name"])
        self.assertEqual(len(got), min(len(expected), answer["tokens_predicted"]), case["name"])


class Greedy(Plugin):
    def test_each_case_by_itself(self):
        for alpha in sorted({case["alpha"] for case in CASES}):
            with self.server(config={"alpha": alpha}) as server:
                for case in of_alpha(alpha):
                    with self.subTest(case["name"]):
                        self.assert_golden(case, server.complete(case["prompt_tokens"]))

    def test_eight_slots_at_once(self):
        cases = (of_alpha(1.0) * 4)[:16]
        with self.server(slots=8) as server:
            answers = at_once([lambda c=c: server.complete(c["prompt_tokens"]) for c in cases])
            for case, answer in zip(cases, answers):
                self.assert_golden(case, answer)

    def test_fewer_slots_in_the_caches_than_in_the_server(self):
        cases = of_alpha(1.0)
        with self.server(config={"slots": 2}, slots=4) as server:
            answers = at_once([lambda c=c: server.complete(c["prompt_tokens"]) for c in cases])
            for case, answer in zip(cases, answers):
                self.assert_golden(case, answer)

    def test_without_a_configuration_the_library_does_nothing(self):
        environ = environment(self.folder / "none")
        del environ["PROXYTUNE_CONFIG"]
        case = CASES[0]
        server = Server(None, environ=environ)
        self.addCleanup(server.log.close)
        with server:
            libraries = pathlib.Path(f"/proc/{server.process.pid}/maps").read_text()
            self.assertIn(PLUGIN.name, libraries)
            self.assert_golden(case, server.complete(case["prompt_tokens"]), case["host_tokens"])
            self.assertEqual(server.lines(), [])

    def test_draft_model(self):
        for slots in (1, 4):
            draft = ["-md", TUNED, "--spec-type", "draft-simple", "--spec-draft-n-max", 3]
            with self.server(*draft, slots=slots) as server:
                cases = of_alpha(1.0)
                answers = at_once([lambda c=c: server.complete(c["prompt_tokens"]) for c in cases])
                for case, answer in zip(cases, answers):
                    self.assert_golden(case, answer)
                drafted = sum(a["timings"].get("draft_n", 0) for a in answers)
                accepted = sum(a["timings"].get("draft_n_accepted", 0) for a in answers)
                self.assertGreater(accepted, 0)
                print(f"draft model, {slots} slots: {accepted} of {drafted} drafted tokens accepted")


class Requests(Plugin):
    """What a request may ask for, all with one server."""

    @classmethod
    def setUpClass(cls):
        cls.folder_of_class = tempfile.TemporaryDirectory()
        config = write_config(cls.folder_of_class.name)
        cls.running = Server(config, slots=2)
        cls.running.__enter__()
        cls.case = next(case for case in CASES if case["name"] == "prose-64")

    @classmethod
    def tearDownClass(cls):
        cls.running.__exit__()
        cls.running.log.close()
        cls.folder_of_class.cleanup()

    def complete(self, **fields):
        return self.running.complete(self.case["prompt_tokens"], **fields)

    def test_probabilities_after_sampling_are_the_shifted_ones(self):
        answer = self.complete(n_predict=8, n_probs=3, post_sampling_probs=True)
        self.assert_golden(self.case, answer)
        for token, position in zip(answer["tokens"], answer["completion_probabilities"]):
            self.assertEqual(token, position["id"])

    def test_plain_probabilities_do_not_disturb(self):
        self.assert_golden(self.case, self.complete(n_predict=32, n_probs=5))

    def test_a_grammar_is_obeyed(self):
        answer = self.complete(n_predict=16, grammar='root ::= ("yes" | "no") "\\n" [0-9]+')
        self.assertRegex(answer["content"], r"^(yes|no)\n[0-9]*$")
        again = self.complete(n_predict=16, grammar='root ::= ("yes" | "no") "\\n" [0-9]+')
        self.assertEqual(answer["tokens"], again["tokens"])

    def test_a_stop_word_ends_the_text(self):
        whole = self.complete()["content"]
        word = whole[20:24]
        answer = self.complete(stop=[word])
        self.assertEqual(answer["content"], whole[: whole.index(word)])

    def test_penalties_come_after_the_shift(self):
        plain = self.complete()["tokens"]
        once = self.complete(repeat_penalty=1.3, repeat_last_n=64)["tokens"]
        self.assertNotEqual(plain, once)
        self.assertEqual(once, self.complete(repeat_penalty=1.3, repeat_last_n=64)["tokens"])

    def test_a_cached_prompt_gives_the_same(self):
        for keep in (True, True, False):
            self.assert_golden(self.case, self.complete(cache_prompt=keep))
        # A prompt that ends within the cached one, and one that leaves it.
        short = self.case["prompt_tokens"][:40]
        first = self.running.complete(short, id_slot=0)["tokens"]
        self.complete(id_slot=0)
        self.assertEqual(self.running.complete(short, id_slot=0)["tokens"], first)
        self.running.complete(short + CASES[0]["prompt_tokens"], id_slot=0)
        self.assert_golden(self.case, self.complete(id_slot=0))

    def test_a_cancelled_request_leaves_the_others_alone(self):
        body = {"prompt": self.case["prompt_tokens"], "n_predict": 400, "stream": True, "ignore_eos": True}
        request = urllib.request.Request(
            self.running.url("/completion"), json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as stream:
            stream.readline()
        for _ in range(3):
            self.assert_golden(self.case, self.complete())

    def test_seeds_are_kept(self):
        sampled = [self.complete(temperature=0.8, seed=7)["tokens"] for _ in range(2)]
        self.assertEqual(sampled[0], sampled[1])
        self.assertNotEqual(sampled[0], self.complete(temperature=0.8, seed=8)["tokens"])

    def test_several_answers_to_one_prompt(self):
        answers = self.running.post(
            "/v1/completions",
            {"prompt": self.case["prompt_tokens"], "n": 2, "max_tokens": 32, "temperature": 0},
        )
        texts = [choice["text"] for choice in answers["choices"]]
        whole = self.complete(n_predict=32)["content"]
        self.assertTrue(all(text == whole for text in texts), texts)


class Failures(Plugin):
    def unshifted(self, config, *words, **options):
        case = of_alpha(1.0)[0]
        with self.server(config=config, **options) as server:
            self.assert_golden(case, server.complete(case["prompt_tokens"]), case["host_tokens"])
            self.assert_golden(case, server.complete(case["prompt_tokens"]), case["host_tokens"])
            lines = server.lines()
        self.assertEqual(len(lines), 1, lines)
        for word in words:
            self.assertIn(word, lines[0])

    def test_no_file(self):
        self.unshifted(self.folder / "absent.toml", "absent.toml", "cannot be read", "unshifted")

    def test_unreadable_file(self):
        path = self.folder / "bad.toml"
        path.write_text("[proxy_tuning]\ntunned = 3\n")
        self.unshifted(path, "line 2", "did you mean `tuned`", "unshifted")

    def test_no_model(self):
        config = write_config(self.folder, tuned=self.folder / "absent.gguf")
        self.unshifted(config, "absent.gguf: no such file", "unshifted")

    def test_damaged_model(self):
        damaged = self.folder / "damaged.gguf"
        damaged.write_bytes(TUNED.read_bytes()[:100000])
        self.unshifted(write_config(self.folder, tuned=damaged), "damaged.gguf", "unshifted")

    def refused(self, config, word):
        """A server that may not go on does not start, and says why in one line."""
        with self.assertRaisesRegex(RuntimeError, "ended with 1") as caught, self.server(config=config):
            pass
        [line] = re.findall("proxytune: .*", str(caught.exception))
        self.assertIn(word, line)

    def test_a_server_that_may_not_go_on_refuses_to_start(self):
        damaged = self.folder / "damaged.gguf"
        damaged.write_bytes(TUNED.read_bytes()[:100000])
        foreign = with_foreign_vocabulary(TUNED, self.folder / "foreign.gguf")
        cases = ((self.folder / "absent.gguf", "absent.gguf: no such file"), (damaged, "damaged.gguf"),
                 (foreign, "vocabularies do not match"))  # fmt: skip
        for tuned, word in cases:
            with self.subTest(word):
                config = write_config(self.folder, tuned=tuned, on_error="stop")
                # With the host's name in it, misfits show before any request.
                config.write_text(f'[host]\nmodel = "{HOST}"\n' + config.read_text())
                self.refused(config, word)

    def test_a_file_that_is_itself_wrong_says_so_too(self):
        for line, word in (("alfa = 1", "did you mean `alpha`"), ("alpha =", "line 5")):
            with self.subTest(word):
                config = write_config(self.folder, on_error="stop")
                config.write_text(config.read_text() + line + "\n")
                self.refused(config, word)
        config = write_config(self.folder, on_error="stop")
        config.chmod(0o666)
        self.refused(config, "every user of this machine may write it")

    def test_requests_that_may_not_go_on_end(self):
        foreign = with_foreign_vocabulary(TUNED, self.folder / "foreign.gguf")
        for keys, word in (({"ctx": 2_000_000_000}, "MiB are free"), ({"tuned": foreign}, "vocabularies do not match")):
            with self.subTest(word), self.server(config=write_config(self.folder, on_error="stop", **keys)) as server:
                for _ in range(2):
                    answer = server.complete(CASES[0]["prompt_tokens"], n_predict=20)
                    self.assertEqual((answer["stop_type"], answer["tokens_predicted"] <= 1), ("eos", True), answer)
                [line] = server.lines()
                self.assertIn(word, line)
                self.assertIn("requests end", line)

    def test_a_history_that_a_proxy_cannot_hold(self):
        case = next(case for case in CASES if case["name"] == "prose-200")
        with self.server(config={"ctx": 256}) as server:
            tokens = server.complete(case["prompt_tokens"], n_predict=96)["tokens"]
            # The first ones are shifted, what does not fit is not; the server lives.
            self.assertEqual(tokens[:56], case["tokens"][:56])
            self.assertEqual(len(tokens), 96)
            short = CASES[0]
            self.assert_golden(short, server.complete(short["prompt_tokens"]))
            for words in ("the host's context is 1024 tokens, the proxies' 256", "do not fit its context of 256"):
                self.assertEqual(sum(words in line for line in server.lines()), 1, server.lines())
        with self.server(config={"ctx": 256, "on_error": "stop"}) as server:
            answer = server.complete(case["prompt_tokens"], n_predict=96)
            self.assertEqual(answer["stop_type"], "eos")
            self.assertLessEqual(answer["tokens_predicted"], 60)

    def test_foreign_vocabulary(self):
        foreign = with_foreign_vocabulary(TUNED, self.folder / "foreign.gguf")
        self.unshifted(write_config(self.folder, tuned=foreign), "vocabularies do not match", "foreign.gguf")

    def test_caches_beyond_all_memory(self):
        self.unshifted(write_config(self.folder, ctx=2_000_000_000), "KV cache", "MiB are free", "unshifted")


class OtherLibraries(Plugin):
    """The plugin with something that calls itself llama.cpp but is not what its header describes."""

    MAIN = "void llama_sampler_chain_add(void *, void *); int main(void) { llama_sampler_chain_add(0, 0); return 0; }"

    def say(self, code):
        compiler = ["cc", "-w", "-x", "c"]
        library = self.folder / "libllama.so"
        code = "void llama_sampler_chain_add(void * a, void * b) {}\n" + code
        subprocess.run([*compiler, "-shared", "-fPIC", "-o", library, "-"], input=code, text=True, check=True)
        program = self.folder / "program"
        command = [*compiler, "-o", program, "-", f"-L{self.folder}", f"-Wl,-rpath,{self.folder}", "-lllama"]
        subprocess.run(command, input=self.MAIN, text=True, check=True)
        env = environment(write_config(self.folder))
        done = subprocess.run([program], env=env, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stderr.splitlines()
        self.assertEqual(len(lines), 1, lines)
        return lines[0]

    def test_functions_that_are_missing_are_named(self):
        line = self.say("void llama_model_load_from_file(void) {}")
        self.assertRegex(line, r"^proxytune: .*it lacks .*llama_decode.*; build the plugin with .*unshifted$")

        # The same with all of them, and with default parameters that are not the header's.
        missing = re.search(r"it lacks ([\w, ]+);", line)[1].split(", ")
        own = {"llama_model_default_params", "llama_context_default_params"}
        stubs = "".join(f"void {name}(void) {{}}\n" for name in missing if name not in own)
        for size in (8, 900):
            fill = f"struct S {{ char c[{size}]; }};\n"
            fill += "".join(f"struct S {name}(void) {{ struct S s = {{0}}; return s; }}\n" for name in own)
            line = self.say("void llama_model_load_from_file(void) {}\n" + stubs + fill)
            self.assertRegex(line, r"laid out in another way .*unshifted$")


class Simple(Plugin):
    def run_simple(self, prompt, count, env):
        command = [BIN / "llama-simple", "-m", HOST, "-n", str(count), prompt]
        done = subprocess.run(command, env=env, capture_output=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr.decode()[-2000:])
        return done.stdout.decode(errors="replace")

    def test_a_program_that_tells_its_sampler_of_no_prompt(self):
        case = next(case for case in CASES if case["name"] == "prose-64")
        shifted = self.run_simple(case["prompt"], 32, environment(write_config(self.folder)))
        alone = self.run_simple(case["prompt"], 32, environment(None))
        self.assertNotEqual(shifted, alone)
        with self.server() as server:
            expected = server.complete(case["prompt_tokens"], n_predict=32)["content"]
        self.assertIn(expected[:80], shifted)

    def test_by_call_from_a_process_that_loads_both_libraries(self):
        config = write_config(self.folder)
        script = pathlib.Path(__file__).with_name("by_call.py")
        command = [sys.executable, script, BIN / "libllama.so", os.environ["PROXYTUNE_PLUGIN"], config]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        self.assertEqual((done.returncode, done.stdout), (0, "fine\n"), done.stderr[-3000:])

    def test_calls_in_any_order_under_sanitizers(self):
        """FUZZ_CALLS says how many on each of three threads."""
        program, broken = self.folder / "random_calls", self.folder / "broken.toml"
        broken.write_text("[proxy_tuning]\nalpha = \"much\"\n")
        source, llama = pathlib.Path(os.environ["LLAMA_DIR"]), ["-lllama", "-lggml", "-lggml-base"]
        includes = [f"-I{folder}" for folder in (source / "include", source / "ggml/include", ROOT / "include")]
        plugin = pathlib.Path(os.environ["PROXYTUNE_PLUGIN"]).resolve()
        command = ["c++", "-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", *includes]
        command += ["-o", program, pathlib.Path(__file__).with_name("random_calls.cc"), plugin, f"-L{BIN}", *llama]
        command += [f"-Wl,-rpath,{BIN}:{plugin.parent}", "-pthread"]
        subprocess.run(command, check=True)
        config = write_config(self.folder, ctx=48, slots=3)
        calls = os.environ.get("FUZZ_CALLS", "300")
        command = [program, config, self.folder / "absent.toml", broken, calls]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        self.assertEqual((done.returncode, done.stdout), (0, "fine\n"), done.stderr[-3000:])
        with open("/dev/full", "w") as full:
            done_unheard = subprocess.run([*command[:-1], "30"], stdout=subprocess.PIPE, stderr=full, text=True, timeout=600)
        self.assertEqual((done_unheard.returncode, done_unheard.stdout), (0, "fine\n"))
        # What is too long for the proxies is said once, whoever asks.
        self.assertEqual(done.stderr.count("do not fit its context of 48"), 1, done.stderr[-3000:])

    def test_other_programs_do_not_notice(self):
        env = environment(self.folder / "absent.toml")
        done = subprocess.run(["sh", "-c", "echo fine"], env=env, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "fine\n", ""))


if __name__ == "__main__":
    unittest.main(verbosity=2)
