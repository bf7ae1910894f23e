"""Proxy-tuning in vLLM::

    PROXYTUNE_CONFIG=proxytune.toml vllm serve MODEL

``--logits-processors proxytune.vllm:ProxyTuning`` says the same to a vLLM that loads no plugins. A request may say
``"vllm_xargs": {"proxy_tuning_alpha": 0.5}``, or ``{"proxy_tuning_enabled": false}``.
"""

import itertools
import math

from vllm.v1.sample.logits_processor import MoveDirectionality

from .._once import Once
from .arguments import request_alpha
from .elsewhere import Elsewhere
from .interfaces import INTERFACES
from .startup import load, logger

__all__ = ["ProxyTuning"]


class ProxyTuning(*INTERFACES):
    """Adds ``alpha * (tuned - untuned)`` to the logits of each request, before penalties and sampling.

    One pass of each proxy serves the whole batch. Where the proxies have a device of their own they start in
    ``update_state``, before the host's pass, and are waited for in ``apply``.
    """

    @classmethod
    def validate_params(cls, sampling_params):
        request_alpha(sampling_params.extra_args, 1.0)

    # Model runner V2 gives less, and is refused.
    def __init__(self, vllm_config, device, is_pin_memory=False):
        self.processor = load(vllm_config, device)
        self.rows = {}
        self.numbers = itertools.count()
        self._say = Once(logger.warning)
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
            ready = [request for request in self.rows.values() if -1 not in request.generated[-1:]]
            try:
                self.processor.prefetch(self._up_to_date(ready, {}))
            except Exception as error:
                self._say(described(error), "`apply` tries again")

    def apply(self, logits):
        requests = [self.rows.get(row) for row in range(len(logits))]
        failures = {}
        numbers = self._up_to_date(requests, failures)
        try:
            failures |= self._shift(logits, numbers)
        except Exception as error:  # No failure takes the engine down with it.
            failures |= {row: described(error) for row, number in enumerate(numbers) if number is not None}
        for row, why in failures.items():
            self._failed(logits, row, requests[row], why)
        return logits

    def _shift(self, logits, numbers):
        """Shifts the rows that have a number. Returns those that were left as they were, and why."""
        rows = [row for row, number in enumerate(numbers) if number is not None]
        if not rows:
            return {}
        if self.elsewhere is None:
            return self.processor.apply(logits, numbers)
        return self.elsewhere.add(logits, rows, [numbers[row] for row in rows])

    def _up_to_date(self, requests, failures):
        """The requests' numbers, after the processor has been told what they have generated.

        `None` for those that cannot be shifted; why goes into `failures`, by row.
        """
        numbers = []
        for row, request in enumerate(requests):
            number = None
            if request is not None:
                try:
                    self.processor.update(request.number, request.generated)
                    number = request.number
                except Exception as error:
                    failures[row] = described(error)
            numbers.append(number)
        return numbers

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
        if self.processor.on_error == "host" or not request.ends:
            return self._say(why, "requests go on unshifted where this happens")
        self._say(why, "requests end where this happens")
        # There is no other way to end a request from here.
        logits[row] = -math.inf
        logits[row, request.ends] = 0.0


class Request:
    """A row's request: its number here, the engine's live list of what it has generated, and the tokens that end it."""

    __slots__ = ("number", "generated", "ends")

    def __init__(self, number, generated, ends):
        self.number, self.generated, self.ends = number, generated, ends


def ends(params):
    """Tokens that end a request."""
    return sorted(params.all_stop_token_ids | ({params.eos_token_id} - {None}))


def described(error):
    return f"{type(error).__name__}: {error}"
