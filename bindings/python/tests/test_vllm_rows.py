"""The vLLM processor by itself: rows that are added, removed, moved and swapped, on the CPU and on another device."""

from types import SimpleNamespace

import numpy as np
import pytest
import vllm_server
from conftest import CASES, TOLERANCE, TUNED, UNTUNED, golden

pytest.importorskip("vllm")
import torch  # noqa: E402
from proxytune.vllm import ProxyTuning  # noqa: E402
from proxytune.vllm.elsewhere import shifted  # noqa: E402
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality  # noqa: E402

if not vllm_server.MODEL:
    pytest.skip("PROXYTUNE_VLLM_MODEL is not set: run `make test-vllm`", allow_module_level=True)

ONE_WAY, SWAP = MoveDirectionality.UNIDIRECTIONAL, MoveDirectionality.SWAP
A, B, C = (case for case in CASES if case["alpha"] == 1.0 and case["name"] in ("one-token", "code-17", "prose-64"))


def processor(device="cpu", parallel=1, speculative=None, **keys):
    tuning = {"tuned": str(TUNED), "untuned": str(UNTUNED), "placement": "in-turn"} | keys
    config = SimpleNamespace(
        additional_config={"proxytune": {"proxy_tuning": tuning}},
        model_config=SimpleNamespace(
            logits_processors=[ProxyTuning], tokenizer=vllm_server.MODEL, tokenizer_revision=None, max_model_len=1024,
            get_vocab_size=lambda: 4096,
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=parallel, pipeline_parallel_size=1),
        scheduler_config=SimpleNamespace(max_num_seqs=16),
        speculative_config=speculative,
    )  # fmt: skip
    return ProxyTuning(config, SimpleNamespace(type=device), False)


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


def test_what_is_refused_at_the_start():
    with pytest.raises(ValueError, match="tensor parallelism is not supported"):
        processor(parallel=2)
    with pytest.raises(ValueError, match="speculative decoding is not supported"):
        processor(speculative=object())


def test_the_rules_for_what_is_not_a_number():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([1.0, -inf, 1.0, 1.0, 1.0])
    offsets = torch.tensor([2.0, 5.0, inf, nan, -inf])
    assert shifted(logits, offsets).tolist() == [3.0, -inf, 1.0, 1.0, -inf]
