"""A prepared forward: the same integers, carried by floats, one block of samples at a time.

The specification is the program of nodes, which `Network.trace` runs one by one in integers.  A
`Plan` is what `Network.forward` runs instead where the proved ranges allow it:

    layout      values are [*shape, n], the samples last: whatever an operation does in space is a
                slice of outer axes, Flatten is a reshape, channels are rows
    arithmetic  each node is computed in the narrowest float that holds its absolute mass
                (refqnn.arithmetic), so every sum is exact
    products    Linear is weight @ x, a convolution weight @ columns with its windows unfolded
    codes       a Requantize is a line, floor(acc * slope + offset) saturated, where that is proved
                to give its thresholds in floats; else a table
    blocks      as many samples as keep the values near the processor: memory does not grow with n

A network of few possible inputs is one table of all its outputs (`Enumeration`).

Both are made once for a network and never change; each call holds its own values, so threads may
share them.  The tests hold them against the specification and against refqnn.exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, log2, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.arithmetic import Arithmetic, IntArray
from refqnn.formats import as_integers
from refqnn.graph import INPUT, Node, inputs_of, last_uses
from refqnn.limits import (
    BLAS_PRODUCT,
    BLOCK_VALUES,
    CODE_TABLE,
    ENUMERATED_INPUTS,
    ENUMERATED_OUTPUTS,
    ENUMERATED_WORK,
    LINE_LEVELS,
    NARROWEST_PRODUCT,
    NUMPY_BUFFER,
    at_a_time,
)
from refqnn.ops import (
    KINDS,
    Add,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Requantize,
    Rescale,
    Reshape,
    SumPool2d,
)
from refqnn.ops.base import Interval, Op, Shape
from refqnn.ops.conv import Convolution
from refqnn.ops.movement import Movement
from refqnn.ops.requantize import ALWAYS, NEVER
from refqnn.ops.structure import PADDING
from refqnn.ops.weighted import WeightedSum
from refqnn.ops.windows import Padding

if TYPE_CHECKING:
    from refqnn.network import Network

__all__ = ["Enumeration", "Plan", "enumerated", "prepare"]

Values = NDArray[Any]  # floats that hold integers, [*shape, n]
Step = Callable[..., Values]

_FARTHEST = 2**54  # no sum that a plan carries, with its bias or without, comes so far


@dataclass(frozen=True, eq=False)
class Plan:
    """The prepared forward of a network; made by `prepare`.

    Attributes:
        network: what it computes.
        steps: (name, function, names of its inputs, names not needed after it), in order.
        lo, hi: the lowest and the highest input code, in the float that carries them.
        block: samples computed at one time.
    """

    network: Network
    steps: Sequence[tuple[str, Step, Sequence[str], Sequence[str]]]
    lo: np.floating[Any]
    hi: np.floating[Any]
    block: int

    def forward(self, codes: ArrayLike) -> NDArray[np.int64]:
        """What `Network.forward` says: the same integers, the same errors."""
        network = self.network
        array = _integers(network, codes)
        n = len(array)
        out = np.empty((n, *network.shapes[network.output]), dtype=np.int64)
        for start in range(0, n, self.block):
            stop = start + self.block
            x = self._carried(array[start:stop])
            if _leaves(x, self.lo, self.hi):
                network.check_codes(array)
            run = self._run if n < NUMPY_BUFFER else self._run_with_small_buffers
            _store(run(x), out[start:stop])
        return out

    def _carried(self, codes: NDArray[Any]) -> Values:
        """Codes [n, *input_shape] as floats [*input_shape, n]."""
        if codes.ndim == 2:  # BLAS takes a transposed matrix as it is
            return codes.astype(self.lo.dtype, order="C").T
        return np.moveaxis(codes, 0, -1).astype(self.lo.dtype, order="C")

    def _run(self, x: Values) -> Values:
        """Outputs [*output_shape, n] of codes [*input_shape, n]."""
        values = {INPUT: x}
        for name, step, inputs, dead in self.steps:
            values[name] = step(*[values[i] for i in inputs])
            for done in dead:
                del values[done]
        return values[self.network.output]

    def _run_with_small_buffers(self, x: Values) -> Values:
        """The same.  numpy copies an operand that repeats along a row if the row fits its buffer,
        which doubles the time of an addition."""
        size = np.setbufsize(NUMPY_BUFFER)
        try:
            return self._run(x)
        finally:
            np.setbufsize(size)


@dataclass(frozen=True, eq=False)
class Enumeration:
    """A network as a table of its outputs for all inputs; made by `enumerated`.

    Attributes:
        network: what it computes.
        places: [size]; the row of an input is codes @ places, its codes are the digits.  Rows
            below 0 count from the end, as everywhere in numpy.
        table: [inputs, *output_shape].
        lo, hi: the lowest and the highest input code, in the float that carries them.
    """

    network: Network
    places: Values
    table: NDArray[np.int64]
    lo: np.floating[Any]
    hi: np.floating[Any]

    def forward(self, codes: ArrayLike) -> NDArray[np.int64]:
        """What `Network.forward` says: the same integers, the same errors."""
        array = _integers(self.network, codes)
        x = array.reshape(len(array), -1).astype(self.places.dtype)
        if _leaves(x, self.lo, self.hi):
            self.network.check_codes(array)
        return self.table.take((x @ self.places).astype(np.intp), axis=0)


def _integers(network: Network, codes: ArrayLike) -> NDArray[Any]:
    """Integers [n, *input_shape], n >= 1; checked where floats could not tell what is wrong."""
    plain = type(codes) is np.ndarray and codes.dtype.kind in "iu"
    array: Any = codes if plain else as_integers(codes, "codes")
    fits = array.shape[1:] == network.input_shape and len(array) > 0
    if not fits or array.dtype == object or network.input_format.step != 1:
        return network.check_codes(array)
    return np.asarray(array)


def _leaves(x: Values, lo: np.floating[Any], hi: np.floating[Any]) -> bool:
    """Is a code outside?  None slips in by rounding, which is monotone, and exact at the ends and
    next to them (the float that carries the codes holds one more on either side)."""
    return bool(np.minimum.reduce(x, axis=None) < lo or np.maximum.reduce(x, axis=None) > hi)


def _store(y: Values, out: NDArray[np.int64]) -> None:
    """y [*shape, n] into out [n, *shape]."""
    n = len(out)
    columns, rows = out.reshape(n, -1), y.reshape(-1, n)
    if len(rows) >= n:
        columns[...] = rows.T
    else:  # few long rows: one after the other is several times faster
        for k, row in enumerate(rows):
            columns[:, k] = row


# --- sums -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Sum:
    """A sum, and what follows it while its values are in the cache: acc -> pool -> codes.

    Attributes:
        terms: the sum without its bias, a fresh array [channels, ..., n].
        bias: [channels, 1], or None; `codes` have it folded in.
        pool: a MaxPool2d that follows.  Codes are monotone in the sum, so it goes first.
        codes: the Requantize that follows.
    """

    terms: Step
    bias: Values | None
    pool: Step | None = None
    codes: Step | None = None

    def __call__(self, *x: Values) -> Values:
        acc = self.terms(*x)
        if self.pool is not None:
            acc = self.pool(acc)
        if self.codes is not None:
            return self.codes(acc)
        if self.bias is not None:
            rows = acc.reshape(len(acc), -1)
            return np.add(rows, self.bias, out=rows).reshape(acc.shape)
        return acc


@dataclass(frozen=True, eq=False)
class _Linear:
    """weight @ x, weight [out, in]."""

    weight: Values

    def __call__(self, x: Values) -> Values:
        out = np.empty((len(self.weight), x.shape[-1]), self.weight.dtype)
        return _product(self.weight, x.astype(self.weight.dtype, copy=False), out)


@dataclass(frozen=True, eq=False)
class _Conv:
    """weight @ columns, one product for each row of the output.

    Windows are unfolded along the width alone, rows outermost.  The columns of an output row are
    then kernel height rows of that, one after the other: a view, unless the rows are dilated.

    Attributes:
        weight: [groups, 1, out / groups, kernel height * (in / groups) * kernel width].
        kernel, stride, dilation, padding: height and width; a Conv1d lies along the height.
        sizes, positions: height and width of the input and of the output.
        out_shape: of a sample.
    """

    weight: Values
    kernel: Shape
    stride: Shape
    dilation: Shape
    padding: Padding
    pad_code: int
    sizes: Shape
    positions: Shape
    out_shape: Shape

    def __call__(self, x: Values) -> Values:
        groups, _, out, terms = self.weight.shape
        n = x.shape[-1]
        x = x.astype(self.weight.dtype, copy=False).reshape(groups, -1, *self.sizes, n)
        rows = self._unfolded(x.swapaxes(1, 2))  # [groups, rows, in / groups, kw, positions[1], n]
        height, width = self.positions
        acc = np.empty((groups, out, height, width * n), self.weight.dtype)
        _product(self.weight, self._columns(rows, terms), acc.swapaxes(1, 2))
        return acc.reshape(*self.out_shape, n)

    def _unfolded(self, x: Values) -> Values:
        """x [groups, rows, in / groups, columns, n], padded; position q of column v of the kernel
        is column q * stride + v * dilation - padding."""
        groups, rows, channels, columns, n = x.shape
        (above, below), (left, right) = self.padding
        kernel, step, positions = self.kernel[1], self.stride[1], self.positions[1]
        if not (above or below or left or right) and max(kernel, step) == 1:
            return np.ascontiguousarray(x)[:, :, :, None]
        shape = (groups, above + rows + below, channels, kernel, positions, n)
        unfolded = np.empty(shape, x.dtype)
        unfolded[:, :above] = self.pad_code
        unfolded[:, above + rows :] = self.pad_code
        for v in range(kernel):
            to = unfolded[:, above : above + rows, :, v]  # [groups, rows, channels, positions, n]
            start = v * self.dilation[1] - left
            first = min(positions, max(0, -(start // step)))
            stop = max(first, min(positions, (columns - 1 - start) // step + 1))
            to[:, :, :, :first] = self.pad_code
            to[:, :, :, stop:] = self.pad_code
            if first < stop:
                last = start + (stop - 1) * step
                to[:, :, :, first:stop] = x[:, :, :, start + first * step : last + 1 : step]
        return unfolded

    def _columns(self, rows: Values, terms: int) -> Values:
        """[groups, output rows, terms, columns of one product]."""
        groups, *_, width, n = rows.shape
        height, step, dilation = self.positions[0], self.stride[0], self.dilation[0]
        shape = (groups, height, terms, width * n)
        if dilation > 1:
            places = np.arange(height)[:, None] * step + np.arange(self.kernel[0]) * dilation
            return rows[:, places].reshape(shape)
        group, row, *_, value = rows.strides
        return np.ndarray(shape, rows.dtype, rows, 0, (group, step * row, width * n * value, value))


def _product(weight: Values, x: Values, out: Values) -> Values:
    """out = weight [..., m, k] @ x [..., k, n], in slices of columns that BLAS multiplies fast."""
    m, k = weight.shape[-2:]
    n = x.shape[-1]
    width = BLAS_PRODUCT // (m * k)
    if n <= width or width < NARROWEST_PRODUCT or x.strides[-1] != x.itemsize:
        return np.matmul(weight, x, out=out)
    width -= width % NARROWEST_PRODUCT
    slices = n // width
    body = slices * width

    def sliced(a: Values) -> Values:
        """[..., rows, body] as [slices, ..., rows, width], a view."""
        return np.moveaxis(a[..., :body].reshape(*a.shape[:-1], slices, width), -2, 0)

    np.matmul(weight, sliced(x), out=sliced(out))
    if body < n:
        np.matmul(weight, x[..., body:], out=out[..., body:])
    return out


@dataclass(frozen=True, eq=False)
class _Add:
    """sum of multipliers[i] * x_i."""

    multipliers: Sequence[int]
    dtype: Any

    def __call__(self, *x: Values) -> Values:
        total = np.multiply(x[0], self.multipliers[0], dtype=self.dtype, order="C")
        for values, multiplier in zip(x[1:], self.multipliers[1:]):
            total += np.multiply(values, multiplier, dtype=self.dtype)
        return np.asarray(total)


@dataclass(frozen=True, eq=False)
class _GlobalSum:
    """The sum over all positions of a channel."""

    dtype: Any

    def __call__(self, x: Values) -> Values:
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        return np.asarray(np.add.reduce(flat, axis=1, dtype=self.dtype))


@dataclass(frozen=True, eq=False)
class _Pool:
    """np.maximum or np.add over windows of [channels, height, width, n], axis by axis."""

    combine: np.ufunc
    window: MaxPool2d | SumPool2d
    pad_code: float
    positions: Shape
    dtype: Any

    def __call__(self, x: Values) -> Values:
        x = _padded(x.astype(self.dtype, copy=False), self.window.padding, self.pad_code)
        rows = self._along(x, 0, (slice(None),))
        return self._along(rows, 1, (slice(None), slice(None)))

    def _along(self, x: Values, i: int, outer: tuple[slice, ...]) -> Values:
        """One axis: position p combines x[s p], x[s p + 1], ..., x[s p + kernel - 1]."""
        step, kernel = self.window.stride[i], self.window.kernel[i]
        last = step * (self.positions[i] - 1) + 1
        first, *others = (x[(*outer, slice(u, u + last, step))] for u in range(kernel))
        if not others:
            return first.copy()
        total: Values = self.combine(first, others[0])
        for values in others[1:]:
            self.combine(total, values, out=total)
        return total


def _padded(x: Values, padding: Padding, value: float) -> Values:
    """x [channels, *sizes, n] with `value` around its sizes, C-contiguous."""
    if not any(before or after for before, after in padding):
        return np.ascontiguousarray(x)
    channels, *sizes, n = x.shape
    larger = [before + size + after for size, (before, after) in zip(sizes, padding)]
    padded = np.full((channels, *larger, n), value, dtype=x.dtype)
    inside = (slice(before, before + size) for size, (before, _) in zip(sizes, padding))
    padded[(slice(None), *inside)] = x
    return padded


# --- codes ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Line:
    """code = clip(round(acc * slope + offset), lo, hi); overwrites acc.

    What floor((acc + half) / 2**r) is to a shift, for any nearly even thresholds; see `_line`.

    Attributes:
        round: np.floor, or np.rint, which rounds half to even.
        slope, offset: [channels, 1]; slope None: acc comes multiplied by it.
        lo, hi: [channels, 1], or a row for all channels as long as any acc: numpy compares two rows
            several times as fast as a row and a number.
        dtype: the float of the codes.
    """

    round: np.ufunc
    slope: Values | None
    offset: Values
    lo: Values
    hi: Values
    dtype: Any

    @classmethod
    def of(cls, round: np.ufunc, parameters: Values, dtype: Any) -> _Line:
        """parameters [4, channels, 1]: slope, offset, lo, hi."""
        slope, offset, lo, hi = parameters
        return cls(round, slope, offset, lo, hi, dtype)

    def __call__(self, acc: Values) -> Values:
        rows = acc.reshape(len(acc), -1).astype(self.offset.dtype, copy=False)
        n = rows.shape[1]
        if self.slope is not None:
            np.multiply(rows, self.slope, out=rows)
        np.add(rows, self.offset, out=rows)
        self.round(rows, out=rows)
        np.maximum(rows, self.lo[:, :n], out=rows)
        np.minimum(rows, self.hi[:, :n], out=rows)
        return rows.reshape(acc.shape).astype(self.dtype, copy=False)

    def for_rows_of(self, n: int) -> _Line:
        """The same line with rows of ends, where all channels have the same."""
        if any((end != end[0]).any() for end in (self.lo, self.hi)):
            return self
        lo, hi = (np.full((1, n), end[0], end.dtype) for end in (self.lo, self.hi))
        return replace(self, lo=lo, hi=hi)


@dataclass(frozen=True, eq=False)
class _Table:
    """table[acc + origin], origin [channels or 1, 1]: one channel's values after another's."""

    table: Values
    origin: NDArray[np.intp]

    def __call__(self, acc: Values) -> Values:
        index = acc.reshape(len(acc), -1).astype(np.intp)
        np.add(index, self.origin, out=index)
        return self.table.take(index).reshape(acc.shape)


@dataclass(frozen=True, eq=False)
class _Fresh:
    """A function that overwrites its argument, given a copy."""

    function: Step

    def __call__(self, x: Values) -> Values:
        return self.function(x.copy())


@dataclass(frozen=True)
class _Concat:
    """Channels one after the other."""

    def __call__(self, *x: Values) -> Values:
        return np.concatenate(x)


@dataclass(frozen=True)
class _Reshape:
    """The same values under another shape, in row-major order."""

    shape: Shape

    def __call__(self, x: Values) -> Values:
        return x.reshape(*self.shape, x.shape[-1])


@dataclass(frozen=True, eq=False)
class _Moved:
    """Values that stand at other places, as the `sources` of a node say."""

    sources: NDArray[np.int64]  # [*shape]
    fill: int
    dtype: Any  # which holds the fill too

    def __call__(self, *x: Values) -> Values:
        flat = np.concatenate([v.reshape(-1, v.shape[-1]) for v in x])
        values = flat.astype(self.dtype, copy=False).take(self.sources, axis=0, mode="wrap")
        values[self.sources == PADDING] = self.fill
        return np.asarray(values)


@dataclass(frozen=True, eq=False)
class _Specified:
    """The node's own forward, for what has no faster form here.

    Attributes:
        bias: [channels], added to the (first) operand before.
    """

    op: Op
    dtype: Any
    bias: IntArray | None = None

    def __call__(self, *x: Values) -> Values:
        first, *others = (np.moveaxis(v, -1, 0).astype(np.int64) for v in x)
        if self.bias is not None:
            first += self.bias.reshape(-1, *(1,) * (first.ndim - 2))
        return np.moveaxis(self.op.forward(first, *others), 0, -1).astype(self.dtype, order="C")


def _line(
    thresholds: IntArray, lo: IntArray, hi: IntArray, q_min: int, dtype: Any, out: Any
) -> _Line | None:
    """The line that gives the codes of a Requantize for every acc in [lo, hi], or None.

    Args:
        thresholds: [channels, levels - 1]; lo, hi: [channels].
        dtype: the float of the arithmetic; out: of the codes.

    A line through all thresholds ends at the same codes in every channel, so it is tried first;
    then one through those that acc can reach.
    """
    everything = np.full_like(lo, -_FARTHEST), np.full_like(hi, _FARTHEST)
    for starts, ends in (everything, (lo, hi)):
        for round, fit in ((np.floor, _fit), (np.rint, _fit_half_even)):
            rows = []
            for t, low, high, start, end in zip(thresholds, lo, hi, starts, ends):
                fitted = t[(start < t) & (t <= end)]
                first = q_min + int(np.count_nonzero(t <= start))  # the code below them
                slope, offset = fit(fitted, first + 1, dtype)
                row = np.array([[slope], [offset], [first], [first + len(fitted)]], dtype=dtype)
                if not _proved(_Line.of(round, row[:, None], dtype), t, low, high, q_min):
                    break
                rows.append(row)
            else:
                return _Line.of(round, np.stack(rows, axis=1), out)
    return None


def _proved(line: _Line, t: IntArray, low: int, high: int, q_min: int) -> bool:
    """Does the line give the codes of the thresholds t [levels - 1] on all of [low, high]?

    Line and Requantize are both nondecreasing in acc (every float operation of a line rounds
    monotonically).  So they agree everywhere when they agree at the two ends, at every threshold
    between them and one below it.
    """
    inside = t[(low < t) & (t <= high)]
    points = np.concatenate([[low, high], inside, inside - 1])
    codes = np.searchsorted(t, points, side="right") + q_min
    return bool((line(points[None].astype(line.offset.dtype)) == codes).all())


def _fit(t: IntArray, first: int, dtype: Any) -> tuple[float, float]:
    """A slope and an offset for which floor(x * slope + offset) reaches first + k at x = t[k].

    That is slope * t[k] + offset >= first + k > slope * (t[k] - 1) + offset for every k.  Two of
    these, for j < k, leave an offset exactly when

        (k - j) / (t[k] - t[j] + 1) < slope < (k - j) / (t[k] - t[j] - 1)

    (no upper bound where t[k] - t[j] <= 1).  A power of two of what all pairs leave, else the
    middle, if anything.
    """
    if len(t) == 0:
        return 0.0, float(first - 1)
    code = first + np.arange(len(t), dtype=np.float64)
    j, k = np.triu_indices(len(t), 1)
    rise, run = code[k] - code[j], (t[k] - t[j]).astype(np.float64)
    least = (rise / (run + 1)).max(initial=0.0)
    most = (rise[run > 1] / (run[run > 1] - 1)).min(initial=inf)
    most = min(most, 4 * least or 2.0)
    slope = 2.0 ** (ceil(log2(most)) - 1)  # below most
    if slope <= least:
        slope = float(dtype((least + most) / 2))
    offset = (code - slope * t).max() / 2 + (code - slope * (t - 1)).min() / 2
    return slope, float(offset)


def _fit_half_even(t: IntArray, first: int, dtype: Any) -> tuple[float, float]:
    """The same for rint(x * slope + offset), where the thresholds of ties alternate.

    A tie k - 1/2 goes up to k for even k.  So t[k + 2] - t[k] is two steps of the line, and an even
    code begins at its tie: slope * t[k] + offset = k - 1/2.
    """
    if len(t) < 3:
        slope, offset = _fit(t, first, dtype)
        return slope, offset - 0.5
    slope = float(dtype(2 / max(1, int(t[2] - t[0]))))
    i = first % 2
    return slope, first + i - 0.5 - slope * float(t[i])


def _folded(step: _Sum) -> _Sum:
    """The slope of the codes moved into the weights, where that is as exact.

    A power of two changes exponents alone: every sum is the same number of smaller steps.
    """
    terms, line = step.terms, step.codes
    if not isinstance(terms, (_Linear, _Conv)) or not isinstance(line, _Line):
        return step
    slope, weight = line.slope, terms.weight
    if slope is None or slope.dtype != weight.dtype:
        return step
    mantissa, _ = np.frexp(slope)
    if not np.isin(mantissa, (0.0, 0.5)).all():
        return step
    by_row = np.broadcast_to(slope, (prod(weight.shape[:-1]), 1)).reshape(*weight.shape[:-1], 1)
    return replace(
        step, terms=replace(terms, weight=weight * by_row), codes=replace(line, slope=None)
    )


# --- from nodes to steps ----------------------------------------------------------------------


def prepare(network: Network) -> Plan | None:
    """The plan of a network; None where a sum or a value may leave what float64 holds exactly.

    Raises: as `Network.ranges`.
    """
    return _Preparation(network).plan()


def enumerated(plan: Plan) -> Enumeration | None:
    """The table of all outputs; None where there are too many, and for bipolar inputs."""
    network = plan.network
    fmt, size = network.input_format, prod(network.input_shape)
    outputs = prod(network.shapes[network.output])
    inputs = fmt.levels ** min(size, 15)  # enough to tell that there are too many
    if (
        fmt.step != 1
        or inputs > ENUMERATED_INPUTS
        or inputs * outputs > ENUMERATED_OUTPUTS
        or inputs * _work(network) > ENUMERATED_WORK
    ):
        return None
    digits = np.indices((fmt.levels,) * size).reshape(size, inputs).T  # [inputs, size]
    table = plan.forward((fmt.q_min + digits).reshape(inputs, *network.input_shape))
    places = fmt.levels ** np.arange(size - 1, -1, -1)
    first = fmt.q_min * int(places.sum())  # row of the lowest codes
    return Enumeration(
        network, places.astype(np.float32), np.roll(table, first, axis=0), plan.lo, plan.hi
    )


def _work(network: Network) -> int:
    """How many values and products a sample takes."""
    work = sum(prod(shape) for shape in network.shapes.values())
    for node in network.nodes:
        if isinstance(node.op, WeightedSum):
            work += node.op.fan_in() * prod(network.shapes[node.name])
    return work


class _Preparation:
    """What is proved about a network, and the functions that follow from it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shapes = network.shapes
        self.ranges = network.ranges()
        self.masses = {
            node.name: node.op.prepare(*(self.ranges[name] for name in inputs_of(node)))
            for node in network.accumulators()
        }
        self.block = at_a_time(max(map(self._held, network.nodes)), BLOCK_VALUES)

    def plan(self) -> Plan | None:
        largest = [interval.largest for interval in self.ranges.values()]
        if max(*largest, *self.masses.values()) > Arithmetic.FLOAT64.value[1]:
            return None
        program: list[tuple[str, Step, tuple[str, ...]]] = []
        absorbed: set[str] = set()
        for node in self.network.nodes:
            if node.name in absorbed:
                continue
            followers = self._followers(node) if type(node.op) in _TERMS else []
            absorbed |= {follower.name for follower in followers}
            name = followers[-1].name if followers else node.name
            program.append((name, self._step(node, followers), inputs_of(node)))
        dead = last_uses([(name, inputs) for name, _, inputs in program], self.network.output)
        fmt = self.network.input_format
        dtype = Arithmetic.for_mass(max(abs(fmt.q_min), abs(fmt.q_max)) + 1).dtype
        steps = [(*step, names) for step, names in zip(program, dead)]
        return Plan(self.network, steps, dtype(fmt.q_min), dtype(fmt.q_max), self.block)

    def _followers(self, node: Node) -> list[Node]:
        """One Requantize and one MaxPool2d, in either order, that nothing else shares a value with.

        Codes and maxima go together in any order, because codes are monotone in each channel.
        """
        followers: list[Node] = []
        kinds: list[type[Op]] = [Requantize, MaxPool2d]
        while node.name != self.network.output and len(self.network.consumers[node.name]) == 1:
            (node,) = self.network.consumers[node.name]
            if type(node.op) not in kinds:
                break
            kinds.remove(type(node.op))
            followers.append(node)
        return followers

    def _step(self, node: Node, followers: list[Node]) -> Step:
        if type(node.op) in _TERMS:
            return self._sum(node, followers)
        if type(node.op) in _STEPS:
            return _STEPS[type(node.op)](self, node, node.op)
        if isinstance(node.op, Movement) and type(node.op) in KINDS:
            sources = node.op.sources(*(self.shapes[name] for name in inputs_of(node)))
            return _Moved(sources, node.op.fill, self.dtype(node.name))
        return _Specified(node.op, self.dtype(node.name))

    def _sum(self, node: Node, followers: list[Node]) -> Step:
        """The sum of a node and what follows it."""
        dtype = self.sum_dtype(node)
        bias: IntArray | None = getattr(node.op, "bias", None)
        pool = codes = None
        widest = max(prod(self.shapes[f.name][1:]) for f in (node, *followers))
        for follower in followers:
            if isinstance(follower.op, MaxPool2d):
                pool = self._pool(follower, follower.op, dtype)
            elif isinstance(follower.op, Requantize):
                codes = self._codes(follower, follower.op, dtype, bias, widest)
        column = None if bias is None else bias.astype(dtype)[:, None]
        return _folded(_Sum(_TERMS[type(node.op)](self, node, node.op), column, pool, codes))

    def sum_dtype(self, node: Node) -> Any:
        return Arithmetic.for_mass(self.masses[node.name]).dtype

    def dtype(self, name: str) -> Any:
        """The float that holds every value of a node."""
        return Arithmetic.for_mass(self.ranges[name].largest).dtype

    # --- one way for each kind --------------------------------------------------------------

    def _linear(self, node: Node, op: Linear) -> Step:
        return _Linear(op.weight.astype(self.sum_dtype(node)))

    def _conv(self, node: Node, op: Conv1d | Conv2d) -> Step:
        (source,) = inputs_of(node)
        flat = (1,) * (2 - op.axes)  # the width of a Conv1d
        kernel, stride, dilation = op.kernel + flat, op.stride + flat, op.dilation + flat
        padding = op.padding + ((0, 0),) * len(flat)
        sizes = self.shapes[source][1:] + flat
        positions = self.shapes[node.name][1:] + flat
        if max(*kernel, *stride) == 1 and not any(map(any, padding)):
            sizes = positions = (1, prod(positions))  # one product for all positions
        by_channel = op.weight.reshape(op.groups, -1, op.weight.shape[1], *kernel)
        by_row = np.moveaxis(by_channel, 3, 2)  # [groups, out / groups, kh, in / groups, kw]
        weight = by_row.reshape(op.groups, 1, by_row.shape[1], -1).astype(self.sum_dtype(node))
        return _Conv(
            *(weight, kernel, stride, dilation, padding, op.pad_code),
            *(sizes, positions, self.shapes[node.name]),
        )

    def _add(self, node: Node, op: Add) -> Step:
        multipliers = op.multipliers or (1,) * len(inputs_of(node))
        return _Add(multipliers, self.sum_dtype(node))

    def _sum_pool(self, node: Node, op: SumPool2d) -> Step:
        positions = self.shapes[node.name][1:]
        return _Pool(np.add, op, op.pad_code, positions, self.sum_dtype(node))

    def _global_sum(self, node: Node, op: GlobalSumPool) -> Step:
        return _GlobalSum(self.sum_dtype(node))

    def _max_pool(self, node: Node, op: MaxPool2d) -> Step:
        return self._pool(node, op, self.dtype(node.name))

    def _pool(self, node: Node, op: MaxPool2d, dtype: Any) -> Step:
        return _Pool(np.maximum, op, -inf, self.shapes[node.name][1:], dtype)

    def _requantize(self, node: Node, op: Requantize) -> Step:
        (source,) = inputs_of(node)
        positions = prod(self.shapes[source][1:])
        return _Fresh(self._codes(node, op, self.dtype(source), None, positions))

    def _lookup(self, node: Node, op: Lookup) -> Step:
        origin = op.table.shape[1] * np.arange(op.channels) - op.lo
        return _Table(op.table.ravel().astype(self.dtype(node.name)), origin[:, None])

    def _rescale(self, node: Node, op: Rescale) -> Step:
        """A table where there are few accumulators."""
        (acc,) = (self.ranges[name] for name in inputs_of(node))
        lo = acc.lo.reshape(op.channels, -1).min(axis=1)
        entries = int((acc.hi.reshape(op.channels, -1).max(axis=1) - lo).max()) + 1
        if entries * op.channels > CODE_TABLE:
            return _Specified(op, self.dtype(node.name))
        table = op.forward(np.arange(entries)[:, None] + lo).T  # [channels, entries]
        origin = entries * np.arange(op.channels) - lo
        return _Table(table.ravel().astype(self.dtype(node.name)), origin[:, None])

    def _concat(self, node: Node, op: Concat) -> Step:
        return _Concat()

    def _reshape(self, node: Node, op: Flatten | Reshape) -> Step:
        return _Reshape(self.shapes[node.name])

    def _codes(
        self, node: Node, op: Requantize, dtype: Any, bias: IntArray | None, positions: int
    ) -> Step:
        """A Requantize of sums that came in `dtype` and without their bias; overwrites them.

        Args:
            positions: the most that a channel of these sums has.
        """
        out = self.dtype(node.name)
        (acc,) = (self.ranges[name] for name in inputs_of(node))
        rows = op.channels if bias is None else len(bias)
        lo = acc.lo.reshape(rows, -1).min(axis=1)  # [rows]
        hi = acc.hi.reshape(rows, -1).max(axis=1)  # [rows]
        thresholds = np.broadcast_to(op.thresholds, (rows, op.format.levels - 1))
        shift = np.zeros(rows, dtype=np.int64) if bias is None else bias
        if op.format.levels <= LINE_LEVELS:
            t = np.where(thresholds < -_FARTHEST, ALWAYS, thresholds)
            t = np.where(t > _FARTHEST, NEVER, t)
            t = np.where((t > ALWAYS) & (t < NEVER), t - shift[:, None], t)
            for wide in dict.fromkeys((dtype, np.float64)):
                line = _line(t, lo - shift, hi - shift, op.format.q_min, wide, out)
                if line is not None:
                    return line.for_rows_of(self.block * positions)
        prepared = Requantize(thresholds, op.format).prepare(Interval(lo, hi))
        if prepared is not None:
            table, origin = prepared
            return _Table(table.astype(out), (origin + shift)[:, None])
        return _Specified(op, out, bias)

    def _held(self, node: Node) -> int:
        """Values that a step holds for one sample: operands, results, unfolded windows."""
        values = sum(prod(self.shapes[name]) for name in (node.name, *inputs_of(node)))
        op = node.op
        if isinstance(op, Convolution) and type(op) in _TERMS:
            channels, rows, *_ = self.shapes[inputs_of(node)[0]]
            positions = prod(self.shapes[node.name][2:])
            rows += sum(op.padding[0])
            values += channels * rows * prod(op.kernel[1:]) * positions
        return values


Way = Callable[..., Step]  # of a preparation, a node and its op

_TERMS: dict[type[Op], Way] = {  # sums without their bias, overwritten by what follows
    Linear: _Preparation._linear,
    Conv1d: _Preparation._conv,
    Conv2d: _Preparation._conv,
    Add: _Preparation._add,
    SumPool2d: _Preparation._sum_pool,
    GlobalSumPool: _Preparation._global_sum,
}

_STEPS: dict[type[Op], Way] = {
    Requantize: _Preparation._requantize,
    Rescale: _Preparation._rescale,
    Lookup: _Preparation._lookup,
    MaxPool2d: _Preparation._max_pool,
    Concat: _Preparation._concat,
    Flatten: _Preparation._reshape,
    Reshape: _Preparation._reshape,
}
