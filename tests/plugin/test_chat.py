#!/usr/bin/env python3
"""Chats with SmolLM2-135M-Instruct, by its own template, in an unmodified llama-server with the plugin.

All three models are the same but for one factor, so that the shift is known without an oracle: the tuned proxy's logits are twice
those of the others. With alpha 1 the host's are doubled too, and a temperature of 2 takes that back.
`scripts/test-plugin.sh` sets PROXYTUNE_SMOLLM2 to the model.
"""

import json
import os
import pathlib
import struct
import tempfile
import unittest
import urllib.request

from harness import Server, at_once, write_config
from test_plugin import Plugin

MODEL = pathlib.Path(os.environ["PROXYTUNE_SMOLLM2"]).resolve()
QUESTIONS = ("What is the capital of France?", "Name three colours.", "Write a line about the sea.", "What is two and three?")
# Doubling changes no order, so the same tokens are left in each.
FOUR = {"top_k": 4, "top_p": 1.0, "min_p": 0.0, "logprobs": True, "top_logprobs": 4, "post_sampling_probs": True}


def with_doubled_logits(source, target):
    """A copy of a GGUF file whose last tensor, in the file as well as in its list, is the norm before the logits."""
    data = bytearray(source.read_bytes())
    name = b"output_norm.weight"
    at = data.index(name) + len(name)
    dimensions, width, kind, offset = struct.unpack_from("<IQIQ", data, at)
    begin = -(-(at + 24) // 32) * 32 + offset
    assert (dimensions, kind) == (1, 0) and begin + 4 * width == len(data), f"{source} is laid out in another way"
    weights = struct.unpack_from(f"<{width}f", data, begin)
    struct.pack_into(f"<{width}f", data, begin, *(2 * weight for weight in weights))
    target.write_bytes(data)
    return target


def chat(server, *contents, **fields):
    """The one choice of an answer; contents are the user's and the assistant's in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    body = {"messages": messages, "max_tokens": 24, "temperature": 0} | fields
    return server.post("/v1/chat/completions", body)["choices"][0]


class Chat(Plugin):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        tuned = with_doubled_logits(MODEL, pathlib.Path(folder.name) / "doubled.gguf")
        config = write_config(folder.name, tuned, MODEL)
        for name, config in (("alone", None), ("shifted", config)):
            server = Server(config, slots=4, model=MODEL)
            cls.addClassCleanup(server.log.close)
            setattr(cls, name, server.__enter__())
            cls.addClassCleanup(server.__exit__)

    def positions(self, server, temperature, *contents):
        """The sampled tokens of an answer, each with the likeliest ones at its place and their probabilities."""
        choice = chat(server, *contents, max_tokens=12, temperature=temperature, seed=5, **FOUR)
        entries = choice["logprobs"]["content"]
        return [(entry["id"], {top["id"]: top["prob"] for top in entry["top_probs"]}) for entry in entries]

    def assert_alike(self, got, expected):
        """Returns how many places were compared: up to where the texts part, by a draw on the border between two tokens."""
        for compared, ((token, tops), (drawn, likely)) in enumerate(zip(got, expected), 1):
            # Host and proxies differ in the precision of their caches, and batches of weights in 4 bits in their rounding.
            for candidate, probability in likely.items():
                if candidate in tops or probability > 0.3:
                    self.assertAlmostEqual(tops.get(candidate, 0), probability, delta=0.1, msg=f"{compared}: {tops} {likely}")
            if token != drawn:
                return compared
        return min(len(got), len(expected))

    def test_what_is_reported_is_shifted_once(self):
        differences = []
        for question in QUESTIONS:
            asked = ((self.alone, 2.0), (self.alone, 1.0), (self.shifted, 2.0))
            halved, plain, shifted = (max(self.positions(*how, question)[0][1].values()) for how in asked)
            self.assertAlmostEqual(shifted, plain, delta=0.05)
            differences.append(plain - halved)
        self.assertGreater(max(differences), 0.15)
        self.assertRegex(self.shifted.lines()[-1], "shifting by 1 .*49152 of 49152 tokens in common")

    def test_conversations_at_once(self):
        openings = [(question,) for question in QUESTIONS]
        answers = [chat(self.alone, *opening)["message"]["content"] for opening in openings]
        self.assertTrue(all(answers), answers)
        # The second turn finds the first one in the caches.
        for turns in (openings, [(q, a, "Say it in other words.") for q, a in zip(QUESTIONS, answers)]):
            expected = [self.positions(self.alone, 1.0, *contents) for contents in turns]
            got = at_once([lambda c=c: self.positions(self.shifted, 2.0, *c) for c in turns])
            compared = [self.assert_alike(*pair) for pair in zip(got, expected)]
            self.assertGreater(sum(compared), 16, compared)

    def test_a_stream_is_the_answer_in_pieces(self):
        expected = chat(self.shifted, QUESTIONS[0], cache_prompt=False)["message"]["content"]
        body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 24, "temperature": 0}
        body |= {"stream": True, "cache_prompt": False}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.shifted.url("/v1/chat/completions"), json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as reply:
            lines = [line[6:] for line in reply.read().decode().splitlines() if line.startswith("data: {")]
        parts = [choice["delta"].get("content") or "" for line in lines for choice in json.loads(line)["choices"]]
        self.assertGreater(len(parts), 3)
        self.assertEqual("".join(parts), expected)


if __name__ == "__main__":
    unittest.main(verbosity=2)
