"""The server as those see it who run it: load, clients that leave, failures, keys, configuration, the end."""

import asyncio
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time

import httpx
import httpx2
import openai
import pytest
from harness import CASES, FIXTURES, HOST, PROXYTUNE, ROOT, TUNED, UNTUNED, Server, completion, expected, run_async, trio

CASE = next(c for c in CASES if c["name"] == "prose-64")


def test_a_client_that_leaves_in_mid_stream(server, client):
    before = server.metrics()
    for _ in range(4):
        stream = completion(client, [689], max_tokens=900, stream=True)
        for _, _ in zip(range(3), stream):
            pass
        stream.close()
    server.settle(10)
    after = server.metrics()
    gone = 'proxytune_lost_clients_total{reason="Gone"}'
    assert after[gone] - before.get(gone, 0) == 4
    # They ended long before their 900 tokens.
    generated = "proxytune_generated_tokens_total"
    assert after[generated] - before[generated] < 4 * 200
    assert completion(client, CASE["prompt_tokens"]).choices[0].text == expected(CASE)


def post_by_hand(server, body):
    """A connection over which a completion is asked for, and nothing has been read."""
    host, port = server.address.split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect((host, int(port)))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)
    return connection


def test_a_client_that_does_not_wait_for_its_answer(server, client):
    for _ in range(4):
        body = b'{"model": "default", "prompt": [689], "max_tokens": 900, "temperature": 0, "n": 2}'
        post_by_hand(server, body).close()
    server.settle(10)
    assert completion(client, CASE["prompt_tokens"]).choices[0].text == expected(CASE)


def test_a_client_that_stops_reading_holds_nobody_up(server, client):
    body = b'{"model": "default", "prompt": [689], "max_tokens": 900, "temperature": 0, "stream": true}'
    deaf = [post_by_hand(server, body) for _ in range(4)]
    assert completion(client, CASE["prompt_tokens"]).choices[0].text == expected(CASE)
    # Their texts come to an end without anybody reading them.
    server.settle()
    for connection in deaf:
        connection.close()


