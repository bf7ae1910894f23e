"""Proxy-tuning in vLLM::

    PROXYTUNE_CONFIG=proxytune.toml vllm serve MODEL --logits-processors proxytune.vllm:ProxyTuning

A request may say ``"vllm_xargs": {"proxy_tuning_alpha": 0.5}``, or ``{"proxy_tuning_enabled": false}``.
"""

import contextlib
import difflib
import itertools
import logging
import math
import os
import re

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

from . import _native

__all__ = ["ProxyTuning"]

logger = logging.getLogger("vllm.proxytune")

PREFIX = "proxy_tuning_"
KNOWN = ("proxy_tuning_alpha", "proxy_tuning_enabled")


class ProxyTuning(LogitsProcessor):
    """Adds ``alpha * (tuned - untuned)`` to the logits of each request, before penalties and sampling.

    One pass of each proxy serves the whole batch. Where the proxies have a device of their own they start in
    ``update_state``, before the host's pass, and are waited for in ``apply``.
    """

    @classmethod
    def validate_params(cls, sampling_params):
        request_alpha(sampling_params.extra_args, 1.0)

    def __init__(self, vllm_config, device, is_pin_memory):
        try:
            refuse_unsupported(vllm_config)
            self.processor = load(vllm_config, device)
        except Exception as error:
            logger.error("proxytune: %s", error)
            raise
        self.rows = {}
        self.numbers = itertools.count()
        self.told = set()
        self.elsewhere = Elsewhere(self.processor, is_pin_memory) if device.type != "cpu" else None

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        if batch_update:
            for row in batch_update.removed:
                self._put(row, None)
            for row, params, prompt, generated in batch_update.added:
                self._put(row, self._request(params, prompt, generated))
            for a, b, direction in batch_update.moved:
                from_a, from_b = self.rows.pop(a, None), self.rows.pop(b, None)
                swapped = direction == MoveDirectionality.SWAP
                if from_b is not None:
                    self._put(a, from_b) if swapped else self._forget(from_b)
                if from_a is not None:
                    self._put(b, from_a)
        if self.processor.background and self.rows:
            # With asynchronous scheduling the last token is not known yet; then the proxies start in `apply`.
            ready = [r for r in self.rows.values() if r.number is not None and -1 not in r.generated[-1:]]
            self._guarded(lambda: self.processor.prefetch(self._up_to_date(ready)))

    def apply(self, logits):
        requests = [self.rows.get(row) for row in range(len(logits))]
        if any(requests):
            self._guarded(lambda: self._shift(logits, requests))
        return logits

    def _shift(self, logits, requests):
        if self.elsewhere is None:
            failures = self.processor.apply(logits, self._up_to_date(requests))
        else:
            rows = [row for row, request in enumerate(requests) if request is not None]
            numbers = self._up_to_date([requests[row] for row in rows])
            failures = {rows[at]: why for at, why in self.elsewhere.add(logits, rows, numbers).items()}
        for row, why in failures.items():
            self._failed(logits, row, requests[row], why)

    def _up_to_date(self, requests):
        """The requests' numbers, after the processor has been told what they have generated."""
        for request in filter(None, requests):
            self.processor.update(request.number, request.generated)
        return [request and request.number for request in requests]

    def _request(self, params, prompt, generated):
        alpha = request_alpha(params.extra_args, self.processor.alpha)
        if alpha == 0:
            return None
        if prompt is None:
            self._say("a prompt of embeddings has no tokens for the proxies", "requests with one go on unshifted")
            return None
        request = Request(next(self.numbers), generated, ends(params))
        self.processor.add_request(request.number, prompt, alpha=alpha)
        return request

    def _put(self, row, request):
        old = self.rows.pop(row, None)
        if old is not None:
            self._forget(old)
        if request is not None:
            self.rows[row] = request

    def _forget(self, request):
        self.processor.remove_request(request.number)

    def _failed(self, logits, row, request, why):
        if self.processor.on_error == "host":
            return self._say(why, "requests go on unshifted where this happens")
        self._say(why, "requests end where this happens")
        # There is no other way to end a request from here.
        logits[row] = -math.inf
        logits[row, request.ends] = 0.0

    def _guarded(self, call):
        """No failure takes the engine down with it."""
        try:
            call()
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}", "the batch goes on unshifted where this happens")

    def _say(self, what, then):
        """Once for each kind of thing, of which numbers are no part."""
        kind = "".join(c for c in what if not c.isdigit())
        if kind not in self.told:
            self.told.add(kind)
            logger.warning("proxytune: %s; %s (said once)", what, then)


class Request:
    """A row's request: its number here, the engine's live list of what it has generated, and the tokens that end it."""

    __slots__ = ("number", "generated", "ends")

    def __init__(self, number, generated, ends):
        self.number, self.generated, self.ends = number, generated, ends


