"""What `proxytune.vllm` is measured against: nothing at all, and proxy-tuning as one would write it at first."""

import os
from pathlib import Path

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, LogitsProcessor


class Noop(LogitsProcessor):
    """Does nothing: vLLM alone."""

    def __init__(self, vllm_config, device, is_pin_memory):
        pass

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        return logits


class Naive(AdapterLogitsProcessor):
    """Both proxies in transformers, one row after the other, each with its key-value cache."""

    def __init__(self, vllm_config, device, is_pin_memory):
        super().__init__(vllm_config, device, is_pin_memory)
        from transformers import LlamaForCausalLM

        paths = [Path(os.environ[name]) for name in ("PROXYTUNE_TUNED", "PROXYTUNE_UNTUNED")]
        self.proxies = [
            LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval() for path in paths
        ]

    def is_argmax_invariant(self):
        return False

    def new_req_logits_processor(self, params):
        caches, read = [None, None], 0

        @torch.inference_mode()
        def process(prompt, generated, logits):
            nonlocal read
            new = torch.tensor([[*prompt, *generated][read:]])
            if not new.numel():
                return logits
            read += new.numel()
            rows = []
            for which, proxy in enumerate(self.proxies):
                output = proxy(new, past_key_values=caches[which], use_cache=True)
                caches[which] = output.past_key_values
                rows.append(output.logits[0, -1])
            return logits + rows[0] - rows[1]

        return process
