"""Every quantizer of a Brevitas module against the network made from it, code by code.

The real, unmodified module runs with hooks on its quantizers; its codes are compared in two ways:

*teacher-forced*: each node of the network is fed the module's codes, so that a difference is one of
this layer alone.  *free-running*: the network runs by itself from the float input.

A difference is explained by the **near-tie certificate** or not at all.  With u = 2**-24 a float32
sum of K terms differs from the exact one by at most K u sum|x_i w_i|; rounding the operands
x_i = fl32(c_i s_x) and w_i = fl32(k_i s_w), the scale, the exact side and the bias adds less than
8 u.  So the module's value v' before bias and activation satisfies

    |v' - v| <= d = (K + 8) u (s sum|c_i k_i| + |b|)

and its code must be one that the module's own function takes on [v - d, v + d].  A function that
vectorized and scalar kernels may round differently (batch normalization, sigmoid, ...) widens the
interval by 2**-21 of the magnitudes that it combines.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from brevitas.quant_tensor import IntQuantTensor
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn.brevitas.inputs import Example, joined, split
from refqnn.brevitas.lower import Closing
from refqnn.brevitas.outputs import Import
from refqnn.brevitas.record import Recording, record
from refqnn.brevitas.values import Value, codes_of
from refqnn.brevitas.walk import import_module
from refqnn.display import Shown
from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.graph import INPUT, inputs_of
from refqnn.network import Difference, Network
from refqnn.ops.base import Op, is_sum
from refqnn.ops.movement import Movement
from refqnn.ops.structure import PADDING, Role

__all__ = ["LayerReport", "Report", "compare", "verify_against"]

_U = 2.0**-24  # unit roundoff of float32
_SLACK = 2.0**-21  # of a function that kernels may round differently
_SAFETY = 1 + 2.0**-10  # the second-order terms of the bound
_BATCH = 512  # samples at a time,
_VALUES = 2**24  # and values of one tensor
_GRID = 2.0**20  # carried errors are rounded up to multiples of 1 / _GRID
_POINTS = 9  # where the module's function is evaluated on [v - d, v + d]


@dataclass
class LayerReport(Shown):
    """What became of the codes of one quantizer (or of the accumulators that leave the network).

    Attributes:
        name: network node; "input" for the input quantizer.
        codes: how many were compared; codes = equal + near_tie + inherited + unexplained.
        equal: how many are the same.
        near_tie: different, inside the near-tie certificate.
        inherited: different, and so is the accumulator (free-running only).
        unexplained: different for no reason that we know: a bug here or there.
        first: the first difference; `expected` is the module's, `got` the network's.
    """

    name: str
    codes: int = 0
    equal: int = 0
    near_tie: int = 0
    inherited: int = 0
    unexplained: int = 0
    first: Difference | None = None

    def __str__(self) -> str:
        text = f"{self.name}: {self.equal} of {self.codes} equal"
        for count, what in (
            (self.near_tie, "near ties"),
            (self.inherited, "inherited"),
            (self.unexplained, "UNEXPLAINED"),
        ):
            text += f", {count} {what}" if count else ""
        return text if self.first is None else f"{text}; first at {self.first}"


@dataclass
class Report(Shown):
    """The comparison of one module with one network.

    Attributes:
        teacher_forced: a `LayerReport` per quantizer, each fed with the module's own codes.
        free_running: the same, the network running by itself.
    """

    teacher_forced: list[LayerReport] = field(default_factory=list)
    free_running: list[LayerReport] = field(default_factory=list)

    @property
    def layers(self) -> list[LayerReport]:
        """The free-running reports."""
        return self.free_running

    @property
    def codes(self) -> int:
        """Codes compared in each of the two ways."""
        return sum(layer.codes for layer in self.teacher_forced)

    @property
    def exact(self) -> bool:
        """No code differs anywhere."""
        every = self.teacher_forced + self.free_running
        return all(layer.equal == layer.codes for layer in every)

    @property
    def ok(self) -> bool:
        """Every difference is explained; see `warning` where there are many."""
        every = self.teacher_forced + self.free_running
        return all(layer.unexplained == 0 for layer in every)

    @property
    def warning(self) -> str | None:
        """What to know of a comparison in which most codes of a layer differ; None otherwise."""
        names = [layer.name for layer in self.teacher_forced if 2 * layer.equal < layer.codes]
        if not names:
            return None
        return (
            f"most integers of {', '.join(names)} differ from the module's: its float32 sums round "
            "there; use fewer bits and power-of-two scales (FixedPoint quantizers), or run the "
            "module under exact_accumulators(), where outputs beyond 2**24 are still float32"
        )

    def __str__(self) -> str:
        lines = ["teacher-forced:", *(f"  {layer}" for layer in self.teacher_forced)]
        lines += ["free-running:", *(f"  {layer}" for layer in self.free_running)]
        if self.warning is not None:
            lines.append(f"WARNING: {self.warning}")
        return "\n".join(lines)


def verify_against(module: nn.Module, network: Network, X: Example) -> Report:
    """Compare the codes of the real module with those of the network, at every quantizer.

    Args:
        module: the Brevitas module, in evaluation mode; it is run as it is.
        network: `from_brevitas(module, ...)`, or what has been read back from its file.
        X: float32 samples [n, *input_shape]; several inputs as a tuple.

    Returns: counts for each quantizer, and for the accumulators of an output that no quantizer
        closes.

    Raises: as `from_brevitas`; InvalidType; InvalidArgument when the network lacks nodes of the
        module, or has others in their places; ShapeMismatch.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity, QuantLinear
    >>> from refqnn.brevitas import from_brevitas
    >>> module = torch.nn.Sequential(QuantIdentity(bit_width=3), QuantLinear(4, 2, bias=False))
    >>> X = torch.randn(8, 4)
    >>> report = verify_against(module, from_brevitas(module.eval(), X), X)
    >>> [(layer.name, layer.codes) for layer in report.layers]
    [('input', 32), ('1', 16)]
    """
    if not isinstance(network, Network):
        raise InvalidType(mismatch("network", type(network).__name__, "a Network"))
    batch, inputs = joined(X, "X")
    if tuple(batch.shape[1:]) != network.input_shape or len(inputs) == 1:
        expected = f"[n, {', '.join(map(str, network.input_shape))}]"
        got = f"shape {tuple(batch.shape)}{' in a list' * len(inputs)}"
        raise ShapeMismatch(mismatch("X", got, expected))
    first = split(batch[:1], inputs)
    imported = import_module(module, first if inputs else first[0])
    return compare(module, network, batch, imported)


def compare(module: nn.Module, network: Network, batch: Tensor, imported: Import) -> Report:
    """`verify_against`, for a module that has been imported already."""
    closings = _by_node(imported, network)
    names = list(closings)
    if network.output not in closings:
        names.append(network.output)
    forced, free = ({name: LayerReport(name) for name in names} for _ in range(2))
    largest = max(prod(shape) for shape in network.shapes.values())
    step = max(1, min(_BATCH, _VALUES // largest))
    for start in range(0, len(batch), step):
        part = batch[start : start + step]
        recording = record(module, part, imported.inputs)
        if imported.head is not None:
            recording.output = record(imported.head, part, imported.inputs).output
        comparison = _Comparison(network, imported, closings, recording, part, start)
        comparison.run(forced, free)
    report = Report(list(forced.values()), list(free.values()))
    if report.ok and report.warning is not None:
        warnings.warn(report.warning, stacklevel=3)
    return report


def _by_node(imported: Import, network: Network) -> dict[str, Closing]:
    """The quantizers by node, in the order of the network."""
    if network.input_quantizer is None:
        raise InvalidArgument("network: got one without input quantizer, expected from_brevitas's")
    closings: dict[str, Closing] = {}
    for closing in imported.closings:
        closings.setdefault(closing.node, closing)
    known = {INPUT, *(node.name for node in network.nodes)}
    wanted = {*closings, imported.network.output}
    for closing in closings.values():
        wanted.update([] if closing.source.node is None else [closing.source.node])
    if missing := sorted(wanted - known):
        raise InvalidArgument(mismatch("network", f"no nodes {missing}", "the module's nodes"))
    for name in wanted:
        got, expected = network.shapes[name], imported.network.shapes[name]
        if got != expected:
            argument = f"network, node {name}"
            raise InvalidArgument(mismatch(argument, f"shape {got}", f"the module's {expected}"))
    if network.output != imported.network.output:
        got_node, its = f"the output {network.output}", f"the module's, {imported.network.output}"
        raise InvalidArgument(mismatch("network", got_node, its))
    if network.output not in closings and network.output_dequantizer is None:
        expected_door = "from_brevitas's: the module's output is compared through it"
        raise InvalidArgument(mismatch("network", "no output dequantizer", expected_door))
    order = [INPUT, *(node.name for node in network.nodes)]
    return {name: closings[name] for name in order if name in closings}


class _Comparison:
    """One batch."""

    def __init__(
        self,
        network: Network,
        imported: Import,
        closings: Mapping[str, Closing],
        recording: Recording,
        x: Tensor,
        start: int,
    ) -> None:
        self.network = network
        self.imported = imported
        self.closings = closings
        self.recording = recording
        self.x = x
        self.start = start
        self.own = network.trace(network.quantize_input(x.numpy()))
        self.theirs = {name: self._codes(closing) for name, closing in closings.items()}
        self.values: dict[str, NDArray[Any]] = {}  # teacher-forced
        self._errors: dict[str, NDArray[np.float64]] = {}

    def run(self, forced: dict[str, LayerReport], free: dict[str, LayerReport]) -> None:
        """Add this batch to the reports."""
        network = self.network
        own = self.own
        # teacher-forced, before the teacher's code takes its place
        computed = {INPUT: own[INPUT]}
        self.values[INPUT] = self.theirs.get(INPUT, own[INPUT])
        for node in network.nodes:
            inputs = (self.values[name] for name in inputs_of(node))
            computed[node.name] = node.op.forward(*inputs)
            self.values[node.name] = self.theirs.get(node.name, computed[node.name])
        if network.output not in self.closings:
            self.theirs[network.output] = self._output()
        for name, report in forced.items():
            differs = computed[name] != self.theirs[name]
            near = self._near_ties(name, differs, computed[name])
            self._count(report, computed[name], near, np.zeros_like(differs))
        for name, report in free.items():
            differs = own[name] != self.theirs[name]
            source = self._source(name)
            inherited = np.zeros_like(differs)
            if source is not None:
                moved = own[source] != self.values[source]
                if name == network.output and name not in self.closings:
                    moved = own[name] != computed[name]
                inherited = differs & moved
            near = self._near_ties(name, differs & ~inherited, own[name])
            self._count(report, own[name], near, inherited)

    def _source(self, name: str) -> str | None:
        """The node whose integers the quantizer of this node closes."""
        return self.closings[name].source.node if name in self.closings else name

    def _codes(self, closing: Closing) -> NDArray[np.int64]:
        """The module's codes [n, *shape of the node]."""
        output = self.recording.output_of(closing.quantizer, closing.call)
        shape = self.network.shapes[closing.node]
        codes = codes_of(output).numpy()
        if closing.layout is None:
            return codes.reshape(-1, *shape)
        placed = self.own[closing.node].copy()  # some of it may not be read
        read = closing.layout.ravel() != PADDING
        positions = placed.reshape(len(codes), -1)  # a view
        positions[:, closing.layout.ravel()[read]] = codes.reshape(len(codes), -1)[:, read]
        return placed

    def _float_output(self) -> NDArray[np.float64]:
        output = self.recording.output
        if isinstance(output, (tuple, list)) and not isinstance(output, IntQuantTensor):
            output = output[0]  # all of them are one
        output = getattr(output, "value", output)
        shape = self.network.shapes[self.network.output]
        return output.detach().double().numpy().reshape(-1, *shape)

    def _output(self) -> NDArray[np.int64]:
        """The module's output on the accumulator's grid."""
        door = self.network.output_dequantizer
        assert door is not None
        ndim = self.values[self.network.output].ndim
        shape = (1, -1, *(1,) * (ndim - 2))
        scale, offset = (
            np.asarray(v, dtype=np.float64).reshape(shape if v.ndim else ())
            for v in (door.scale, door.offset)
        )
        return np.rint((self._float_output() - offset) / scale).astype(np.int64)

    def _count(
        self,
        report: LayerReport,
        ours: NDArray[Any],
        near: NDArray[np.bool_],
        inherited: NDArray[np.bool_],
    ) -> None:
        theirs = self.theirs[report.name]
        differs = ours != theirs
        report.codes += ours.size
        report.equal += int((~differs).sum())
        report.near_tie += int(near.sum())
        report.inherited += int(inherited.sum())
        report.unexplained += int((differs & ~near & ~inherited).sum())
        if report.first is None and differs.any():
            index = tuple(int(i) for i in np.argwhere(differs)[0])
            report.first = Difference(
                report.name,
                (index[0] + self.start, *index[1:]),
                int(theirs[index]),
                int(ours[index]),
                int(differs.sum()),
                int(ours.size),
            )

    # --- the near-tie certificate -----------------------------------------------------------

    def _near_ties(
        self, name: str, differs: NDArray[np.bool_], ours: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Which of the differing codes are explained by rounding in the module alone.

        The module's code must be possible on [v - d, v + d], and ours at v itself.
        """
        near = np.zeros_like(differs)
        if name == INPUT or not differs.any():
            return near
        closing = self.closings.get(name)
        value = self.imported.output if closing is None else closing.source
        assert value.node is not None
        acc = self.values[value.node]
        error, growth = self._error(value.node), self._growth(value.node)
        where = np.nonzero(differs)
        channels = value.shape[0]
        block = max(1, 2**21 // (channels * _POINTS))
        explained = []
        for at in range(0, len(where[0]), block):
            index = tuple(axis[at : at + block] for axis in where)
            around = _interval(value, acc[index], error[index], growth, index[1])
            alone = _interval(value, acc[index], np.zeros(len(index[0])), 0.0, index[1])
            if closing is None:
                door = np.asarray(self.network.dequantize_output(ours), dtype=np.float64)[index]
                theirs = _inside(self._float_output()[index], *around)
                explained.append(theirs & _inside(door, *_widened(*alone)))
            else:
                theirs = _inside(
                    self.theirs[name][index], _codes_between(closing, value, *around, index[1])
                )
                own = _inside(ours[index], _codes_between(closing, value, *alone, index[1]))
                explained.append(theirs & own)
        near[where] = np.concatenate(explained)
        return near

    def _growth(self, name: str) -> float:
        """(K + 8) u of the sum behind a node."""
        if name == INPUT:
            return 8 * _U
        node = self.network[name]
        sources = inputs_of(node)
        if is_sum(node.op):
            shapes = (self.network.shapes[source] for source in sources)
            return (node.op.fan_in(*shapes) + 8) * _U
        if node.op.role in (Role.WINDOW, Role.RELABEL):
            return self._growth(sources[0])
        return (len(sources) + 8) * _U

    def _error(self, name: str) -> NDArray[np.float64]:
        """Bound of |module's value - exact value| at a node, in units of its integers."""
        if name not in self._errors:
            codes = name == INPUT or name in self.closings
            zero = np.zeros(self.values[name].shape)
            self._errors[name] = zero if codes else self._error_of(name)
        return self._errors[name]

    def _error_of(self, name: str) -> NDArray[np.float64]:
        node = self.network[name]
        op, inputs = node.op, inputs_of(node)
        errors = [self._error(i) for i in inputs]
        zero_points = [abs(self.imported.zero_points.get(i, 0)) for i in inputs]
        sizes = [np.abs(self.values[i]) + z for i, z in zip(inputs, zero_points)]
        if is_sum(op):
            # sum |w| (growth |x| + e) + growth |b|
            growth = self._growth(name) * _SAFETY
            mass = op.absolute(padded=True).forward(*sizes)
            bias = _bias_magnitude(op, mass.ndim)
            carried = [np.ceil(error * _GRID).astype(np.int64) for error in errors]
            from_inputs = op.absolute(padded=False).forward(*carried)
            return np.asarray(growth * (mass + bias) + from_inputs / _GRID, dtype=np.float64)
        if isinstance(op, Movement):
            return np.asarray(op.moved(*errors, fill=0), dtype=np.float64)
        if op.role is Role.WINDOW:
            return np.asarray(op.forward(*errors), dtype=np.float64)
        return errors[0]


def _bias_magnitude(op: Op, ndim: int) -> NDArray[np.int64]:
    """|bias| shaped to broadcast against [n, out, ...]; 0 without one."""
    bias = getattr(op, "bias", None)
    if bias is None:
        return np.zeros((), dtype=np.int64)
    return np.asarray(np.abs(bias).reshape(-1, *(1,) * (ndim - 2)))


def _inside(value: NDArray[Any], *bounds: NDArray[Any]) -> NDArray[np.bool_]:
    """Elementwise: between the least and the greatest of the bounds, [points, m] each?"""
    every = np.concatenate(bounds)
    return np.asarray((value >= every.min(axis=0)) & (value <= every.max(axis=0)))


def _widened(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For a dequantizer that multiplies by scale / count where the module divides last."""
    return low - _SLACK * np.abs(low), high + _SLACK * np.abs(high)


def _interval(
    value: Value,
    acc: NDArray[Any],
    error: NDArray[np.float64],
    growth: float,
    channel: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """v - d and v + d behind all steps, [points, m] each (low below high)."""
    scale = value.step_scale.double().numpy()
    step = np.abs(scale[channel] if scale.ndim else scale)
    bias = np.zeros(value.shape[0])
    for s in value.steps:
        bias = bias if s.bias is None else bias + np.abs(s.bias.double().numpy())
    d = (error * step + growth * bias[channel]) * _SAFETY

    def spread(columns: NDArray[np.float64]) -> Tensor:
        """[points, m] to [points * m, channels, 1...], each value in its own channel."""
        flat = np.zeros((columns.size, value.shape[0]), dtype=np.float32)
        flat[np.arange(columns.size), np.tile(channel, len(columns))] = columns.ravel()
        return torch.from_numpy(flat).reshape(
            len(flat), value.shape[0], *(1,) * (len(value.shape) - 1)
        )

    def pick(tensor: Tensor) -> NDArray[np.float64]:
        flat = tensor.reshape(-1, value.shape[0]).double().numpy()
        return flat[np.arange(len(flat)), np.tile(channel, _POINTS)].reshape(_POINTS, -1)

    with torch.no_grad():
        integers = spread(acc[None].astype(np.float64)).to(torch.int64)
        first = value.first(integers).reshape(-1, value.shape[0]).double().numpy()
        v = first[np.arange(len(first)), channel]  # [m]
        share = np.linspace(-1.0, 1.0, _POINTS)[:, None]
        low = high = v + share * d
        for s in value.steps:
            zero = pick(s.function(spread(np.zeros_like(low))))
            low, high = pick(s.function(spread(low))), pick(s.function(spread(high)))
            low, high = np.minimum(low, high), np.maximum(low, high)
            if s.rounds:
                slack = _SLACK * (np.maximum(np.abs(low), np.abs(high)) + np.abs(zero))
                low, high = low - slack, high + slack
    return low, high


def _codes_between(
    closing: Closing,
    value: Value,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    channel: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Codes of the module's quantizer at all these floats, [2 * points, m]."""
    columns = np.concatenate([low, high])
    flat = np.zeros((columns.size, value.shape[0]), dtype=np.float32)
    row = np.arange(columns.size)
    flat[row, np.tile(channel, len(columns))] = columns.ravel()
    shape = (len(flat), value.shape[0], *(1,) * (len(value.shape) - 1))
    with torch.no_grad():
        codes = closing.quantize(torch.from_numpy(flat).reshape(shape))
    picked = codes.reshape(len(flat), -1).numpy()[row, np.tile(channel, len(columns))]
    return np.asarray(picked.reshape(columns.shape))
