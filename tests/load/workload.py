"""Requests as OpenAI's clients send them, of mixed lengths, and what is to be seen of their answers."""

import asyncio
import dataclasses
import json
import pathlib
import random
import time

import aiohttp

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Tokens asked for, and how often.
LENGTHS = {8: 4, 16: 4, 32: 3, 64: 2, 128: 1}
LONGEST = max(LENGTHS)
# A server that is silent for so long has lost the request.
SILENCE = 600


def prompts():
    """Token numbers, 1 to 400 of them: the golden cases' prompts and their beginnings."""
    cases = json.loads((ROOT / "tests/golden/golden.json").read_text())["cases"]
    whole = [case["prompt_tokens"] for case in cases]
    parts = {tuple(p[: max(1, len(p) * quarters // 4)]) for p in whole for quarters in (1, 2, 3, 4)}
    return sorted(parts)


@dataclasses.dataclass
class Answer:
    """What came of one request."""

    seconds: float
    tokens: int = 0
    first: float | None = None
    error: str | None = None


@dataclasses.dataclass
class Quiet:
    """What a prompt is answered when nobody else asks."""

    text: str
    tokens: int


class Client:
    """Asks a server, and holds its answers against those of a quiet one."""

    def __init__(self, server, session):
        self.server = server
        self.session = session
        self.quiet = {}

    async def learn(self):
        """Asks for each prompt's text, one after the other; the number of tokens in all."""
        for prompt in prompts():
            body = self._body(prompt, LONGEST, stream=False)
            async with self.session.post(self.server.url("/v1/completions"), json=body) as reply:
                answer = await reply.json()
                if reply.status != 200:
                    raise RuntimeError(f"{self.server.name}: {answer}")
            self.quiet[prompt] = Quiet(answer["choices"][0]["text"].lstrip(), answer["usage"]["completion_tokens"])
        return sum(quiet.tokens for quiet in self.quiet.values())

    def _body(self, prompt, length, stream):
        return {
            "model": "default",
            "prompt": list(prompt),
            "max_tokens": length,
            "temperature": 0,
            "stream": stream,
        } | self.server.fields

    async def ask(self, prompt, length, stream):
        """One request; never raises."""
        began = time.monotonic()
        answer = Answer(0)
        try:
            url, body = self.server.url("/v1/completions"), self._body(prompt, length, stream)
            async with self.session.post(url, json=body) as reply:
                if reply.status != 200:
                    answer.error = f"status {reply.status}: {(await reply.text())[:200]}"
                elif stream:
                    text, reason = await self._read(reply, answer, began)
                    self._check(answer, prompt, length, text, reason)
                else:
                    whole = await reply.json()
                    choice = whole["choices"][0]
                    self._check(answer, prompt, length, choice["text"], choice["finish_reason"])
                    if answer.error is None and whole["usage"]["completion_tokens"] != answer.tokens:
                        answer.error = f"{whole['usage']} for {answer.tokens} tokens"
        except (aiohttp.ClientError, asyncio.TimeoutError, KeyError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"[:200]
        answer.seconds = time.monotonic() - began
        return answer

    async def _read(self, reply, answer, began):
        text, reason, ended = "", None, False
        async for line in reply.content:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                ended = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(event["error"])
            if not event["choices"]:
                continue
            choice = event["choices"][0]
            if choice["text"] and answer.first is None:
                answer.first = time.monotonic() - began
            text += choice["text"]
            reason = choice["finish_reason"] or reason
        if not ended:
            raise ValueError("the stream has no end")
        return text, reason

    def _check(self, answer, prompt, length, text, reason):
        """All tokens are there, and those that came when nobody else asked."""
        quiet = self.quiet[prompt]
        # mistral.rs leaves out space at the beginning of a whole answer, and not in a stream.
        text = text.lstrip()
        answer.tokens = min(length, quiet.tokens)
        cut = length < quiet.tokens or quiet.tokens == LONGEST
        if reason != ("length" if cut else "stop"):
            answer.error = f"finish_reason {reason} after {length} of {quiet.tokens} tokens"
        # The end of a text that is cut may be half a character.
        elif not quiet.text.startswith(text.rstrip("\ufffd")) or (not cut and text != quiet.text):
            answer.error = f"another text: {text!r} instead of {quiet.text[: len(text)]!r}"


@dataclasses.dataclass
class Cell:
    """So many clients for so long."""

    clients: int
    seconds: float
    answers: list
    # Seconds since the server's start, and MiB.
    memory: list

    def tokens(self):
        return sum(answer.tokens for answer in self.answers if answer.error is None)

    def errors(self):
        return [answer.error for answer in self.answers if answer.error is not None]

    def quantile(self, q, of=lambda answer: answer.seconds):
        """A latency in seconds that the share `q` of the answers did not exceed."""
        values = sorted(v for v in map(of, self.answers) if v is not None)
        return values[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


async def run(client, clients, seconds):
    """`clients` that ask again as soon as they are answered, for `seconds` and until the last answer."""
    began = time.monotonic()
    answers, memory = [], []
    at_end = asyncio.Event()

    async def one(number):
        dice = random.Random(number)
        while time.monotonic() - began < seconds:
            prompt = dice.choice(list(client.quiet))
            length = dice.choices(list(LENGTHS), LENGTHS.values())[0]
            answers.append(await client.ask(prompt, length, stream=dice.random() < 0.5))

    async def watch():
        while not at_end.is_set():
            memory.append((client.server.age(), client.server.resident()))
            try:
                await asyncio.wait_for(at_end.wait(), 0.5)
            except asyncio.TimeoutError:
                pass
        memory.append((client.server.age(), client.server.resident()))

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(one(number) for number in range(clients)))
    took = time.monotonic() - began
    at_end.set()
    await watching
    return Cell(clients, took, answers, memory)


def session():
    """Connections without a limit of their own, each for one request: llama-server closes those that are kept as it likes, and a request
    that crosses that is lost."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=timeout)
