"""Muon for the hidden matrices, Adam for embeddings and norms; float32 masters, bfloat16 compute.

Muon (Jordan et al. 2024) replaces each matrix's momentum by the nearest semi-orthogonal
matrix, found with a Newton-Schulz iteration. It needs fewer tokens than Adam alone.
"""

import torch
from torch import Tensor


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """[rows, columns] → the same singular vectors with all singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = g.mT if tall else g
    x = (x / (x.norm() + 1e-7)).bfloat16().contiguous()
    for _ in range(steps):
        s = x @ x.mT
        x = torch.addmm(x, torch.addmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Optimizer:
    """Keeps float32 masters of a net's parameters and writes each step back in the net's type.

    All its tensors lie in shared memory, so that several processes can each update a share of
    the parameters.
    """

    def __init__(self, net, muon_lr: float, adam_lr: float):
        self.net = dict(net.named_parameters())
        self.master = {name: p.detach().float().clone().share_memory_() for name, p in self.net.items()}
        zeros = lambda names: {name: torch.zeros_like(self.master[name]).share_memory_() for name in names}
        self.is_muon = {name: p.dim() == 2 and "embed" not in name for name, p in self.net.items()}
        self.first = zeros(self.net)
        self.second = zeros(name for name in self.net if not self.is_muon[name])
        self.muon_lr, self.adam_lr, self.steps = muon_lr, adam_lr, 0

    def state(self) -> dict:
        return {"master": self.master, "first": self.first, "second": self.second, "steps": self.steps}

    def load(self, state: dict) -> None:
        for own, saved in ((self.master, state["master"]), (self.first, state["first"]), (self.second, state["second"])):
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        self.steps = state["steps"]
        self.write_back(self.net)

    def load_weights(self, master: dict) -> None:
        for name, tensor in self.master.items():
            tensor.copy_(master[name])
        self.write_back(self.net)

    @torch.no_grad()
    def write_back(self, names) -> None:
        for name in names:
            self.net[name].copy_(self.master[name])

    @torch.no_grad()
    def step(self, gradients: dict, scale: float) -> None:
        """One update of the parameters in `gradients` (float32), learning rates times `scale`."""
        self.steps += 1
        b1, b2 = 0.9, 0.95
        momentum = min(0.95, 0.85 + 0.1 * self.steps / 200)
        for name, g in gradients.items():
            first, master = self.first[name], self.master[name]
            if self.is_muon[name]:
                first.lerp_(g, 1 - momentum)
                update = orthogonalise(g.lerp_(first, momentum))  # Nesterov
                rows, columns = g.shape
                master.add_(update, alpha=-scale * self.muon_lr * max(1, rows / columns) ** 0.5)
            else:
                second = self.second[name]
                first.lerp_(g, 1 - b1)
                second.lerp_(g.square(), 1 - b2)
                denominator = (second / (1 - b2**self.steps)).sqrt_().add_(1e-10)
                master.addcdiv_(first, denominator, value=-scale * self.adam_lr / (1 - b1**self.steps))
        self.write_back(gradients)
