"""llama-cpp-python: the oracle's tokens through `Llama.generate` and `create_completion`."""

import pytest
from conftest import CASES, HOST

llama_cpp = pytest.importorskip("llama_cpp")
from proxytune.llama_cpp import ProxyTuning  # noqa: E402


def host(**options):
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    return llama_cpp.Llama(str(HOST), n_ctx=1024, verbose=False, **exact, **options)


@pytest.fixture(scope="module")
def llama():
    llama = host()
    yield llama
    llama.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_greedy_tokens_are_the_oracles(pair, llama, case):
    processor = llama_cpp.LogitsProcessorList([ProxyTuning(pair, alpha=case["alpha"])])
    tokens = llama.generate(case["prompt_tokens"], temp=0.0, repeat_penalty=1.0, logits_processor=processor)
    assert [token for token, _ in zip(tokens, range(96))] == case["tokens"]


def test_drafted_tokens_are_verified(pair):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    llama = host(draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4), logits_all=True)
    processor = llama_cpp.LogitsProcessorList([ProxyTuning(pair, alpha=1.0)])
    for case in (case for case in CASES if case["alpha"] == 1.0):
        llama.reset()
        tokens = llama.generate(case["prompt_tokens"], temp=0.0, repeat_penalty=1.0, logits_processor=processor)
        assert [token for token, _ in zip(tokens, range(96))] == case["tokens"], case["name"]
    llama.close()


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
