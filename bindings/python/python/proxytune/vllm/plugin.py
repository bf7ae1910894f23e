"""What the entry point names: vLLM calls it in each of its processes.

It stands in vLLM's group of general plugins. What stands in the group of logits processors is not asked for with speculative
decoding, which nobody would notice, and is not told the tokens of asynchronous scheduling.
"""

import functools
import os

NAME = "proxytune.vllm:ProxyTuning"


@functools.cache
def register():
    """Makes a configuration do what ``--logits-processors`` does: engines that are given one have the processor.

    vLLM may call it several times in a process.
    """
    from vllm.engine.arg_utils import EngineArgs

    original = EngineArgs.create_model_config

    @functools.wraps(original)
    def create_model_config(self):
        self.logits_processors = with_ours(self.logits_processors, self.additional_config)
        return original(self)

    EngineArgs.create_model_config = create_model_config


def with_ours(processors, additional_config):
    """An engine's logits processors, and ours among them if there is a configuration."""
    if not configuration(additional_config) or times_listed(processors):
        return processors
    return [*(processors or ()), NAME]


def times_listed(processors):
    """How often ``--logits-processors`` names ours."""
    return sum("ProxyTuning" in str(entry) for entry in processors or ())


def configuration(additional_config):
    """``proxytune`` of ``--additional-config``, else the file that ``PROXYTUNE_CONFIG`` names, or nothing."""
    given = additional_config.get("proxytune") if isinstance(additional_config, dict) else None
    return given or os.environ.get("PROXYTUNE_CONFIG")
