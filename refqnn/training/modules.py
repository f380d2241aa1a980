"""Networks to train: every hidden code is an integer accumulator, plus a constant, minus low bits.

A hidden layer computes, in evaluation,

    acc  = sum_i w_i x_i                     integers
    code = clip((acc + b) >> r, 0, 2**a - 1)

with one shift r for the layer and one constant b for each neuron.  That is the cheapest thing an
encrypted circuit can do with an accumulator, and it is all that `PowerOfTwoNorm` followed by a
power-of-two quantizer can express; batch normalization with a float gain is not of this form.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8WeightPerTensorFloat, Int16Bias
from numpy.typing import ArrayLike
from torch import Tensor, nn

from refqnn.errors import FileFormatError, InvalidType, ShapeMismatch, mismatch
from refqnn.training.blocks import AccumulatorRange, Block, FanIn, QuantNet, weight_codes
from refqnn.training.lookups import LookupNet
from refqnn.training.normalization import PowerOfTwoNorm, set_normalization_frozen
from refqnn.training.quantizers import (
    ConstPowerOfTwoWeight,
    FloatSignedAct,
    FloatUnsignedAct,
    SignedAct,
    UnsignedAct,
    check_integer,
    check_number,
)

__all__ = [
    "AccumulatorRange",
    "Block",
    "FloatMLP",
    "PowerOfTwoNorm",
    "QuantConvNet",
    "SparseQuantNeuralNetImpl",
    "set_normalization_frozen",
]

Activation = Callable[[], nn.Module]


def _input_bits(bits: int | None, n_a_bits: int, signed: bool) -> int:
    lowest = 2 if signed else 1
    return check_integer("n_input_bits", max(n_a_bits, lowest) if bits is None else bits, lowest, 8)


def _sizes(hidden_sizes: object) -> tuple[int, ...]:
    if not isinstance(hidden_sizes, Sequence | np.ndarray):
        expected = "integers, one for each hidden layer"
        raise InvalidType(mismatch("hidden_sizes", repr(hidden_sizes), expected))
    return tuple(check_integer("hidden_sizes", size) for size in hidden_sizes)


def _check_activation(activation: Activation) -> None:
    try:
        made: object = activation()
    except TypeError:
        made = None
    if not isinstance(made, nn.Module):
        expected = "a torch activation class, such as nn.ReLU"
        raise InvalidType(mismatch("activation_function", repr(activation), expected))


def _goes_negative(activation: Activation) -> bool:
    grid = torch.linspace(-16.0, 16.0, 4097)
    with torch.no_grad():
        return bool(activation()(grid).min() < 0.0)


def _weight_options(bits: int, narrow: bool, power_of_two: bool) -> dict[str, object]:
    injector = ConstPowerOfTwoWeight if power_of_two else Int8WeightPerTensorFloat
    return {"weight_quant": injector, "weight_bit_width": bits, "weight_narrow_range": narrow}


def _begin(net: QuantNet, bits: int, fan_in: FanIn | None) -> None:
    """Normal weights: deviation 0.43 of the largest code, and at least 0.8 codes (ternary)."""
    unit = math.ldexp(1.0, 1 - bits)
    deviation = max(0.8, 0.43 * (2 ** (bits - 1) - 1))
    for block in net.blocks():
        nn.init.normal_(block.linear.weight, 0.0, deviation * unit)
    nn.init.zeros_(net.blocks()[-1].linear.bias)
    if fan_in is not None:
        net.limit_fan_in(fan_in)


# What a stored module does without: it is in the sizes and weights.
_SPENT = {"self", "n_hidden_neurons_multiplier", "n_prune_neurons_percentage", "fan_in"}


def _arguments(module: type[nn.Module], values: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that make the module again, as its checks left them."""
    names = inspect.signature(module.__init__).parameters.keys() - _SPENT
    return {name: value for name, value in values.items() if name in names}


