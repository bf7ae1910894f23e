"""The interfaces that vLLM has for logits processors."""

from vllm.v1.sample.logits_processor import LogitsProcessor

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as RunnerV2LogitsProcessor
except ImportError:  # A version before model runner V2 had one.
    INTERFACES = (LogitsProcessor,)
else:
    # V2 takes no class of the other interface. Ours has both, so that it is ours to say why it cannot be used there.
    INTERFACES = (LogitsProcessor, RunnerV2LogitsProcessor)
