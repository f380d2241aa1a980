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

A plan is made once for a network and never changes; each call holds its own values, so threads may
share it.  The tests hold it against the specification and against refqnn.exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.arithmetic import Arithmetic, IntArray
from refqnn.formats import as_integers
from refqnn.network import INPUT, Network, Node, inputs_of
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Reshape,
    SumPool2d,
)
from refqnn.ops.base import Interval, Op, Shape, SumOp
from refqnn.ops.windows import Padding
from refqnn.requantize import Requantize

__all__ = ["Plan", "prepare"]

Values = NDArray[Any]  # floats that hold integers, [*shape, n]
Step = Callable[..., Values]

_BLOCK = 2**19  # values of the largest step held at one time
_SMALL_PRODUCT = 10**6  # rows * terms * columns up to which BLAS multiplies without packing
_FEWEST_COLUMNS = 32  # narrower products cost more in calls than packing does
_TABLE_ENTRIES = 2**22  # a larger table misses the cache more than a search would
_LINE_LEVELS = 2**8  # the fit of a line compares all pairs of thresholds


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
        plain = type(codes) is np.ndarray and codes.dtype.kind in "iu"
        array: Any = codes if plain else as_integers(codes, "codes")
        n = array.shape[0] if array.shape[1:] == network.input_shape else 0
        if n == 0 or array.dtype == object or network.input_format.step != 1:
            array = network.check_codes(array)
        out = np.empty((n, *network.shapes[network.output]), dtype=np.int64)
        for start in range(0, n, self.block):
            stop = start + self.block
            x = array[start:stop].astype(self.lo.dtype, order="C")
            # No code slips in by rounding: it is monotone, and the ends and their neighbours exact.
            if (
                np.minimum.reduce(x, axis=None) < self.lo
                or np.maximum.reduce(x, axis=None) > self.hi
            ):
                network.check_codes(array)
            _store(self._run(x), out[start:stop])
        return out

    def _run(self, x: NDArray[Any]) -> Values:
        """Outputs [*output_shape, n] of codes [n, *input_shape]."""
        values = {INPUT: x.T if x.ndim == 2 else x.transpose(*range(1, x.ndim), 0)}
        for name, step, inputs, dead in self.steps:
            values[name] = step(*[values[i] for i in inputs])
            for done in dead:
                del values[done]
        return values[self.network.output]


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
        return _product(self.weight, x.astype(self.weight.dtype, copy=False))


@dataclass(frozen=True, eq=False)
class _Conv:
    """weight @ columns, weight [groups, out / groups, K], K = in / groups * prod(kernel)."""

    weight: Values
    window: Conv1d | Conv2d
    positions: Shape

    def __call__(self, x: Values) -> Values:
        x = _padded(
            x.astype(self.weight.dtype, copy=False), self.window.padding, self.window.pad_code
        )
        groups, _, terms = self.weight.shape
        columns = self._columns(x).reshape(groups, terms, -1)  # [g, K, positions * n]
        acc = _product(self.weight, columns)  # [g, out / g, positions * n]
        return acc.reshape(-1, *self.positions, x.shape[-1])

    def _columns(self, x: Values) -> Values:
        """The windows unfolded: [in, *kernel, *positions, n]."""
        op, (channel, *steps, sample) = self.window, x.strides
        strides = (
            channel,
            *(d * step for d, step in zip(op.dilation, steps)),
            *(s * step for s, step in zip(op.stride, steps)),
            sample,
        )
        shape = (x.shape[0], *op.kernel, *self.positions, x.shape[-1])
        view: Values = np.ndarray(shape, x.dtype, buffer=x, strides=strides)
        return view if max(*op.kernel, *op.stride) == 1 else view.copy()


def _product(weight: Values, x: Values) -> Values:
    """weight [..., m, k] @ x [..., k, n], in slices of columns that BLAS multiplies fast."""
    *_, m, k = weight.shape
    n = x.shape[-1]
    width = _SMALL_PRODUCT // (m * k)
    if n <= width or width < _FEWEST_COLUMNS or not x.flags.c_contiguous:
        return np.asarray(np.matmul(weight, x))
    width -= width % _FEWEST_COLUMNS
    slices = n // width
    out = np.empty((*weight.shape[:-1], n), weight.dtype)
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
        parameters: slope, offset, lo, hi, each [channels or 1, 1]: [4, channels or 1, 1].
        dtype: the float of the codes.
    """

    round: np.ufunc
    parameters: Values
    dtype: Any

    def __call__(self, acc: Values) -> Values:
        slope, offset, lo, hi = self.parameters
        rows = acc.reshape(len(acc), -1).astype(slope.dtype, copy=False)
        np.multiply(rows, slope, out=rows)
        np.add(rows, offset, out=rows)
        self.round(rows, out=rows)
        np.maximum(rows, lo, out=rows)
        np.minimum(rows, hi, out=rows)
        return rows.reshape(acc.shape).astype(self.dtype, copy=False)


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
class _Specified:
    """The node's own forward, for what has no faster form."""

    op: Op
    bias: IntArray | None
    dtype: Any

    def __call__(self, x: Values) -> Values:
        codes = np.moveaxis(x, -1, 0).astype(np.int64)
        if self.bias is not None:
            codes += self.bias.reshape(-1, *(1,) * (codes.ndim - 2))
        return np.moveaxis(self.op.forward(codes), 0, -1).astype(self.dtype, order="C")