class SparseQuantNeuralNetImpl(QuantNet):
    """Quantized multilayer perceptron: the torch module under the estimators.

        input codes -> [linear -> normalization -> activation -> codes] x (n_layers - 1) -> linear

    With ``power_of_two_scaling`` every scale is a power of two and every hidden layer is a sum, a
    constant for each neuron and one shift (see the module's text).  Without it, weight and
    activation scales are any floats and the normalization is `torch.nn.BatchNorm1d`: a little more
    accurate, several times dearer under encryption.

    `calibrate` must see the training inputs once before training.

    Args:
        input_dim: number of features.
        n_layers: linear layers in all, >= 1.
        n_outputs: size of the last layer.
        n_hidden_neurons_multiplier: hidden layers have ``round(multiplier * input_dim)`` neurons.
        n_w_bits: bits of the weights, 2 to 8.  2 bits with ``quant_narrow`` are ternary weights.
        n_a_bits: bits of the activations and inputs, 1 to 8 (2 to 8 where signed).
        n_accum_bits: signed bits that no accumulator may exceed, bias included; None for no limit.
            `add_accumulator_budgets` enforces it; an impossible width is an error here.
        n_prune_neurons_percentage: fraction in [0, 1) of the neurons of each hidden layer for the
            caller of `enable_pruning`; building a network prunes nothing.
        activation_function: a torch activation class, or any callable that returns a module.
        quant_narrow: leave out the lowest signed code of weights and hidden activations.
        quant_signed: signedness of the hidden codes; None: signed where the activation can be
            negative.
        power_of_two_scaling: see above.
        hidden_sizes: sizes of the hidden layers; overrides ``n_layers`` and the multiplier.
        n_input_bits: bits of the input codes; None: ``n_a_bits``.
        input_signed: False for inputs that are never negative, such as pixels.
        fan_in: most non-zero weights in a row: one number for all hidden layers, or one entry for
            each linear layer, a number, one for each row or None (dense).  None: dense.  Neurons of
            one input cost nothing under encryption.
        table_bits: choose shifts so large that no accumulator, whatever the weights become, has
            more than this many bits left once its low bits are dropped: the width of the encrypted
            table.  Codes may become coarser; set ``fan_in`` as well.  None: as the data ask.
        output_std: standard deviation of the outputs before training.

    Shape: ``[N, input_dim]`` float32 to ``[N, n_outputs]`` float32.

    Raises:
        InvalidType, InvalidArgument, ShapeMismatch: an argument outside the above.

    >>> _ = torch.manual_seed(0)
    >>> net = SparseQuantNeuralNetImpl(4, 2, 3, hidden_sizes=(16,))
    >>> x = torch.randn(50, 4)
    >>> net.calibrate(x)
    >>> net.eval()(x).shape
    torch.Size([50, 3])
    """

    def __init__(
        self,
        input_dim: int,
        n_layers: int,
        n_outputs: int,
        n_hidden_neurons_multiplier: float = 4,
        n_w_bits: int = 3,
        n_a_bits: int = 3,
        n_accum_bits: int | None = 8,
        n_prune_neurons_percentage: float = 0.0,
        activation_function: Activation = nn.ReLU,
        quant_narrow: bool = False,
        quant_signed: bool | None = None,
        power_of_two_scaling: bool = True,
        *,
        hidden_sizes: Sequence[int] | None = None,
        n_input_bits: int | None = None,
        input_signed: bool = True,
        fan_in: FanIn | None = None,
        table_bits: int | None = None,
        output_std: float = 2.0,
    ) -> None:
        super().__init__()
        input_dim = check_integer("input_dim", input_dim)
        n_outputs = check_integer("n_outputs", n_outputs)
        if hidden_sizes is None:
            n_layers = check_integer("n_layers", n_layers)
            multiplier = check_number("n_hidden_neurons_multiplier", n_hidden_neurons_multiplier)
            hidden_sizes = [max(1, round(multiplier * input_dim))] * (n_layers - 1)
        hidden_sizes = _sizes(hidden_sizes)
        n_layers = len(hidden_sizes) + 1
        n_w_bits = check_integer("n_w_bits", n_w_bits, 2, 8)
        if n_accum_bits is not None:
            n_accum_bits = check_integer("n_accum_bits", n_accum_bits, 2)
        if table_bits is not None:
            table_bits = check_integer("table_bits", table_bits)
        check_number("n_prune_neurons_percentage", n_prune_neurons_percentage, 1.0, zero=True)
        output_std = check_number("output_std", output_std)
        _check_activation(activation_function)
        hidden_signed = (
            _goes_negative(activation_function) if quant_signed is None else quant_signed
        )
        n_a_bits = check_integer("n_a_bits", n_a_bits, 2 if hidden_signed else 1, 8)
        n_input_bits = _input_bits(n_input_bits, n_a_bits, input_signed)

        self.n_w_bits = n_w_bits
        self.n_a_bits = n_a_bits
        self.n_accum_bits = n_accum_bits
        self.n_prune_neurons_percentage = n_prune_neurons_percentage
        self.power_of_two_scaling = power_of_two_scaling
        self.output_std = output_std
        self.table_bits = table_bits
        self.hidden_sizes = hidden_sizes
        self.arguments = _arguments(SparseQuantNeuralNetImpl, locals())

        unsigned = UnsignedAct if power_of_two_scaling else FloatUnsignedAct
        signed = SignedAct if power_of_two_scaling else FloatSignedAct
        # A budget counts integer weights, so their scale must not follow the weights.
        constant = power_of_two_scaling or n_accum_bits is not None
        weights = _weight_options(n_w_bits, quant_narrow, constant)

        def quantizer(bits: int, is_signed: bool, narrow: bool) -> QuantIdentity:
            return QuantIdentity(
                act_quant=signed if is_signed else unsigned,
                bit_width=bits,
                narrow_range=narrow and is_signed,
                return_quant_tensor=True,
            )

        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["quant0"] = quantizer(n_input_bits, input_signed, narrow=False)
        width = input_dim
        for number, size in enumerate(hidden_sizes, start=1):
            parts[f"fc{number}"] = QuantLinear(width, size, bias=False, **weights)
            parts[f"norm{number}"] = (
                PowerOfTwoNorm(size) if power_of_two_scaling else nn.BatchNorm1d(size)
            )
            if activation_function is nn.ReLU and not hidden_signed:
                parts[f"quant{number}"] = QuantReLU(
                    act_quant=unsigned, bit_width=n_a_bits, return_quant_tensor=True
                )
            else:
                parts[f"act{number}"] = activation_function()
                parts[f"quant{number}"] = quantizer(n_a_bits, hidden_signed, narrow=quant_narrow)
            width = size
        parts[f"fc{n_layers}"] = QuantLinear(
            width, n_outputs, bias=True, bias_quant=Int16Bias, **weights
        )
        self.features = nn.Sequential(parts)

        _begin(self, n_w_bits, fan_in)
        if n_accum_bits is not None:
            self.check_accumulator_bits(n_accum_bits)

    @torch.no_grad()
    def plain_copy(self, keep: Sequence[Tensor] | None = None) -> SparseQuantNeuralNetImpl:
        """A copy whose masks and budgets are written into its weights, in evaluation mode.

        Args:
            keep: for each hidden layer the neurons to keep, int64 indices; None: those that any
                later weight reads (at least one).  Leaving out the others changes no output.
        """
        blocks = self.blocks()
        if keep is None:
            keep = []
            for following in blocks[1:]:
                read = (weight_codes(following.linear) != 0).any(dim=0)
                read[0] |= not bool(read.any())
                keep.append(read.nonzero().flatten())
        arguments = {**self.arguments, "hidden_sizes": [len(kept) for kept in keep]}
        with torch.random.fork_rng(devices=[]):
            copy = SparseQuantNeuralNetImpl(**arguments)
        own, state = self.state_dict(), {}
        for name, value in copy.state_dict().items():
            part, _, leaf = name.removeprefix("features.").partition(".")
            layer = getattr(self.features, part)
            source = getattr(layer, leaf).detach() if leaf in ("weight", "bias") else own[name]
            number = int(part[-1 * sum(map(str.isdigit, part)) :])
            if part.startswith("fc") and leaf == "weight":
                if number > 1:
                    source = source[:, keep[number - 2]]
                if number <= len(keep):
                    source = source[keep[number - 1]]
            elif part.startswith("norm") and source.ndim == 1:
                source = source[keep[number - 1]]
            state[name] = source.clone().view_as(value)
        copy.load_state_dict(state)
        return copy.eval()


