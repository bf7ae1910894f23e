"""The processor behind vLLM's own batch: rows as that adds, removes, moves and swaps them, and tokens that are late."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import vllm_server
from conftest import CASES, TOLERANCE

pytest.importorskip("vllm")
if not vllm_server.MODEL:
    pytest.skip("PROXYTUNE_VLLM_MODEL is not set: run `make test-vllm`", allow_module_level=True)
import torch  # noqa: E402
from test_vllm_rows import processor  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.v1.sample.logits_processor import LogitsProcessors  # noqa: E402
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch  # noqa: E402

ROWS = 8


class Batch:
    """vLLM's batch with one logits processor, and each row's history as it should be."""

    def __init__(self, tuning, pair):
        self.tuning, self.pair, self.requests, self.made = tuning, pair, {}, 0
        self.batch = InputBatch(
            max_num_reqs=ROWS, max_model_len=1024, max_num_batched_tokens=1024, device=torch.device("cpu"), vocab_size=4096,
            block_sizes=[128], max_num_blocks_per_req=[8], logitsprocs=LogitsProcessors([tuning]),
            logitsprocs_need_output_token_ids=True,
        )  # fmt: skip

    def add(self, case, generated=0):
        """A new request, or one that was preempted and has generated some already."""
        self.made += 1
        request = CachedRequestState(
            req_id=str(self.made), prompt_token_ids=case["prompt_tokens"], mm_features=[], generator=None, block_ids=([0],),
            sampling_params=SamplingParams(temperature=0, extra_args={"proxy_tuning_alpha": 1.0}), num_computed_tokens=0,
            output_token_ids=case["tokens"][:generated],
        )  # fmt: skip
        self.batch.add_request(request)
        self.requests[request.req_id] = (request, case)

    def remove(self, name):
        self.batch.remove_request(name)
        return self.requests.pop(name)

    def check(self):
        """The rows' shifts are those of their requests' histories."""
        logits = torch.zeros(self.batch.num_reqs, 4096)
        self.tuning.apply(logits)
        rows = [self.requests[name][0] for name in self.batch.req_ids]
        expected = self.pair.offsets([request.prompt_token_ids + request.output_token_ids for request in rows])
        np.testing.assert_allclose(logits.numpy(), expected, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_rows_in_any_order(pair, seed):
    order, rows = random.Random(seed), Batch(processor(slots=4), pair)
    for _ in range(40):
        # As vLLM does: all that leave, then all that come; some of those were preempted.
        removed = [rows.remove(name) for name in list(rows.requests) if order.random() < 0.2]
        for request, case in removed:
            if order.random() < 0.5:
                rows.add(case, len(request.output_token_ids))
        while len(rows.requests) < ROWS and order.random() < 0.6:
            rows.add(order.choice(CASES))
        rows.batch.condense()
        if len(rows.requests) >= 2 and order.random() < 0.5:
            rows.batch.swap_states(*order.sample(range(len(rows.requests)), 2))
        rows.batch.refresh_metadata()
        if rows.requests:
            rows.check()
        for request, case in rows.requests.values():
            if len(request.output_token_ids) < 90:
                request.output_token_ids.append(case["tokens"][len(request.output_token_ids)])
    assert rows.tuning.processor.stats["failed"] == 0


@pytest.mark.parametrize("placement", ["in-turn", "together"])
def test_tokens_of_asynchronous_scheduling(pair, placement):
    """The batch is made before the last step's tokens have come; they are there when logits are."""
    rows = Batch(processor(placement=placement), pair)
    for case in CASES[:3]:
        rows.add(case)
    rows.batch.refresh_metadata()
    rows.check()
    for step in range(6):
        sampled = []
        for request, case in rows.requests.values():
            sampled.append([case["tokens"][step]])
            request.output_token_ids.append(-1)
        rows.batch.prev_req_id_to_index = dict(rows.batch.req_id_to_index)
        rows.batch.set_async_sampled_token_ids(torch.tensor(sampled), SimpleNamespace(synchronize=lambda: None))
        rows.batch.refresh_metadata()
        rows.batch.update_async_output_token_ids()
        rows.check()
    assert rows.tuning.processor.stats["failed"] == 0
