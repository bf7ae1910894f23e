"""vllm_engines.py CHECKPOINT TUNED UNTUNED PROMPT TOKENS: two engines of vLLM in one program that has proxies of its own loaded.

Prints what each says to the prompt, a JSON list of tokens, as JSON.
"""

import json
import sys

from proxytune import ProxyPair


def main(checkpoint, tuned, untuned, prompt, tokens):
    proxies = {"tuned": tuned, "untuned": untuned}
    pair = ProxyPair({"proxy_tuning": proxies}, vocabulary=checkpoint)
    pair.offsets([json.loads(prompt)])

    from vllm import LLM, SamplingParams

    def engine(alpha):
        return LLM(
            checkpoint,
            dtype="float32",
            max_model_len=512,
            max_num_seqs=4,
            enforce_eager=True,
            additional_config={"proxytune": {"proxy_tuning": proxies | {"alpha": alpha}}},
        )

    engines = [engine(1.0), engine(0.0)]
    params = SamplingParams(temperature=0, max_tokens=int(tokens), ignore_eos=True)
    texts = []
    for llm in engines:
        (answer,) = llm.generate([{"prompt_token_ids": json.loads(prompt)}], params, use_tqdm=False)
        texts.append(list(answer.outputs[0].token_ids))
    print(json.dumps(texts))


if __name__ == "__main__":
    main(*sys.argv[1:])
