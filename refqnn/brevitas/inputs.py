"""The float input of a module: one tensor, or several that stand side by side in one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch, mismatch
from refqnn.formats import as_array
from refqnn.ops.base import Shape

__all__ = ["Example", "check_count", "joined", "split"]

Example: TypeAlias = ArrayLike | Tensor | Sequence[ArrayLike | Tensor]


def joined(example: Example, argument: str) -> tuple[Tensor, tuple[Shape, ...]]:
    """A batch float32 [n, ...] of one input, or [n, all values] of several and their shapes.

    Raises: InvalidType, ShapeMismatch; NotCovered for inputs by name.
    """
    if isinstance(example, dict):
        raise NotCovered(f"{argument}: inputs by name; expected a tuple, in the order of forward")
    given: Any = example if isinstance(example, (tuple, list)) else ()
    if not any(isinstance(part, Tensor) or np.ndim(part) > 1 for part in given):
        return _as_batch(example, argument), ()
    parts = [_as_batch(part, f"{argument}[{i}]") for i, part in enumerate(given)]
    counts = [len(part) for part in parts]
    if len(set(counts)) > 1:
        raise ShapeMismatch(mismatch(argument, f"{counts} samples", "as many of each input"))
    shapes = tuple(tuple(part.shape[1:]) for part in parts)
    return torch.cat([part.flatten(1) for part in parts], dim=1), shapes


def split(batch: Tensor, shapes: tuple[Shape, ...]) -> list[Tensor]:
    """Copies of the inputs that stand in a batch, in the order of forward."""
    if not shapes:
        return [batch.clone()]
    parts = batch.split([prod(shape) for shape in shapes], dim=1)
    return [part.reshape(-1, *shape).clone() for part, shape in zip(parts, shapes)]


def check_count(module: nn.Module, several: int) -> None:
    """Raises: InvalidType, InvalidArgument where forward does not take as many (0: one tensor)."""
    if several == 1:
        raise InvalidType(mismatch("example_input", "a list of one tensor", "the tensor itself"))
    signature = inspect.signature(module.forward)
    try:
        signature.bind(*range(several or 1))
    except TypeError as error:
        got = f"{several or 1} of them" if several else "one tensor"
        needed = ", ".join(signature.parameters)
        expected = f"the inputs of forward({needed}), several as a tuple"
        raise InvalidArgument(mismatch("example_input", got, expected)) from error


def _as_batch(x: ArrayLike | Tensor, argument: str) -> Tensor:
    """float32 tensor [n, ...].  Raises: InvalidType, ShapeMismatch."""
    if isinstance(x, Tensor):
        real = not (x.is_complex() or x.is_quantized or x.dtype == torch.bool)
        if not real or x.layout != torch.strided:
            got = f"a tensor of {x.dtype}, {x.layout}"
            raise InvalidType(mismatch(argument, got, "real numbers in a dense tensor"))
        tensor = x.detach()
    else:
        array = as_array(x, argument, "real numbers")
        if array.dtype.kind not in "fiu":
            raise InvalidType(mismatch(argument, f"dtype {array.dtype}", "real numbers"))
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if tensor.ndim < 2 or len(tensor) == 0:
        raise ShapeMismatch(mismatch(argument, f"shape {tuple(tensor.shape)}", "[n, ...], n >= 1"))
    return tensor.to(torch.float32)
