"""Tensors that lie on an Apple GPU as far as code can tell: they say so, and refuse float64 as it does."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

__all__ = ["OnMps", "SimulatedMps", "on_mps"]

_MPS = torch.device("mps")


class OnMps(torch.Tensor):
    """A tensor of the CPU that says it lies on ``mps``, as does whatever is made of it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Work on the CPU; the result is there only if that was asked for."""
        if func == torch.Tensor.device.__get__:
            return _MPS
        kwargs = {name: torch.device("cpu") if value == _MPS else value for name, value in (kwargs or {}).items()}
        args = [torch.device("cpu") if isinstance(value, torch.device) else _plain(value) for value in args]
        result = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        return result if func is torch.Tensor.cpu else tree_map(on_mps, result)


class SimulatedMps(TorchFunctionMode):
    """Within it tensors can be moved to ``mps`` and made there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make on the CPU what is asked for on the device."""
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to and isinstance(args[-1], torch.device) and args[-1] == _MPS:
            return on_mps(args[0])
        if kwargs.get("device") == _MPS:
            return on_mps(func(*tree_map(_plain, args), **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def on_mps(value: Any) -> Any:
    """A tensor as one of the device; anything else as it is.

    Raises:
        TypeError: it is float64.
    """
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    return value.as_subclass(OnMps)


def _plain(value: Any) -> Any:
    return value.as_subclass(torch.Tensor) if isinstance(value, OnMps) else value