class FloatMLP(nn.Module):
    """The float twin: linear, batch normalization, activation; nothing quantized.

    Args:
        input_dim: number of features.
        hidden_sizes: neurons of each hidden layer; may be empty.
        n_outputs: size of the last layer.
        activation_function: a torch activation class.

    Shape: ``[N, input_dim]`` to ``[N, n_outputs]``.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_sizes: Sequence[int],
        n_outputs: int,
        activation_function: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        hidden_sizes = _sizes(hidden_sizes)
        _check_activation(activation_function)
        self.arguments = _arguments(FloatMLP, locals())
        parts: list[nn.Module] = []
        width = check_integer("input_dim", input_dim)
        for size in hidden_sizes:
            parts += [nn.Linear(width, size, bias=False)]
            parts += [nn.BatchNorm1d(size), activation_function()]
            width = size
        parts.append(nn.Linear(width, check_integer("n_outputs", n_outputs)))
        self.features = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.features(x)
        return y


class QuantConvNet(QuantNet):
    """Small quantized convolutional network.

        input codes -> [convolution -> normalization -> ReLU codes] x layers -> flatten -> linear

    Same arithmetic as `SparseQuantNeuralNetImpl` with power-of-two scaling: each hidden code is an
    accumulator, plus a constant for its channel, without its low bits.

    Args:
        input_shape: ``(channels, height, width)`` of one input.
        n_outputs: size of the last layer.
        channels: output channels of each convolution.
        strides: stride of each convolution.
        kernel_size: of every convolution; padding is ``kernel_size // 2``, with code 0.
        n_w_bits: bits of the weights, 2 to 8; 2 bits narrow are ternary.
        n_a_bits: bits of the activations, 1 to 8.
        n_input_bits: bits of the input codes; None: ``n_a_bits``.
        input_signed: False for inputs that are never negative, such as pixels.
        quant_narrow: leave out the lowest signed code of the weights.
        fan_in: most non-zero weights in one output channel of a convolution; None: dense.
        table_bits, output_std: as in `SparseQuantNeuralNetImpl`.

    Shape: ``[N, *input_shape]`` float32 to ``[N, n_outputs]`` float32.

    >>> _ = torch.manual_seed(0)
    >>> net = QuantConvNet((1, 8, 8), 10, channels=(4, 8))
    >>> x = torch.rand(20, 1, 8, 8)
    >>> net.calibrate(x)
    >>> net.eval()(x).shape
    torch.Size([20, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_outputs: int,
        channels: Sequence[int] = (8, 16),
        strides: Sequence[int] = (2, 1),
        kernel_size: int = 3,
        n_w_bits: int = 2,
        n_a_bits: int = 2,
        n_input_bits: int | None = None,
        input_signed: bool = False,
        quant_narrow: bool = True,
        fan_in: int | None = None,
        table_bits: int | None = None,
        output_std: float = 2.0,
    ) -> None:
        super().__init__()
        depth, height, width = (check_integer("input_shape", size) for size in input_shape)
        kernel_size = check_integer("kernel_size", kernel_size)
        if len(channels) != len(strides):
            raise ShapeMismatch(
                mismatch("strides", f"{len(strides)} entries", f"{len(channels)}, as channels")
            )
        n_w_bits = check_integer("n_w_bits", n_w_bits, 2, 8)
        n_a_bits = check_integer("n_a_bits", n_a_bits, 1, 8)
        n_input_bits = _input_bits(n_input_bits, n_a_bits, input_signed)
        self.table_bits = table_bits
        self.output_std = output_std

        weights = _weight_options(n_w_bits, quant_narrow, power_of_two=True)
        padding = kernel_size // 2
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["quant0"] = QuantIdentity(
            act_quant=SignedAct if input_signed else UnsignedAct,
            bit_width=n_input_bits,
            return_quant_tensor=True,
        )
        for number, (size, stride) in enumerate(zip(channels, strides, strict=True), start=1):
            stride = check_integer("strides", stride)
            parts[f"conv{number}"] = QuantConv2d(
                depth,
                check_integer("channels", size),
                kernel_size,
                stride=stride,
                padding=padding,
                bias=False,
                **weights,
            )
            parts[f"norm{number}"] = PowerOfTwoNorm(size)
            parts[f"quant{number}"] = QuantReLU(
                act_quant=UnsignedAct, bit_width=n_a_bits, return_quant_tensor=True
            )
            depth = size
            height = (height + 2 * padding - kernel_size) // stride + 1
            width = (width + 2 * padding - kernel_size) // stride + 1
        parts["flatten"] = nn.Flatten()
        parts["fc"] = QuantLinear(
            depth * height * width,
            check_integer("n_outputs", n_outputs),
            bias=True,
            bias_quant=Int16Bias,
            **weights,
        )
        self.features = nn.Sequential(parts)
        _begin(self, n_w_bits, fan_in)


# --- the parts of a module, for files and pickles ------------------------------------------------

_STORED: dict[str, type[nn.Module]] = {
    module.__name__: module for module in (SparseQuantNeuralNetImpl, FloatMLP, LookupNet)
}


def module_state(module: nn.Module) -> tuple[str, dict[str, object], dict[str, ArrayLike]]:
    """Class name, constructor arguments and arrays that make the module again."""
    arrays = {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}
    return type(module).__name__, dict(module.arguments), arrays


def module_from_state(
    kind: str, arguments: Mapping[str, Any], arrays: Mapping[str, ArrayLike]
) -> nn.Module:
    """The module of `module_state`, in evaluation mode."""
    if kind not in _STORED:
        raise FileFormatError(f"unknown module {kind!r}")
    sizes = [arguments["input_dim"], *arguments["hidden_sizes"], arguments["n_outputs"]]
    asked = sum(rows * columns for rows, columns in pairwise(sizes))
    given = sum(np.size(array) for array in arrays.values())
    if asked > given:
        got = f"layers of {sizes} neurons, {asked} weights"
        raise FileFormatError(mismatch("module", got, f"no more than the {given} in the file"))
    with torch.random.fork_rng(devices=[]):
        module = _STORED[kind](**arguments)
    module.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})
    return module.eval()
