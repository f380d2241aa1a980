"""The node kinds, one a file: what it computes, its shapes, its exact range, its structure."""

from refqnn.ops.add import Add
from refqnn.ops.base import Interval, Op, SumOp
from refqnn.ops.concat import Concat
from refqnn.ops.conv import Conv1d, Conv2d
from refqnn.ops.conv_transpose import ConvTranspose2d
from refqnn.ops.gather import Gather
from refqnn.ops.linear import Linear
from refqnn.ops.lookup import Lookup
from refqnn.ops.pool import GlobalSumPool, MaxPool2d, SumPool2d, mean_by_count
from refqnn.ops.requantize import Requantize
from refqnn.ops.rescale import Rescale
from refqnn.ops.reshape import Flatten, Reshape
from refqnn.ops.softmax import Softmax
from refqnn.ops.structure import Role

KINDS: tuple[type[Op], ...] = (
    Linear,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Requantize,
    Lookup,
    MaxPool2d,
    SumPool2d,
    GlobalSumPool,
    Add,
    Concat,
    Flatten,
    Reshape,
    Gather,
    Rescale,
    Softmax,
)
"""Every kind that files hold."""

__all__ = [
    "KINDS",
    "Add",
    "Concat",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Flatten",
    "Gather",
    "GlobalSumPool",
    "Interval",
    "Linear",
    "Lookup",
    "MaxPool2d",
    "Op",
    "Requantize",
    "Rescale",
    "Reshape",
    "Role",
    "Softmax",
    "SumOp",
    "SumPool2d",
    "mean_by_count",
]