class Elsewhere:
    """Logits that stand on a device: offsets are computed in pinned memory and go over in one asynchronous copy."""

    def __init__(self, processor, is_pin_memory):
        self.processor, self.pinned = processor, is_pin_memory
        self.buffer, self.copied = None, None

    def add(self, logits, rows, numbers):
        width = self.processor.vocab_size
        if self.copied is not None:
            self.copied.synchronize()
        if self.buffer is None or len(self.buffer) < len(rows):
            self.buffer = torch.empty(len(rows), width, dtype=torch.float32, pin_memory=self.pinned)
        offsets = self.buffer[: len(rows)]
        failures = self.processor.offsets_(offsets, numbers)
        offsets = offsets.to(logits.device, non_blocking=self.pinned)
        if self.pinned:
            self.copied = torch.Event(logits.device)
            self.copied.record()
        index = slice(None, len(rows)) if rows == list(range(len(rows))) else torch.tensor(rows, device=logits.device)
        logits[index, :width] = shifted(logits[index, :width], offsets)
        return failures


def shifted(logits, offsets):
    """The sum; a logit that it would make NaN or +inf stays as it is."""
    total = logits + offsets
    return torch.where(total.isnan() | (total == math.inf), logits, total)


def ends(params):
    """Tokens that end a request."""
    return sorted(params.all_stop_token_ids | ({params.eos_token_id} - {None}))


def request_alpha(extra_args, otherwise):
    """The weight that a request asks for. Raises ``ValueError``, which vLLM answers with status 400."""
    given = {k: v for k, v in (extra_args or {}).items() if k.startswith("proxy_tuning")}
    for name in given.keys() - set(KNOWN):
        near = difflib.get_close_matches(name, KNOWN, 1, 0)[0]
        raise ValueError(f"vllm_xargs: unknown key {name!r}; did you mean {near!r}?")
    alpha = given.get("proxy_tuning_alpha", otherwise)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"vllm_xargs: proxy_tuning_alpha: got {alpha!r}, expected a finite number")
    enabled = given.get("proxy_tuning_enabled", True)
    if enabled not in (True, False):
        raise ValueError(f"vllm_xargs: proxy_tuning_enabled: got {enabled!r}, expected true or false")
    return float(alpha) if enabled else 0.0


def refuse_unsupported(vllm_config):
    parallel, name = vllm_config.parallel_config, f"{ProxyTuning.__module__}:{ProxyTuning.__qualname__}"
    listed = vllm_config.model_config.logits_processors or ()
    if sum(entry in (name, ProxyTuning) for entry in listed) > 1:
        raise ValueError(f"--logits-processors names {name} twice, and each would shift: name it once")
    if vllm_config.speculative_config is not None:
        raise ValueError("speculative decoding is not supported: leave --speculative-config out")
    for flag, size in (("tensor", parallel.tensor_parallel_size), ("pipeline", parallel.pipeline_parallel_size)):
        if size > 1:
            raise ValueError(
                f"{flag} parallelism is not supported, and --{flag}-parallel-size is {size}: every worker would run "
                "proxies of its own; use --data-parallel-size"
            )


def load(vllm_config, device):
    model = vllm_config.model_config
    with all_cores():
        processor = _native.LogitsProcessor(
            configuration(vllm_config),
            vocabulary=vocabulary(model),
            vocab_size=model.get_vocab_size(),
            context=model.max_model_len,
            threads=torch.get_num_threads() if device.type == "cpu" else 0,
        )
    logger.info("proxytune: %r", processor)
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
    return processor


def configuration(vllm_config):
    """``proxytune`` of ``--additional-config``, else the file that ``PROXYTUNE_CONFIG`` names."""
    additional = vllm_config.additional_config
    given = additional.get("proxytune") if isinstance(additional, dict) else None
    given = given or os.environ.get("PROXYTUNE_CONFIG")
    if not given:
        raise ValueError(
            "no configuration: set PROXYTUNE_CONFIG to a TOML file, or pass --additional-config "
            '\'{"proxytune": "proxytune.toml"}\''
        )
    return given


def vocabulary(model):
    """Where the host's tokens stand; ``None``: the configuration's ``host.model`` has to say it."""
    from transformers.utils import cached_file

    options = {"revision": model.tokenizer_revision, "_raise_exceptions_for_missing_entries": False}
    return cached_file(str(model.tokenizer), "tokenizer.json", **options)


@contextlib.contextmanager
def all_cores():
    """Threads started in here may run on all cores of vLLM's CPU worker, which has bound this one to its first."""
    cores = worker_cores()
    if not cores:
        yield
        return
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)


def worker_cores():
    """The cores that vLLM tells OpenMP to bind its threads to, as `0 1`, `{0,1}` or `proclist=[0,1]`, by library."""
    for name in ("GOMP_CPU_AFFINITY", "OMP_PLACES", "KMP_AFFINITY"):
        listed = re.search(r"\d[\d\s,-]*", os.environ.get(name, ""))
        if listed and hasattr(os, "sched_setaffinity"):
            ranges = (item.split("-") for item in re.split(r"[\s,]+", listed[0].strip(" ,")))
            return {core for ends in ranges for core in range(int(ends[0]), int(ends[-1]) + 1)}
    return set()
