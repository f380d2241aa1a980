"""Networks as deployed ones are: 8-bit codes with zero points, and 16-bit activations.

Zero points of inputs are folded into biases and are what padding is made of; those of outputs are
added after the rescaling.  Weights are random; everything else is as an integer runtime has it.
"""

from __future__ import annotations

from functools import partial

from refqnn.conformance.making.samplers import Stream
from refqnn.conformance.operations import Array
from refqnn.formats import IntFormat
from refqnn.network import Network, Node
from refqnn.ops import (
    Add,
    Concat,
    Conv2d,
    Flatten,
    GlobalSumPool,
    Linear,
    Rescale,
    SumPool2d,
)

__all__ = ["INPUT_ZERO", "mobile_network", "words_network"]

INT8, INT16, INT32 = (IntFormat(bits, signed=True) for bits in (8, 16, 32))
INPUT_ZERO = -3  # the code of 0.0 at the input of the mobile network

_twice = partial(Rescale, rounding="half_away", first_rounding="half_up", first_shift=31)


def _weighted(stream: Stream, shape: tuple[int, ...], zero: int) -> tuple[Array, Array]:
    """Weights of 8 bits, and a bias into which the zero point of the inputs is folded."""
    weight = stream.tensor(shape, -127, 127)
    bias = stream.tensor(shape[:1], -3000, 3000)
    return weight, bias - zero * weight.reshape(len(weight), -1).sum(axis=1)


def _narrowed(stream: Stream, channels: int, shift: int, zero_point: int, clip: object) -> Rescale:
    """Accumulators to 8 bits, a multiplier of 31 bits and a shift for each channel."""
    multiplier = stream.tensor((channels,), 2**30, 2**31 - 1)
    shifts = stream.tensor((channels,), 31 + shift - 1, 31 + shift)
    return _twice(multiplier, shifts, INT8, zero_point=zero_point, clip=clip)


def mobile_network() -> Network:
    """Three input channels; a block with a depthwise convolution and a residual on a common scale
    of 32 bits; averages of the input beside it; a head that is read, and one behind that is not.

    Both convolution and average read the input; ReLU6 is a clip from the code of 0 to that of 6.
    """
    s = Stream(1, "mobile")
    relu6 = partial(_narrowed, s, 8, 9, -128, (-128, 107))
    nodes = [
        Node("conv", Conv2d(*_weighted(s, (8, 3, 3, 3), INPUT_ZERO), stride=2,
                            padding=((0, 1), (1, 1)), pad_code=INPUT_ZERO)),
        Node("relu6", relu6()),
        Node("depthwise", Conv2d(*_weighted(s, (8, 1, 3, 3), -128), padding=1, groups=8,
                                 pad_code=-128)),
        Node("relu6_2", relu6()),
        Node("pointwise", Conv2d(*_weighted(s, (8, 8, 1, 1), -128))),
        Node("block", _narrowed(s, 8, 9, 5, None)),
        Node("left", _twice(1073741824 << 20, 31, INT32, offset=128), ("relu6",)),
        Node("right", _twice(1610612733 << 20, 32, INT32, offset=-5), ("block",)),
        Node("sum", Add(), ("left", "right")),
        Node("residual", _twice(1431655765, 51, INT8, zero_point=-7)),
        Node("window_sums", SumPool2d((3, 2), (2, 2)), ("input",)),
        Node("averages", _twice(1431655765, 33, INT8, zero_point=-7, offset=-6 * INPUT_ZERO)),
        Node("all", Concat(), ("residual", "averages")),
        Node("flat", Flatten()),
        Node("logits", Linear(*_weighted(s, (5, 99), -7))),
        Node("sums", GlobalSumPool(), ("all",)),
        Node("means", _twice(1908874354, 34, INT8, zero_point=-128, offset=63, clip=(-128, 127))),
    ]  # fmt: skip
    return Network(nodes, input_shape=(3, 7, 6), input_format=INT8, output="logits")


def words_network() -> Network:
    """Activations of 16 bits, weights of 8, more than 64 terms in the sums of the first layer."""
    s = Stream(1, "words")
    narrowed = partial(_twice, format=INT16)
    nodes = [
        Node("fc1", Linear(*_weighted(s, (6, 70), 0))),
        Node("act1", narrowed(s.tensor((6,), 2**30, 2**31 - 1), 41, clip=(0, 2**15 - 1))),
        Node("fc2", Linear(*_weighted(s, (4, 6), 0))),
        Node("act2", narrowed(1518500250, 38)),
        Node("out", Linear(*_weighted(s, (3, 4), 0))),
    ]
    return Network(nodes, input_shape=(70,), input_format=INT16)