def _line(
    thresholds: IntArray, lo: IntArray, hi: IntArray, q_min: int, dtype: Any, out: Any
) -> _Line | None:
    """The line that gives the codes of a Requantize for every acc in [lo, hi], or None.

    Args:
        thresholds: [channels, levels - 1]; lo, hi: [channels].
        dtype: the float of the arithmetic; out: of the codes.

    Line and Requantize are both nondecreasing in acc (every float operation of a line rounds
    monotonically).  So they agree on all of [lo, hi] when they agree at its two ends, at every
    threshold between them and one below it: that is the proof, and it is computed here.
    """
    for round, fit in ((np.floor, _fit), (np.rint, _fit_half_even)):
        rows = []
        for t, low, high in zip(thresholds, lo, hi):
            inside = t[(low < t) & (t <= high)]
            points = np.concatenate([[low, high], inside, inside - 1])
            codes = np.searchsorted(t, points, side="right") + q_min
            slope, offset = fit(inside, int(codes[0]) + 1, dtype)
            row = np.array([[[slope]], [[offset]], [[codes[0]]], [[codes[1]]]], dtype=dtype)
            if (_Line(round, row, dtype)(points[None].astype(dtype)) != codes).any():
                break
            rows.append(row)
        else:
            return _Line(round, np.concatenate(rows, axis=1), out)
    return None


def _fit(t: IntArray, first: int, dtype: Any) -> tuple[float, float]:
    """A slope and an offset for which floor(x * slope + offset) reaches first + k at x = t[k].

    That is slope * t[k] + offset >= first + k > slope * (t[k] - 1) + offset for every k.  Two of
    these, for j < k, leave an offset exactly when

        (k - j) / (t[k] - t[j] + 1) < slope < (k - j) / (t[k] - t[j] - 1)

    (no upper bound where t[k] - t[j] <= 1).  The middle of what all pairs leave, if anything.
    """
    if len(t) == 0:
        return 0.0, float(first - 1)
    code = first + np.arange(len(t), dtype=np.float64)
    j, k = np.triu_indices(len(t), 1)
    rise, run = code[k] - code[j], (t[k] - t[j]).astype(np.float64)
    least = (rise / (run + 1)).max(initial=0.0)
    most = (rise[run > 1] / (run[run > 1] - 1)).min(initial=inf)
    slope = float(dtype((least + most) / 2 if most < inf else 2 * least or 1.0))
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


# --- from nodes to steps ----------------------------------------------------------------------


