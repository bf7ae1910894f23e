"""Logits on a device."""

import math

import torch


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
        index = slice(None, len(rows)) if rows == list(range(len(rows))) else self._on(logits.device, rows)
        logits[index, :width] = shifted(logits[index, :width], offsets)
        return {rows[at]: why for at, why in failures.items()}

    def _on(self, device, rows):
        return torch.tensor(rows, pin_memory=self.pinned).to(device, non_blocking=self.pinned)


def shifted(logits, offsets):
    """The sum; a logit that it would make NaN or +inf stays as it is."""
    total = logits + offsets
    return torch.where(total.isnan() | (total == math.inf), logits, total)
