"""Muon: momentum whose matrices are orthogonalised before the step, with AdamW for everything that is no matrix.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). The step of a weight matrix is the
nearest orthogonal matrix to its momentum, found by a Newton-Schulz iteration.

``torch.optim.Muon`` iterates in bfloat16, which processors without that format emulate slowly, and takes GPT-2's fused
query, key and value for one matrix; hence our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .config import TrainConfig

__all__ = ["Muon", "orthogonalize", "parameter_groups"]

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: singular values end between 0.7 and 1.2


def orthogonalize(matrix: Tensor) -> Tensor:
    """A matrix of the same shape and singular vectors whose singular values are near 1 (0.7 to 1.2)."""
    a, b, c = _QUINTIC
    x: Tensor
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide is matrix else x.mT


class Muon(Optimizer):
    """Muon for groups with ``muon=True``, AdamW for the others; every group has its own ``lr``.

    A Muon group's matrices are of shape (inputs, ``blocks`` * outputs), or (outputs, inputs) if ``transposed``; the
    blocks (query, key and value, which GPT-2 keeps in one matrix) are orthogonalised each on its own.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        defaults = {"lr": 1e-3, "muon": False, "momentum": 0.95, "betas": (0.9, 0.99), "eps": 1e-8}
        super().__init__(groups, {**defaults, "weight_decay": 0.0, "blocks": 1, "transposed": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                update = self._muon if group["muon"] else self._adam
                parameter.add_(update(parameter, parameter.grad, group), alpha=-group["lr"])
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, beta = state["momentum"], group["momentum"]
        momentum.lerp_(gradient, 1.0 - beta)
        ahead = torch.lerp(gradient, momentum, beta)  # Nesterov
        if group["transposed"]:
            rows, columns = ahead.shape[1], ahead.shape[0]
            return orthogonalize(ahead) * math.sqrt(max(1.0, columns / rows))
        rows, columns = ahead.shape[0], ahead.shape[1] // group["blocks"]
        blocks = ahead.view(rows, group["blocks"], columns).transpose(0, 1)
        whole = orthogonalize(blocks).transpose(0, 1).reshape(parameter.shape)
        return whole * math.sqrt(max(1.0, columns / rows))

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1.0 - first)
        state["square"].lerp_(gradient.square(), 1.0 - second)
        count = float(state["step"])
        scale = (state["square"] / (1.0 - second**count)).sqrt_().add_(group["eps"])
        update: Tensor = state["mean"] / (1.0 - first**count) / scale
        return update


def parameter_groups(model: PreTrainedModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Matrices inside the model by Muon; embeddings, the output layer, biases and norms by AdamW."""
    outside = {id(parameter) for module in _embeddings(model) for parameter in module.parameters()}
    inside: dict[str, list[Tensor]] = {"fused": [], "given": [], "transposed": []}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, Conv1D | nn.Linear) and id(weight) not in outside:
            kind = "fused" if name.endswith("c_attn") else "given" if isinstance(module, Conv1D) else "transposed"
            inside[kind].append(cast("Tensor", weight))
    taken = {id(parameter) for parameters in inside.values() for parameter in parameters}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    muon = {"muon": True, "lr": config.muon_learning_rate, "weight_decay": config.weight_decay}
    betas = (config.adam_beta1, config.adam_beta2)
    adam = {"lr": config.learning_rate, "betas": betas, "eps": config.adam_epsilon}
    groups = [
        {"params": inside["fused"], "blocks": 3, **muon},
        {"params": inside["given"], **muon},
        {"params": inside["transposed"], "transposed": True, **muon},
        {"params": [p for p in others if p.ndim > 1], **adam, "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], **adam},
    ]
    return [group for group in groups if group["params"]]


def _embeddings(model: PreTrainedModel) -> list[nn.Module]:
    found = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return [*found, *([head] if (head := model.get_output_embeddings()) is not None else [])]