def prepare(network: Network) -> Plan | None:
    """The plan of a network; None where a sum or a value may leave what float64 holds exactly.

    Raises: as `Network.ranges`.
    """
    return _Preparation(network).plan()


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
        self.consumers: dict[str, list[Node]] = {name: [] for name in self.ranges}
        for node in network.nodes:
            for name in set(inputs_of(node)):
                self.consumers[name].append(node)

    def plan(self) -> Plan | None:
        largest = [interval.largest for interval in self.ranges.values()]
        if max(*largest, *self.masses.values()) > Arithmetic.FLOAT64.value[1]:
            return None
        program: list[tuple[str, Step, tuple[str, ...]]] = []
        absorbed: set[str] = set()
        for node in self.network.nodes:
            if node.name in absorbed:
                continue
            followers = self._followers(node) if isinstance(node.op, SumOp) else []
            absorbed |= {follower.name for follower in followers}
            name = followers[-1].name if followers else node.name
            program.append((name, self._step(node, followers), inputs_of(node)))
        fmt, dtype = self.network.input_format, self._dtype(INPUT)
        ends = (dtype(fmt.q_min), dtype(fmt.q_max))
        return Plan(self.network, self._with_releases(program), *ends, self._block())

    def _followers(self, node: Node) -> list[Node]:
        """One Requantize and one MaxPool2d, in either order, that nothing else shares a value with.

        Codes and maxima go together in any order, because codes are monotone in each channel.
        """
        followers: list[Node] = []
        kinds: list[type[Op]] = [Requantize, MaxPool2d]
        while node.name != self.network.output and len(self.consumers[node.name]) == 1:
            (node,) = self.consumers[node.name]
            if type(node.op) not in kinds:
                break
            kinds.remove(type(node.op))
            followers.append(node)
        return followers

    def _step(self, node: Node, followers: list[Node]) -> Step:
        op = node.op
        if isinstance(op, SumOp):
            bias = getattr(op, "bias", None)
            pool = codes = None
            for follower in followers:
                if isinstance(follower.op, Requantize):
                    codes = self._codes(follower, self._sum_dtype(node), bias)
                else:
                    pool = self._pool(follower, self._sum_dtype(node))
            column = None if bias is None else bias.astype(self._sum_dtype(node))[:, None]
            return _Sum(self._terms(node), column, pool, codes)
        if isinstance(op, MaxPool2d):
            return self._pool(node, self._dtype(node.name))
        if isinstance(op, Requantize):
            return _Fresh(self._codes(node, self._dtype(*inputs_of(node)), None))
        if isinstance(op, Lookup):
            origin = op.table.shape[1] * np.arange(op.channels) - op.lo
            table = op.table.ravel().astype(self._dtype(node.name))
            return _Table(table, origin[:, None])
        if isinstance(op, Concat):
            return _Concat()
        if isinstance(op, (Flatten, Reshape)):
            return _Reshape(self.shapes[node.name])
        return _Specified(op, None, self._dtype(node.name))

    def _terms(self, node: Node) -> Step:
        """The sum of a node without its bias."""
        op, dtype = node.op, self._sum_dtype(node)
        _, *positions = self.shapes[node.name]
        if isinstance(op, Linear):
            return _Linear(op.weight.astype(dtype))
        if isinstance(op, (Conv1d, Conv2d)):
            weight = op.weight.reshape(op.groups, len(op.weight) // op.groups, -1).astype(dtype)
            return _Conv(weight, op, tuple(positions))
        if isinstance(op, Add):
            return _Add(op.multipliers or (1,) * len(inputs_of(node)), dtype)
        if isinstance(op, SumPool2d):
            return _Pool(np.add, op, op.pad_code, tuple(positions), dtype)
        assert isinstance(op, GlobalSumPool)
        return _GlobalSum(dtype)

    def _pool(self, node: Node, dtype: Any) -> Step:
        op = node.op
        assert isinstance(op, MaxPool2d)
        positions = self.shapes[node.name][1:]
        return _Pool(np.maximum, op, -inf, positions, dtype)

    def _codes(self, node: Node, dtype: Any, bias: IntArray | None) -> Step:
        """A Requantize of sums that came in `dtype` and without their bias; overwrites them."""
        op, out = node.op, self._dtype(node.name)
        assert isinstance(op, Requantize)
        (acc,) = (self.ranges[name] for name in inputs_of(node))
        rows = op.channels if bias is None else len(bias)
        lo = acc.lo.reshape(rows, -1).min(axis=1)  # [rows]
        hi = acc.hi.reshape(rows, -1).max(axis=1)  # [rows]
        shift = np.zeros(rows, dtype=np.int64) if bias is None else bias
        if op.format.levels <= _LINE_LEVELS:
            reachable = np.clip(op.thresholds, lo[:, None], hi[:, None] + 1)  # [rows, levels - 1]
            for wide in dict.fromkeys((dtype, np.float64)):
                ends = (lo - shift, hi - shift)
                line = _line(reachable - shift[:, None], *ends, op.format.q_min, wide, out)
                if line is not None:
                    return line
        if int((hi - lo + 1).sum()) <= _TABLE_ENTRIES:
            prepared = op.prepare(Interval(lo, hi))
            assert prepared is not None
            table, origin = prepared
            return _Table(table.astype(out), (origin + shift)[:, None])
        return _Specified(op, bias, out)

    def _sum_dtype(self, node: Node) -> Any:
        return Arithmetic.for_mass(self.masses[node.name]).dtype

    def _dtype(self, name: str) -> Any:
        """The float that holds every value of a node."""
        return Arithmetic.for_mass(self.ranges[name].largest).dtype

    def _with_releases(
        self, program: list[tuple[str, Step, tuple[str, ...]]]
    ) -> tuple[tuple[str, Step, tuple[str, ...], tuple[str, ...]], ...]:
        """The program, each step with the names that no later step needs."""
        last = {name: i for i, (out, _, inputs) in enumerate(program) for name in (out, *inputs)}
        last.pop(self.network.output)
        dead = [tuple(name for name in last if last[name] == i) for i in range(len(program))]
        return tuple((*step, names) for step, names in zip(program, dead))

    def _block(self) -> int:
        """How many samples: so many that no step holds more than `_BLOCK` values."""
        most = 0
        for node in self.network.nodes:
            values = sum(prod(self.shapes[name]) for name in (node.name, *inputs_of(node)))
            if isinstance(node.op, (Conv1d, Conv2d)):
                out, *positions = self.shapes[node.name]
                values += node.op.weight.size // out * node.op.groups * prod(positions)
            most = max(most, values)
        return max(1, _BLOCK // most)
