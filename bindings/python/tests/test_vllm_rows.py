"""The vLLM processor by itself: rows that are added, removed, moved and swapped, on the CPU and on another device."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import vllm_server
from conftest import CASES, TOLERANCE, TUNED, UNTUNED, golden

pytest.importorskip("vllm")
import torch  # noqa: E402
from proxytune.vllm import ProxyTuning, plugin  # noqa: E402
from proxytune.vllm.elsewhere import shifted  # noqa: E402
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality  # noqa: E402

if not vllm_server.MODEL:
    pytest.skip("PROXYTUNE_VLLM_MODEL is not set: run `make test-vllm`", allow_module_level=True)

ONE_WAY, SWAP = MoveDirectionality.UNIDIRECTIONAL, MoveDirectionality.SWAP
A, B, C = (case for case in CASES if case["alpha"] == 1.0 and case["name"] in ("one-token", "code-17", "prose-64"))


def engine(proxies=None, speculative=None, v2=False, vocab=4096, **parallel):
    """What vLLM says of an engine."""
    return SimpleNamespace(
        additional_config={"proxytune": proxies} if proxies else {},
        model_config=SimpleNamespace(
            logits_processors=[ProxyTuning], tokenizer=vllm_server.MODEL, tokenizer_revision=None, max_model_len=1024,
            get_vocab_size=lambda: vocab,
        ),
        parallel_config=SimpleNamespace(**{"tensor_parallel_size": 1, "pipeline_parallel_size": 1} | parallel),
        scheduler_config=SimpleNamespace(max_num_seqs=16),
        speculative_config=speculative,
        use_v2_model_runner=v2,
    )  # fmt: skip


def processor(device="cpu", vocab=4096, **keys):
    tuning = {"tuned": str(TUNED), "untuned": str(UNTUNED), "placement": "in-turn"} | keys
    return ProxyTuning(engine({"proxy_tuning": tuning}, vocab=vocab), SimpleNamespace(type=device), False)


def params(**extra):
    return SimpleNamespace(extra_args=extra or None, all_stop_token_ids={3}, eos_token_id=0)


def added(row, case, generated, **extra):
    return row, params(**extra), case["prompt_tokens"], generated


@pytest.mark.parametrize("options", [{}, {"device": "elsewhere"}, {"placement": "together"}], ids=str)
def test_rows_move(options):
    tuning, texts = processor(**options), [[], [], []]

    def step(position, cases, removed=(), new=(), moved=()):
        """One step of the engine, whose rows are then those of `cases`; `None`: not shifted."""
        update = BatchUpdate(len(cases), removed, new, moved) if removed or new or moved else None
        tuning.update_state(update)
        logits = torch.ones(len(cases), 4096)
        tuning.apply(logits)
        for row, case in enumerate(cases):
            expected = 0 if case is None else golden(f"{case['name']}.offset")[position]
            np.testing.assert_allclose(logits[row].numpy() - 1, expected, atol=TOLERANCE)

    def generate(count):
        for text, case in zip(texts, (A, B, C)):
            text[:] = case["tokens"][:count]

    a, b, c = (added(row, case, texts[row]) for row, case in enumerate((A, B, C)))
    step(0, [A, B, C], new=[a, b, c])
    generate(1)
    step(1, [A, B, C])
    step(1, [C, B, A], moved=[(0, 2, SWAP)])
    generate(17)
    step(2, [C, A], removed=[1], moved=[(2, 1, ONE_WAY)])
    off = added(1, B, [], proxy_tuning_enabled=False)
    step(2, [C, None, A], new=[(2, params(), A["prompt_tokens"], texts[0]), off])
    step(2, [A, None], removed=[0], moved=[(2, 0, ONE_WAY)])
    generate(95)
    step(3, [B, A], new=[(0, params(), B["prompt_tokens"], texts[1]), (1, params(), A["prompt_tokens"], texts[0])])
    assert tuning.processor.stats["failed"] == 0


def test_a_token_that_is_not_known_yet_is_waited_for():
    tuning, text = processor(placement="together"), []
    tuning.update_state(BatchUpdate(1, [], [added(0, A, text)], []))
    tuning.apply(torch.zeros(1, 4096))
    text.append(-1)
    tuning.update_state(None)
    text[0] = A["tokens"][0]
    logits = torch.zeros(1, 4096)
    tuning.apply(logits)
    np.testing.assert_allclose(logits[0], golden(f"{A['name']}.offset")[1], atol=TOLERANCE)


@pytest.mark.parametrize("device", ["cpu", "elsewhere"])
def test_a_failure_ends_the_request_where_the_configuration_says_so(device):
    tuning = processor(device, on_error="stop")
    long = (1, params(), [5] * 2000, [])
    tuning.update_state(BatchUpdate(2, [], [added(0, A, []), long], []))
    logits = torch.ones(2, 4096)
    tuning.apply(logits)
    np.testing.assert_allclose(logits[0] - 1, golden(f"{A['name']}.offset")[0], atol=TOLERANCE)
    assert logits[1].isfinite().nonzero().flatten().tolist() == [0, 3]


@pytest.mark.parametrize("options", [{}, {"device": "elsewhere"}, {"placement": "together"}], ids=str)
def test_one_pass_of_each_proxy_serves_the_batch(options):
    tuning, texts = processor(**options), [[] for _ in range(16)]
    new = [added(row, CASES[row % len(CASES)], text, proxy_tuning_alpha=0.5) for row, text in enumerate(texts)]
    for step in range(4):
        before = tuning.processor.stats["rounds"]
        tuning.update_state(None if step else BatchUpdate(16, [], new, []))
        tuning.apply(torch.zeros(16, 4096))
        if step:
            assert tuning.processor.stats["rounds"] == before + 1
        for row, text in enumerate(texts):
            text.append(CASES[row % len(CASES)]["tokens"][step])


def test_the_proxies_start_before_the_hosts_pass():
    tuning, text = processor(placement="together"), []
    tuning.update_state(BatchUpdate(1, [], [added(0, A, text)], []))
    deadline = time.monotonic() + 60
    while not tuning.processor.stats["rounds"] and time.monotonic() < deadline:
        time.sleep(0.001)
    # Of `apply` nobody has spoken yet.
    assert tuning.processor.stats["rounds"] == 1
    logits = torch.zeros(1, 4096)
    tuning.apply(logits)
    assert tuning.processor.stats["rounds"] == 1
    np.testing.assert_allclose(logits[0], golden(f"{A['name']}.offset")[0], atol=TOLERANCE)


def test_a_row_whose_tokens_are_not_known_leaves_the_others_alone():
    tuning = processor()
    tuning.update_state(BatchUpdate(2, [], [added(0, A, [-1]), added(1, B, [])], []))
    logits = torch.zeros(2, 4096)
    tuning.apply(logits)
    assert not logits[0].any()
    np.testing.assert_allclose(logits[1], golden(f"{B['name']}.offset")[0], atol=TOLERANCE)


@pytest.mark.parametrize("device", ["cpu", "elsewhere"])
def test_a_vocabulary_that_is_padded(device):
    tuning = processor(device, vocab=4160)
    tuning.update_state(BatchUpdate(1, [], [added(0, A, [])], []))
    logits = torch.zeros(1, 4160)
    tuning.apply(logits)
    np.testing.assert_allclose(logits[0, :4096], golden(f"{A['name']}.offset")[0], atol=TOLERANCE)
    assert not logits[0, 4096:].any()


def test_two_engines_in_one_process():
    one, other = processor(alpha=1.0), processor(alpha=-1.0)
    rows = []
    for tuning in (one, other):
        tuning.update_state(BatchUpdate(1, [], [added(0, A, [])], []))
        rows.append(torch.zeros(1, 4096))
    for tuning, logits in zip((one, other), rows):
        tuning.apply(logits)
    np.testing.assert_allclose(rows[0], -rows[1], atol=TOLERANCE)
    np.testing.assert_allclose(rows[0][0], golden(f"{A['name']}.offset")[0], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no configuration: set PROXYTUNE_CONFIG"),
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size is 2"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size is 2"),
        ({"speculative": object()}, "speculative decoding is not supported"),
        ({"v2": True}, "set VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"proxies": 3}, "config: got int, expected the path of a TOML file or a mapping"),
    ],
    ids=str,
)
def test_what_is_refused_at_the_start(monkeypatch, options, message):
    monkeypatch.delenv("PROXYTUNE_CONFIG", raising=False)
    with pytest.raises((ValueError, TypeError), match=message):
        ProxyTuning(engine(**options), SimpleNamespace(type="cpu"))


def test_the_entry_point_adds_the_processor_where_there_is_a_configuration(monkeypatch):
    monkeypatch.delenv("PROXYTUNE_CONFIG", raising=False)
    given = {"proxytune": "proxytune.toml"}
    assert plugin.with_ours(None, {}) is None
    assert plugin.with_ours(["other:One"], {"other": 1}) == ["other:One"]
    assert plugin.with_ours(["other:One"], given) == ["other:One", "proxytune.vllm:ProxyTuning"]
    assert plugin.with_ours([ProxyTuning], given) == [ProxyTuning]
    monkeypatch.setenv("PROXYTUNE_CONFIG", "proxytune.toml")
    assert plugin.with_ours(None, {}) == ["proxytune.vllm:ProxyTuning"]


def test_model_runner_v2_is_told_by_us_that_it_is_not_supported():
    """It takes the class, and so does the front end, which checks requests; then ours is the word that ends the start."""
    v2 = pytest.importorskip("vllm.v1.worker.gpu.sample.logits_processor")
    v2.build_custom_logits_processors_params_validator(["proxytune.vllm:ProxyTuning"])
    names = ("device", "max_num_reqs", "vocab_size", "all_token_ids", "prompt_len", "prefill_len", "total_len")
    states = SimpleNamespace(**dict.fromkeys(names))
    with pytest.raises(ValueError, match="set VLLM_USE_V2_MODEL_RUNNER=0"):
        v2.build_custom_logits_processors(engine(v2=True), states, False, [ProxyTuning])


@pytest.mark.parametrize("alpha", [1e39, -1e39, 10**400, float("nan"), float("inf"), True, None, "1", [1.0]], ids=lambda a: str(a)[:9])
def test_weights_that_are_refused(alpha):
    with pytest.raises(ValueError, match="proxy_tuning_alpha: got .*expected a finite number"):
        ProxyTuning.validate_params(params(proxy_tuning_alpha=alpha))


def test_the_rules_for_what_is_not_a_number():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([1.0, -inf, 1.0, 1.0, 1.0])
    offsets = torch.tensor([2.0, 5.0, inf, nan, -inf])
    assert shifted(logits, offsets).tolist() == [3.0, -inf, 1.0, 1.0, -inf]