def test_half_requests_hold_nobody_up(server, client):
    """Connections that never come to the end of what they ask, while others are answered."""
    host, port = server.address.split(":")
    body = b'{"model": "default", "prompt": [689], "max_tokens": 900, "temperature": 0}'
    whole = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    before = server.metrics()
    half = [socket.create_connection((host, int(port))) for _ in range(60)]
    for i, connection in enumerate(half):
        connection.sendall(whole[: len(whole) * (i % 10) // 10])
    for _ in range(3):
        assert completion(client, CASE["prompt_tokens"]).choices[0].text == expected(CASE)
    for connection in half:
        connection.close()
    assert completion(client, CASE["prompt_tokens"]).choices[0].text == expected(CASE)
    after = server.metrics()
    # What was not asked has not been computed.
    generated = "proxytune_generated_tokens_total"
    assert after[generated] - before.get(generated, 0) <= 4 * 96


def test_a_log_on_a_full_disk(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PROXYTUNE, "serve", *trio(), "--port", port, "-vv"]
    with open("/dev/full", "w") as full:
        server = subprocess.Popen([str(c) for c in command], stdout=full, stderr=full, cwd=ROOT)
    try:
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/health").text == "OK":
                    break
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        assert completion(client, CASE["prompt_tokens"]).choices[0].text == expected(CASE)
        # An error, which the server writes of.
        with pytest.raises(openai.BadRequestError):
            completion(client, CASE["prompt_tokens"], temperature=-1)
        assert completion(client, CASE["prompt_tokens"]).choices[0].text == expected(CASE)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()


def test_a_thousand_requests_at_once(server):
    async def flood():
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        async with server.async_client(http_client=httpx2.AsyncClient(limits=limits, timeout=300)) as client:
            cases = [c for c in CASES if c["alpha"] == 1.0 and len(c["prompt_tokens"]) < 100]

            async def one(index):
                case = cases[index % len(cases)]
                try:
                    answer = await client.completions.create(
                        model="default", prompt=case["prompt_tokens"], max_tokens=8, temperature=0
                    )
                    return answer.choices[0].text == expected(case)[: len(answer.choices[0].text)]
                except openai.RateLimitError:
                    return None

            for case in cases:
                expected(case)
            return await asyncio.gather(*(one(i) for i in range(1000)))

    results = run_async(flood())
    assert False not in results
    assert results.count(True) >= 1 + 256
    assert completion(server.client(), CASE["prompt_tokens"]).choices[0].text == expected(CASE)


def test_requests_that_come_all_at_once_wait_for_their_turn():
    with Server("--max-waiting", "4") as server:
        async def flood():
            async with server.async_client() as client:
                ask = lambda: client.completions.create(model="default", prompt=[689], max_tokens=200, temperature=0)  # noqa: E731
                return await asyncio.gather(*(ask() for _ in range(12)), return_exceptions=True)

        results = run_async(flood())
        refused = [r for r in results if isinstance(r, openai.RateLimitError)]
        assert len(refused) == 7 and refused[0].response.headers["retry-after"]
        assert len({r.choices[0].text for r in results if r not in refused}) == 1


@pytest.mark.parametrize("policy", ["host", "stop"])
def test_a_proxy_that_fails_in_mid_run(policy, tmp_path):
    """Its context is full after a few tokens, which only its own request feels."""
    config = tmp_path / "proxytune.toml"
    config.write_text(f'[proxy_tuning]\nctx = 40\non_error = "{policy}"\n')
    short = next(c for c in CASES if c["name"] == "two-tokens")
    with Server("--config", config) as server:
        client = server.client()
        results = {}

        def ask(name, **fields):
            try:
                results[name] = completion(client, **fields)
            except openai.APIError as error:
                results[name] = error

        long = {"prompt": [689], "max_tokens": 80}
        prompt_too_long = {"prompt": CASE["prompt_tokens"], "max_tokens": 8}
        good = {"prompt": short["prompt_tokens"], "max_tokens": 30}
        jobs = {"long": long, "good": good, "full": prompt_too_long}
        threads = [threading.Thread(target=ask, args=(name,), kwargs=fields) for name, fields in jobs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results["good"].choices[0].text == expected(short)[: len(results["good"].choices[0].text)]
        assert "unshifted" not in results["good"].proxy_tuning
        if policy == "host":
            assert results["long"].usage.completion_tokens == 80
            assert results["long"].proxy_tuning["unshifted"] > 0
            assert "context" in results["long"].proxy_tuning["error"]
            assert results["full"].proxy_tuning["unshifted"] == 8
        else:
            for name in ("long", "full"):
                assert isinstance(results[name], openai.BadRequestError), results[name]
                assert results[name].code == "context_length_exceeded"
            with pytest.raises(openai.APIError, match="context"):
                list(completion(client, **long, stream=True))
        assert server.metrics()['proxytune_failures_total{kind="length"}'] > 0


def test_proxy_files_that_vanish(tmp_path):
    for vanished, name in ((TUNED, "--tuned"), (UNTUNED, "--untuned")):
        files = {"tuned": TUNED, "untuned": UNTUNED} | {name[2:]: tmp_path / "gone.gguf"}
        command = [PROXYTUNE, "serve", "--port", "0", *trio(**files)]
        outcome = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, cwd=ROOT)
        assert outcome.returncode == 2 and "gone.gguf" in outcome.stderr, outcome.stderr
    copy = shutil.copy(TUNED, tmp_path)
    with Server(models=trio(tuned=copy)) as server:
        (tmp_path / TUNED.name).unlink()
        assert completion(server.client(), CASE["prompt_tokens"]).choices[0].text == expected(CASE)


def test_proxy_files_that_are_cut_short_while_in_use(tmp_path):
    copies = [pathlib.Path(shutil.copy(path, tmp_path)) for path in (HOST, TUNED, UNTUNED)]
    with Server(models=trio(*copies)) as server:
        assert completion(server.client(), CASE["prompt_tokens"]).choices[0].text == expected(CASE)
        for copy in copies[1:]:
            os.truncate(copy, 1000)
        for case in (CASE, next(c for c in CASES if c["name"] == "prose-200")):
            assert completion(server.client(), case["prompt_tokens"]).choices[0].text == expected(case)


def test_caches_beyond_all_memory(tmp_path):
    config = tmp_path / "proxytune.toml"
    config.write_text("[proxy_tuning]\nctx = 100000000\n")
    with pytest.raises(RuntimeError, match="ended with 2(.|\n)*MiB are free"):
        Server("--config", config).__enter__()


def test_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    with Server("--api-key-file", keys, "--api-key-env", "A_KEY", env={"A_KEY": "third"}) as server:
        for key in ("first", "second", "third"):
            assert completion(server.client(api_key=key), "import os", max_tokens=2).choices
        for key in ("fourth", "firs", "first\u00e9".encode().hex()):
            with pytest.raises(openai.AuthenticationError):
                completion(server.client(api_key=key), "import os")
        for path in ("/v1/models", "/metrics", "/v1/responses"):
            assert httpx.get(server.url(path)).status_code == 401
        assert httpx.get(server.url("/health")).text == "OK"
        assert "first" not in server.output() and "third" not in server.output()
    empty = Server("--api-key-env", "NO_SUCH_KEY")
    with pytest.raises(RuntimeError, match="api_key_env"):
        empty.__enter__()


def test_the_most_talkative_log_has_no_key(tmp_path):
    """Not those that open the server, not what others showed instead."""
    keys = tmp_path / "keys"
    keys.write_text("sk-of-the-file\n")
    env = {"A_KEY": "sk-of-the-variable", "PROXYTUNE_LOG": "trace", "RUST_LOG": "trace"}
    with Server("-vv", "--api-key-file", keys, "--api-key-env", "A_KEY", env=env) as server:
        for key in ("sk-of-the-file", "sk-of-the-variable"):
            assert completion(server.client(api_key=key), "import os", max_tokens=2).choices
            assert httpx.get(server.url("/v1/models"), headers={"Authorization": f"Bearer {key}"}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            completion(server.client(api_key="sk-wrong"), "import os")
        said = server.output()
    assert "TRACE" in said
    for secret in ("sk-of-the-file", "sk-of-the-variable", "sk-wrong"):
        assert secret not in said


def test_routes_of_mistralrs_are_there(server):
    assert httpx.get(server.url("/health")).text == "OK"
    assert httpx.get(server.url("/v1/system/info")).status_code == 200
    answer = httpx.get(server.url("/v1/models")).json()
    assert answer["object"] == "list" and answer["data"][0]["id"] == "default"


def test_metrics(server, client):
    before = server.metrics()
    completion(client, CASE["prompt_tokens"], max_tokens=10)
    after = server.metrics()
    grown = lambda name: after[f"proxytune_{name}"] - before.get(f"proxytune_{name}", 0)  # noqa: E731
    assert grown('requests_total{route="completions",status="200"}') == 1
    assert grown("prompt_tokens_total") == len(CASE["prompt_tokens"])
    assert grown("generated_tokens_total") == 10
    assert grown("positions_total") == 10
    for model in ("host", "tuned", "untuned", "wait"):
        assert grown(f"{model}_seconds_total") > 0, model
    assert 0 < grown("rounds_total") <= grown("round_sequences_total")


def test_a_file_of_mistralrs_with_a_section_added(tmp_path):
    config = tmp_path / "mistralrs.toml"
    config.write_text(f"""
        command = "serve"
        [runtime]
        max_seqs = 4
        [paged_attn]
        mode = "auto"
        [[models]]
        kind = "auto"
        model_id = "{FIXTURES}"
        [models.format]
        format = "gguf"
        quantized_file = "{HOST.name}"
        [proxy_tuning]
        tuned = "{TUNED}"
        untuned = "{UNTUNED}"
    """)
    with Server("--config", config, models=[]) as server:
        assert server.address.startswith("127.0.0.1:")
        answer = completion(server.client(), CASE["prompt_tokens"], model=str(FIXTURES))
        assert answer.choices[0].text == expected(CASE)
    config.write_text(config.read_text().replace("max_seqs", "max_seq"))
    wrong = Server("--config", config, models=[])
    with pytest.raises(RuntimeError, match="did you mean `max_seqs`"):
        wrong.__enter__()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_finish_before_the_end(how):
    with Server() as server:
        client = server.client()
        stream = completion(client, CASE["prompt_tokens"], stream=True)
        first = next(iter(stream)).choices[0].text
        codes = []
        stopping = threading.Thread(target=lambda: codes.append(server.stop(how)))
        stopping.start()
        text = first + "".join(chunk.choices[0].text for chunk in stream)
        stopping.join()
        assert text.lstrip() == expected(CASE) and codes == [0]


def test_requests_that_run_too_long_are_cut_off():
    with Server("--shutdown-timeout", "1") as server:
        stream = completion(server.client(), [689], max_tokens=900, stream=True, n=8)
        next(iter(stream))
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 20


def test_web_pages_from_elsewhere(tmp_path):
    config = tmp_path / "proxytune.toml"
    config.write_text('[server]\nallowed_origins = ["https://example.org"]\napi_key_env = "A_KEY"\n')
    with Server("--config", config, env={"A_KEY": "key"}) as server:
        for path in ("/v1/completions", "/v1/responses"):
            for origin, allowed in (("https://example.org", "https://example.org"), ("https://example.com", None)):
                headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
                # Browsers ask without a key.
                reply = httpx.request("OPTIONS", server.url(path), headers=headers)
                assert reply.status_code == 200
                assert reply.headers.get("access-control-allow-origin") == allowed


def test_a_client_that_leaves_a_route_of_mistralrs(chat_server, chat_client):
    body = {"model": "default", "input": "Name three colours.", "max_output_tokens": 64}
    # A fast machine may have answered by then.
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(chat_server.url("/v1/responses"), json=body, timeout=0.2)
    answer = httpx.post(chat_server.url("/v1/responses"), json=body | {"max_output_tokens": 8}, timeout=300)
    assert answer.status_code == 200 and answer.json()["output"]
    said = chat_client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "hi"}], max_tokens=4
    )
    assert said.choices[0].message.content


def test_a_client_that_sends_nothing_or_half_does_not_keep_others_out():
    with Server("--client-timeout", "1", "--max-connections", "1") as server:
        host, port = server.address.rsplit(":", 1)
        post = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"
        for sent, answer in ((b"", b""), (b"GET /hea", b""), (post, b"HTTP/1.1 408 ")):
            with socket.create_connection((host, int(port))) as lazy:
                lazy.sendall(sent)
                assert completion(server.client(), CASE["prompt_tokens"]).choices[0].text == expected(CASE)
                assert lazy.recv(4096)[: len(answer) or 1] == answer
