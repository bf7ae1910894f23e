"""vllm_serve.py CHECKPOINT TUNED.gguf UNTUNED.gguf: tokens/s of `vllm serve` alone, with proxy-tuning as one would write
it at first, and with proxytune, for 1 and for 16 requests at once; and the floor.

The floor is what a step of vLLM alone and a bare pass of each proxy take one after the other.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "bindings/python/tests"
sys.path.insert(0, str(TESTS))

import openai
import vllm_server

from proxytune import ProxyPair

PROMPT, TOKENS, ROUNDS = 32, 128, 5
BATCHES = (1, 16)


def tokens_per_second(server, requests):
    """The median of a few rounds, each of `requests` prompts that no cache has seen; a first one warms up."""
    api = openai.OpenAI(base_url=server.url("/v1"), api_key="none", timeout=600)
    order = random.Random(requests)

    def complete(prompt):
        extra = {"ignore_eos": True}
        api.completions.create(model="host", prompt=prompt, max_tokens=TOKENS, temperature=0, extra_body=extra)

    rates = []
    with ThreadPoolExecutor(requests) as pool:
        for _ in range(1 + ROUNDS):
            prompts = [[order.randrange(10, 4000) for _ in range(PROMPT)] for _ in range(requests)]
            begin = time.perf_counter()
            list(pool.map(complete, prompts))
            rates.append(requests * TOKENS / (time.perf_counter() - begin))
    return statistics.median(rates[1:])


def measure(checkpoint, processor, config, environment=None):
    with vllm_server.Server(config, processor=processor, model=checkpoint, environment=environment) as server:
        return {requests: tokens_per_second(server, requests) for requests in BATCHES}


def bare_passes(config, checkpoint, requests):
    """Seconds that both proxies take for one more token of each sequence, one proxy after the other."""
    pair = ProxyPair(config, vocabulary=checkpoint)
    order = random.Random(0)
    histories = [[order.randrange(10, 4000) for _ in range(PROMPT)] for _ in range(requests)]
    pair.offsets(histories)
    steps = []
    for _ in range(TOKENS):
        before = pair.stats
        for history in histories:
            history.append(order.randrange(10, 4000))
        pair.offsets(histories)
        steps.append(sum(pair.stats[key] - before[key] for key in ("tuned_us", "untuned_us")) / 1e6)
    return sorted(steps)[len(steps) // 2]


def main(checkpoint, tuned, untuned):
    # OpenMP's threads do not go on spinning after the host's pass, in all of the servers alike.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        config = vllm_server.write_config(folder, tuned=tuned, untuned=untuned, placement="in-turn")
        rivals = {"PYTHONPATH": str(TESTS), "PROXYTUNE_TUNED": tuned, "PROXYTUNE_UNTUNED": untuned}
        alone = measure(checkpoint, "vllm_rivals:Noop", None, rivals)
        naive = measure(checkpoint, "vllm_rivals:Naive", None, rivals)
        ours = measure(checkpoint, vllm_server.PROCESSOR, config)
        print(f"{'requests':>8}  {'mode':<10} {'tokens/s':>9} {'of floor':>9} {'of host':>9}")
        for requests in BATCHES:
            step = requests / alone[requests] + bare_passes(str(config), checkpoint, requests)
            floor = requests / step
            rows = {"host": alone, "naive": naive, "proxytune": ours, "floor": {requests: floor}}
            for mode, speed in rows.items():
                share = [100 * speed[requests] / other for other in (floor, alone[requests])]
                print(f"{requests:>8}  {mode:<10} {speed[requests]:>9.0f} {share[0]:>7.0f} % {share[1]:>7.0f} %")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*(os.path.abspath(path) for path in sys.argv[1:]))
