"""Chats and questions put to unmodified servers with a chat model, held against the local path."""

import json

import openai
import pytest

import harness
from harness import SMOLLM2, local, proxytune, remote

# The tuned proxy alone is told something, so that the same weights make a shift.
PROXIES = ["--tuned", SMOLLM2, "--untuned", SMOLLM2, "--tuned-system", "You answer like a pirate, in capital letters."]
QUESTIONS = ["Name three colours.", "Where is Paris?", "What is a cat?", "Say hello.", "What is two and two?", "Who are you?"]
TASK = harness.ROOT / "tests/openai/realtimeqa.jsonl"

EXAMPLES = """Question: Which of these swims?
A. Stone
B. Fish
C. Tree
D. House
Answer: B

Question: Which of these is a number?
A. Seven
B. Red
C. Dog
D. Table
Answer: A

"""


@pytest.fixture(scope="module", params=harness.SERVERS)
def server(request):
    with harness.SERVERS[request.param](SMOLLM2) as url:
        yield url


@pytest.fixture
def name(request):
    return request.node.callspec.params["server"]


def chat(question, *flags):
    return ["--chat", "--prompt", question, "--alpha", 1, *flags]


def test_the_first_token_of_an_answer_is_the_local_paths(server, name):
    equal = changed = 0
    for question in QUESTIONS:
        flags = chat(question, "--max-tokens", 1)
        here = local(*flags, "--explain", host=SMOLLM2, proxies=PROXIES)
        there = remote(server, *flags, "--host-api", "chat", proxies=PROXIES)
        stats = there["stats"]
        assert (there["way"], stats["calls"], stats["unshifted"], stats["coverage"]) == ("reweigh", 1, 0, 1.0), there
        same = here["text"].strip() == there["text"].strip()
        equal += same
        # Each engine multiplies quantised weights in its own way: what was nearly a tie may fall otherwise.
        shares = {c["text"].strip(): c["p"] for c in here["positions"][0]["candidates"]}
        assert same or shares[there["text"].strip()] > 0.7 * max(shares.values()), (question, there["text"], shares)
        changed += stats["shifted"]
    print(f"\n{name}, chat: {equal} of {len(QUESTIONS)} first tokens, {changed} of them by the shift")
    assert equal > len(QUESTIONS) / 2 and changed > 0


def test_an_answer_goes_on_where_the_server_continues_one(server, name):
    flags = ["--host-api", "chat", "--max-tokens", 16]
    if name != "llama-server":
        command = ["generate", "--engine", "openai", "--host-url", server, "--host-model", server.model, *PROXIES]
        status, _, err = proxytune(*command, *chat(QUESTIONS[0]), *flags)
        assert status == 2 and "does not continue an answer" in err, err
        return
    ways = {"one by one": ["--speculate", "off"], "drafted": []}
    for way, speculate in ways.items():
        equal = calls = tokens = parted = 0
        for question in QUESTIONS:
            here = local(*chat(question, "--max-tokens", 16), host=SMOLLM2, proxies=PROXIES)
            there = remote(server, *chat(question), *flags, *speculate, proxies=PROXIES)
            kept = harness.common_tokens(there["tokens"], here["text"])
            calls, tokens, equal = calls + there["stats"]["calls"], tokens + len(there["tokens"]), equal + kept
            # An answer so far is sent as text, which may be split otherwise than it was written.
            parted += kept < len(there["tokens"])
        print(f"\n{name}, chat, {way}: {equal} of {tokens} tokens, {parted} of {len(QUESTIONS)} answers parted; "
              f"{calls} calls, {calls / tokens:.2f} a token")
        assert equal > tokens / 2 and (calls == tokens if speculate else calls < tokens)


def test_a_chat_through_the_gateway(server, name):
    tokens = 8 if name == "llama-server" else 1
    question = {"model": server.model, "messages": [{"role": "user", "content": QUESTIONS[1]}], "max_tokens": tokens, "temperature": 0}
    told = {"proxy_tuning": {"tuned_system": PROXIES[-1]}}
    with harness.gateway(server, "--alpha", 1, "--ctx", 512, proxies=PROXIES[:4]) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        whole = client.chat.completions.create(**question, extra_body=told)
        parts = list(client.chat.completions.create(**question, extra_body=told, stream=True))
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert text == whole.choices[0].message.content and text
        assert whole.usage.completion_tokens == tokens and parts[-1].choices[0].finish_reason == "length"
        assert whole.proxy_tuning["way"] == "reweigh" and whole.proxy_tuning["unshifted"] == 0
        there = remote(server, *chat(QUESTIONS[1], "--max-tokens", tokens), "--host-api", "chat", proxies=PROXIES)
        assert text == there["text"]
        if tokens == 1:
            with pytest.raises(openai.BadRequestError, match="does not continue an answer"):
                client.chat.completions.create(**question | {"max_tokens": 2}, extra_body=told)


def answers(tmp_path, name, proxies, *host):
    """Questions whose choices are all visible, with what each column made of them."""
    journal, preamble = tmp_path / f"{name}.jsonl", tmp_path / "preamble.txt"
    preamble.write_text(EXAMPLES)
    flags = ["--task", TASK, "--preamble", preamble, "--alpha", "0.5,1", "--format", "json", "--journal", journal, "--fresh"]
    status, out, err = proxytune("eval", *host, *proxies, *flags)
    assert status == 0, err
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    records = {line["key"]: line["item"] for line in lines if line.get("key", "").startswith("question")}
    assert len(records) == 8, lines
    choices = [len(json.loads(line)["choices"]) for line in TASK.read_text().splitlines()]
    visible = [key for key, item in records.items() if item["visible"] == choices[int(key.split()[1])]]
    return {key: records[key]["right"] for key in visible}, json.loads(out)


def compared(tmp_path, server, model, proxies):
    """How many questions have all their choices visible, how many verdicts there are on these, and how many are the local path's."""
    here, _ = answers(tmp_path, "here", proxies, "--host", model)
    api = ["--engine", "openai", "--host-url", server, "--host-model", server.model]
    there, report = answers(tmp_path, "there", proxies, *api)
    same = [here[key][column] == verdict for key in there for column, verdict in there[key].items()]
    print(f"\n{model.stem}, multiple choice: {len(there)} of 8 questions with all choices visible, {sum(same)} of {len(same)} "
          f"verdicts as locally; {report['notes'][-1]}")
    return len(there), len(same), sum(same)


def test_questions_whose_choices_are_visible_are_answered_as_locally(server, name, tmp_path):
    visible, verdicts, equal = compared(tmp_path, server, SMOLLM2, PROXIES)
    assert visible >= 4 and equal >= 0.9 * verdicts
    with harness.SERVERS[name]() as exact:
        visible, verdicts, equal = compared(tmp_path, exact, harness.HOST, harness.PROXIES)
    assert visible > 0 and equal == verdicts
