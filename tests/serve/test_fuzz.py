"""Bodies and requests as an enemy would write them: each gets an answer, and the server serves on.

FUZZ_CASES says how many of each are tried, by default 150.
"""

import contextlib
import json
import os
import socket

from harness import CASES, completion, expected
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES_TRIED = int(os.environ.get("FUZZ_CASES", "150"))
fuzz = settings(
    max_examples=CASES_TRIED,
    deadline=None,
    derandomize="FUZZ_CASES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

TEXT = st.text(max_size=12) | st.sampled_from(
    ["", "\0", "\u202e", "<|im_end|>", "{{ 7 * 7 }}", "{% for i in range(10**9) %}", "../../etc/passwd", "(a+)+$", "[" * 200]
)
NUMBER = (
    st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, 2**64 - 1, 1e308, -0.0, 1e-320])
)
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
SCHEMA = st.recursive(
    st.sampled_from(["string", "integer", "null", "object", "array", "number", "nothing"]).map(lambda kind: {"type": kind}),
    lambda inner: st.builds(lambda s: {"type": "object", "properties": {"a": s}, "required": ["a", "b"]}, inner)
    | st.builds(lambda s, n: {"type": "array", "items": s, "minItems": n}, inner, st.sampled_from([0, 3, 10**9]))
    | st.builds(lambda s: {"anyOf": [s, {"$ref": "#"}]}, inner)
    | st.builds(lambda p: {"type": "string", "pattern": p}, TEXT),
    max_leaves=4,
)
GRAMMAR = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["regex", "lark", "json_schema", "llguidance", "x"]), "value": TEXT | SCHEMA}),
    VALUE,
)
# Each field mostly as it should be, so that others are reached.
GOOD = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(1, 100),
    "min_p": st.floats(0, 1),
    "max_tokens": st.integers(1, 4),
    "n": st.integers(1, 3),
    "stop": TEXT | st.lists(TEXT, max_size=3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stream": st.booleans(),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.5, 2),
    "logit_bias": st.dictionaries(st.integers(-1, 5000).map(str), st.floats(-100, 100), max_size=3),
    "logprobs": st.integers(0, 5) | st.booleans(),
    "echo": st.booleans(),
    "suffix": TEXT,
    "best_of": st.integers(1, 3),
    "proxy_tuning": st.fixed_dictionaries(
        {}, optional={"alpha": NUMBER, "enabled": st.booleans(), "tuned_system": TEXT, "alfa": VALUE}
    ),
    "grammar": GRAMMAR,
    "response_format": st.builds(
        lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, SCHEMA
    ),
}
# Of many fields one is nearly always wrong; what lies behind the checks is reached by few.
FEW = st.lists(st.sampled_from(sorted(GOOD)), max_size=2, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: GOOD[name] for name in sorted({"stream", *names})})
)
MANY = st.fixed_dictionaries({}, optional={name: good | good | VALUE for name, good in GOOD.items()})
FIELDS = FEW | MANY
PROMPT = TEXT | st.lists(st.integers(-1, 5000), max_size=20) | st.lists(TEXT, max_size=2) | VALUE
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool", ""]), "content": TEXT | TEXT | VALUE}, optional={"name": VALUE}
)


def check(server, reply):
    """An answer, or an error in OpenAI's form that is the client's: nothing in here may make one of the server's."""
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, (reply.status_code, reply.text)
    if reply.status_code != 200:
        assert reply.json()["error"]["message"], reply.text
    assert server.process.poll() is None


def serves_on(server):
    case = CASES[0]
    answer = completion(server.client(), case["prompt_tokens"], max_tokens=96, proxy_tuning={"alpha": case["alpha"]})
    assert answer.choices[0].text == expected(case)


def test_completions(server):
    @fuzz
    @given(PROMPT, FIELDS)
    def run(prompt, fields):
        check(server, server.post("/v1/completions", {"model": "default", "max_tokens": 2, "prompt": prompt} | fields))

    run()
    serves_on(server)


def test_chats(chat_server):
    @fuzz
    @given(st.lists(MESSAGE, min_size=1, max_size=3) | VALUE, FIELDS)
    def run(messages, fields):
        body = {"model": "default", "max_tokens": 2, "messages": messages} | fields
        check(chat_server, chat_server.post("/v1/chat/completions", body))

    run()


def test_broken_bytes(server):
    whole = json.dumps({"model": "default", "prompt": "import os", "max_tokens": 2, "proxy_tuning": {"alpha": 0.5}}).encode()
    edit = st.tuples(st.integers(0, len(whole) - 1), st.binary(max_size=3) | st.sampled_from([b'"', b"{" * 300, b"\\ud800", b"1e999"]))

    @fuzz
    @given(st.lists(edit, min_size=1, max_size=4), st.integers(0, len(whole)))
    def run(edits, end):
        body = bytearray(whole)
        for at, new in edits:
            body[at : at + 1] = new
        check(server, server.post("/v1/completions", bytes(body[:end] if end % 3 == 0 else body)))

    run()
    serves_on(server)


def test_requests_that_are_hardly_http(server):
    """What is sent over the wire need not be a request at all."""
    host, port = server.address.rsplit(":", 1)
    line = st.sampled_from(
        [b"POST /v1/completions HTTP/1.1", b"GET /metrics HTTP/1.1", b"POST /v1/completions HTTP/9.9", b"\x16\x03\x01\x02"]
    )
    header = st.sampled_from(
        [
            b"Content-Length: 5",
            b"Content-Length: -1",
            b"Content-Length: 99999999999999999999",
            b"Content-Length: 3\r\nContent-Length: 4",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: 4",
            b"Host: x",
            b"Expect: 100-continue",
            b"X: LONG",
            b": nameless",
            b"Authorization: Bearer \xff",
        ]
    )

    @fuzz
    @given(line, st.lists(header | st.binary(max_size=20), max_size=5), st.binary(max_size=40))
    def run(line, headers, body):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            sent = b"\r\n".join([line, *headers, b"", body]).replace(b"LONG", b"a" * 100_000)
            # The server may close the connection before all is said.
            with contextlib.suppress(OSError):
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        assert server.process.poll() is None

    run()
    serves_on(server)
