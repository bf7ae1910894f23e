"""transformers' `generate`: the oracle's tokens, alone and in padded batches, and beams against plain arithmetic."""

import sys

import pytest
from conftest import CASES, FIXTURES, HOST, ROOT, settings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from proxytune import ProxyPair  # noqa: E402
from proxytune.transformers import ProxyTuning  # noqa: E402

sys.path.insert(0, str(ROOT / "tests/oracle"))


@pytest.fixture(scope="module")
def trio():
    """Host and proxies in transformers, in float32."""
    pytest.importorskip("gguf")
    from oracle import load_model

    return {role: load_model(FIXTURES / f"{role}-f32.gguf") for role in ("host", "tuned", "untuned")}


def generate(model, prompts, processor, tokens=96, **options):
    """New tokens for each prompt, padded on the left to one length."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        eos_token_id=None,
        pad_token_id=0,
        do_sample=False,
        logits_processor=[processor(mask)],
        **options,
    )
    return out[:, longest:].tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_greedy_tokens_are_the_oracles(pair, trio, case):
    got = generate(trio["host"], [case["prompt_tokens"]], lambda _: ProxyTuning(pair, alpha=case["alpha"]))
    assert got == [case["tokens"]]


def test_a_batch_of_prompts_of_different_lengths(pair, trio):
    batch = [case for case in CASES if case["alpha"] == 1.0]
    prompts = [case["prompt_tokens"] for case in batch]
    got = generate(trio["host"], prompts, lambda mask: ProxyTuning(pair, alpha=1.0, attention_mask=mask), tokens=48)
    assert got == [case["tokens"][:48] for case in batch]


class Plain(transformers.LogitsProcessor):
    """Proxy-tuning as plainly as can be: both proxies in transformers, from scratch for each row."""

    def __init__(self, trio, alpha):
        self.trio, self.alpha = trio, alpha

    @torch.inference_mode()
    def __call__(self, input_ids, scores):
        tuned, untuned = (self.trio[role](input_ids).logits[:, -1] for role in ("tuned", "untuned"))
        return torch.log_softmax(scores + self.alpha * (tuned - untuned), -1)


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_are_those_of_plain_arithmetic(pair, trio, beams):
    for case in CASES[1:5]:
        options = {"tokens": 24, "num_beams": beams, "num_return_sequences": beams, "length_penalty": 1.0}
        prompts = [case["prompt_tokens"]]
        got = generate(trio["host"], prompts, lambda mask: ProxyTuning(pair, alpha=1.0, attention_mask=mask), **options)
        assert got == generate(trio["host"], prompts, lambda _: Plain(trio, 1.0), **options), case["name"]


def test_sampling_and_penalties_go_on_from_shifted_scores(pair, trio):
    case = CASES[3]
    ids = torch.tensor([case["prompt_tokens"]])
    options = {"max_new_tokens": 32, "do_sample": True, "temperature": 0.8, "top_k": 50, "repetition_penalty": 1.1}
    texts = []
    for processor in (ProxyTuning(pair, alpha=1.0), Plain(trio, 1.0)):
        torch.manual_seed(3)
        texts.append(trio["host"].generate(ids, pad_token_id=0, eos_token_id=None, logits_processor=[processor], **options))
    assert torch.equal(*texts)


@pytest.mark.parametrize("assistant", ["prompt", "model"])
def test_drafted_tokens_are_verified(pair, trio, assistant):
    """Assisted generation calls the processor for several positions of a row, and takes some of them back."""
    options = {"prompt_lookup_num_tokens": 4} if assistant == "prompt" else {"assistant_model": trio["tuned"]}
    for case in CASES[3:6]:
        shift = ProxyTuning(pair, alpha=case["alpha"])
        assert generate(trio["host"], [case["prompt_tokens"]], lambda _: shift, **options) == [case["tokens"]], case["name"]


def test_a_text_that_is_longer_than_the_proxies_context(pair):
    short = ProxyPair(settings(ctx=8), vocabulary=HOST)
    ids, scores = torch.tensor([list(range(5, 15)), list(range(20, 30))]), torch.ones(2, 4096)
    shift = ProxyTuning(short, attention_mask=[[1] * 10, [0] * 7 + [1] * 3])
    with pytest.warns(UserWarning, match="10 tokens do not fit its context of 8; .*texts go on unshifted") as said:
        got = shift(ids, scores)
        shift(ids, scores)
    assert len(said) == 1
    assert torch.equal(got[0], torch.log_softmax(scores[0], -1))
    torch.testing.assert_close(got[1:], ProxyTuning(pair)(ids[1:, 7:], scores[1:]))
    strict = ProxyPair(settings(ctx=8, on_error="stop"), vocabulary=HOST)
    with pytest.raises(RuntimeError, match="row 0: .*10 tokens do not fit"):
        ProxyTuning(strict)(ids[:1], scores[:1])


def test_what_is_refused(pair, trio):
    with pytest.raises(ValueError, match="padding on the left alone"):
        ProxyTuning(pair, attention_mask=[[1, 1, 0]])
    with pytest.raises(ValueError, match="2 rows for an attention_mask of 3"):
        ProxyTuning(pair, attention_mask=[[1], [1], [1]])(torch.ones(2, 1, dtype=torch.long), torch.zeros(2, 4096))
    with pytest.raises(ValueError, match="rows of 100, expected at least 4096"):
        ProxyTuning(pair)(torch.ones(1, 1, dtype=torch.long), torch.zeros(1, 100))
    with pytest.raises(ValueError, match=r"histories\[0\]: no tokens"):
        embeddings = trio["host"].get_input_embeddings()(torch.tensor([[5, 6]]))
        trio["host"].generate(inputs_embeds=embeddings, max_new_tokens=2, logits_processor=[ProxyTuning(pair)])
    scores = torch.zeros(1, 4096)
    assert ProxyTuning(pair, alpha=0)(torch.ones(1, 1, dtype=torch.long), scores) is scores
