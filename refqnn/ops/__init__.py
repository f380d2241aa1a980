"""The node kinds, one a file: what it computes, its shapes, its exact range."""

from refqnn.ops.add import Add
from refqnn.ops.base import Interval, Op, SumOp
from refqnn.ops.concat import Concat
from refqnn.ops.conv import Conv1d, Conv2d
from refqnn.ops.linear import Linear
from refqnn.ops.lookup import Lookup
from refqnn.ops.pool import GlobalSumPool, MaxPool2d, SumPool2d
from refqnn.ops.reshape import Flatten, Reshape

# Every kind but Requantize, which has a file of its own above this package.
KINDS: tuple[type[Op], ...] = (
    Linear,
    Conv1d,
    Conv2d,
    Lookup,
    MaxPool2d,
    SumPool2d,
    GlobalSumPool,
    Add,
    Concat,
    Flatten,
    Reshape,
)

__all__ = [
    "KINDS",
    "Add",
    "Concat",
    "Conv1d",
    "Conv2d",
    "Flatten",
    "GlobalSumPool",
    "Interval",
    "Linear",
    "Lookup",
    "MaxPool2d",
    "Op",
    "Reshape",
    "SumOp",
    "SumPool2d",
]
