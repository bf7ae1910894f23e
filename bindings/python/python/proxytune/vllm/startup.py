"""From vLLM's configuration to proxies in memory, or one line that says why not."""

import logging
import os

import torch

from .._native import LogitsProcessor
from .cores import all_cores
from .plugin import NAME, configuration, times_listed

# One of vLLM's, so that it is shown like those.
logger = logging.getLogger("vllm.proxytune")


def refuse_unsupported(vllm_config):
    parallel = vllm_config.parallel_config
    if times_listed(vllm_config.model_config.logits_processors) > 1:
        raise ValueError(f"--logits-processors names {NAME} twice, and each would shift: name it once")
    if getattr(vllm_config, "use_v2_model_runner", False):
        raise ValueError("model runner V2 is not supported: set VLLM_USE_V2_MODEL_RUNNER=0")
    if vllm_config.speculative_config is not None:
        raise ValueError("speculative decoding is not supported: leave --speculative-config out")
    for flag, size in (("tensor", parallel.tensor_parallel_size), ("pipeline", parallel.pipeline_parallel_size)):
        if size > 1:
            raise ValueError(
                f"{flag} parallelism is not supported, and --{flag}-parallel-size is {size}: every worker would run "
                "proxies of its own; use --data-parallel-size"
            )


def load(vllm_config, device):
    """The processor for this engine. What cannot be used is said in one line of the log, and raised."""
    try:
        refuse_unsupported(vllm_config)
        processor = create(vllm_config, device)
    except Exception as error:
        logger.error("proxytune: %s", error)
        raise
    greet(processor, vllm_config, device)
    return processor


def create(vllm_config, device):
    model = vllm_config.model_config
    given = configuration(vllm_config.additional_config)
    if not given:
        raise ValueError(
            "no configuration: set PROXYTUNE_CONFIG to a TOML file, or pass --additional-config "
            '\'{"proxytune": "proxytune.toml"}\''
        )
    with all_cores():
        return LogitsProcessor(
            given,
            vocabulary=vocabulary(model),
            vocab_size=model.get_vocab_size(),
            context=model.max_model_len,
            threads=torch.get_num_threads() if device.type == "cpu" else 0,
        )


def greet(processor, vllm_config, device):
    logger.info("proxytune: %r", processor)
    model = vllm_config.model_config
    if processor.context < model.max_model_len:
        logger.warning(
            "proxytune: the host's context is %d tokens, the proxies' %d: what is longer goes on unshifted, or ends "
            'with on_error = "stop"',
            model.max_model_len,
            processor.context,
        )
    most = vllm_config.scheduler_config.max_num_seqs
    if processor.sequences < most:
        logger.info(
            "proxytune: %d requests keep their place in the proxies' caches, of %d that vLLM may run at once; beyond "
            "that they are read again in turn: see `slots` in the configuration",
            processor.sequences,
            most,
        )
    waits = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    if device.type == "cpu" and not processor.background and not waits:
        logger.info(
            "proxytune: the proxies run on the host's cores, where OpenMP's threads go on spinning after the host's pass: set "
            "OMP_WAIT_POLICY=PASSIVE in the environment"
        )


def vocabulary(model):
    """Where the host's tokens stand; ``None``: the configuration's ``host.model`` has to say it."""
    from transformers.utils import cached_file

    options = {"revision": model.tokenizer_revision, "_raise_exceptions_for_missing_entries": False}
    return cached_file(str(model.tokenizer), "tokenizer.json", **options)
