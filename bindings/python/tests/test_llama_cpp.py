"""llama-cpp-python: the oracle's tokens through `Llama.generate` and `create_completion`."""

import pytest
from conftest import CASES, HOST, settings

llama_cpp = pytest.importorskip("llama_cpp")
from proxytune import ProxyPair  # noqa: E402
from proxytune.llama_cpp import ProxyTuning  # noqa: E402


@pytest.fixture(scope="module")
def llama():
    llama = llama_cpp.Llama(
        str(HOST), n_ctx=1024, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False, verbose=False
    )
    yield llama
    llama.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_greedy_tokens_are_the_oracles(pair, llama, case):
    processor = llama_cpp.LogitsProcessorList([ProxyTuning(pair, alpha=case["alpha"])])
    tokens = llama.generate(case["prompt_tokens"], temp=0.0, repeat_penalty=1.0, logits_processor=processor)
    assert [token for token, _ in zip(tokens, range(96))] == case["tokens"]


def test_a_completion_is_shifted_before_penalties_and_filters(pair, llama):
    case = CASES[3]

    def complete(**options):
        text = llama.create_completion(case["prompt_tokens"], max_tokens=24, temperature=0.0, **options)
        return text["choices"][0]["text"]

    def processor():
        return llama_cpp.LogitsProcessorList([ProxyTuning(pair, alpha=1.0)])

    plain, shifted = complete(), complete(logits_processor=processor())
    assert shifted != plain
    assert shifted == complete(logits_processor=processor())
    assert shifted != complete(logits_processor=processor(), repeat_penalty=1.5)


def test_a_text_that_is_longer_than_the_proxies_context(llama):
    case = next(case for case in CASES if case["name"] == "prose-64")
    processor = ProxyTuning(ProxyPair(settings(ctx=72), vocabulary=HOST), alpha=1.0)
    with pytest.warns(UserWarning, match="tokens do not fit its context of 72; .*texts go on unshifted") as said:
        processors = llama_cpp.LogitsProcessorList([processor])
        tokens = llama.generate(case["prompt_tokens"], temp=0.0, repeat_penalty=1.0, logits_processor=processors)
        got = [token for token, _ in zip(tokens, range(96))]
    assert len(said) == 1
    assert got[:8] == case["tokens"][:8] and got != case["tokens"]
