"""Network: an integer program with two float doors.

    x --input_quantizer--> codes --nodes--> accumulators --output_dequantizer--> y

A network is a list of named nodes in topological order; each names its inputs.  Chains, residuals
and branches are the same thing.  `INPUT` is the name of the codes that come in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.arithmetic import to_int64_if_possible
from refqnn.display import Shown, html_table, shortened, text_table
from refqnn.errors import (
    AccumulatorOverflow,
    InvalidArgument,
    InvalidType,
    NotCovered,
    RefqnnError,
    ShapeMismatch,
    mismatch,
)
from refqnn.formats import IntFormat, as_array, as_integers, is_integer
from refqnn.graph import (
    INPUT,
    Node,
    consumers,
    inputs_of,
    last_uses,
    linked,
    propagated,
    shapes_of,
)
from refqnn.limits import at_a_time
from refqnn.ops.base import IntArray, Interval, Shape, is_sum
from refqnn.ops.requantize import ALWAYS, NEVER, Requantize
from refqnn.quantizers import Dequantizer, FloatArray, Quantizer

if TYPE_CHECKING:
    from refqnn.emulate import Accumulators
    from refqnn.plan import Enumeration, Plan
    from refqnn.report import Page

__all__ = ["INPUT", "Difference", "Network", "Node", "diff", "load"]

Trace = dict[str, IntArray]

_CHAIN = 72  # characters of the nodes' names in a repr


@dataclass(frozen=True)
class Difference(Shown):
    """Where two traces part first.

    Attributes:
        node: name of the first node, in topological order, whose values differ.
        index: [sample, channel, ...] of the first differing value.
        expected, got: the two values.
        count, total: how many values of this node differ, and how many there are.
        margin: for a Requantize node, accumulator minus its nearest threshold (0 is a value that
            just reached it, -1 one that just missed it); else None.

    >>> print(Difference("fc1", (0, 2), expected=5, got=-11, count=1, total=12))
    fc1[0, 2]: expected 5, got -11; 1 of 12 values of this node differ
    """

    node: str
    index: tuple[int, ...]
    expected: int
    got: int
    count: int
    total: int
    margin: int | None = None

    def __str__(self) -> str:
        where = ", ".join(str(i) for i in self.index)
        text = f"{self.node}[{where}]: expected {self.expected}, got {self.got}"
        text += f"; {self.count} of {self.total} values of this node differ"
        if self.margin is not None:
            text += f"; accumulator is {self.margin:+d} from its nearest threshold"
        return text


class Network:
    """A quantized network over the integers.

    Args:
        nodes: the program; the last node is the output unless `output` names another.
        input_shape: shape of one sample.
        input_format: the codes that come in; taken from `input_quantizer` when that is given.
        input_quantizer: floats to codes, or None when the user brings codes.
        output_dequantizer: accumulators to floats, or None.
        output: name of the output node.

    Attributes:
        tensors: of the ONNX file that it was read from, name of a tensor -> name of the value whose
            integers it holds: dumps may use these names.  No file of ours and no copy keeps them.

    Raises: InvalidArgument, InvalidType, ShapeMismatch.

    >>> from refqnn import IntFormat, Linear, Network, Node, Requantize
    >>> fc1 = Node("fc1", Linear([[1, -1]]))
    >>> act1 = Node("act1", Requantize.from_shift(1, IntFormat(2, signed=False)))
    >>> net = Network([fc1, act1], input_shape=(2,), input_format=IntFormat(3, signed=False))
    >>> net.forward([[7, 2], [2, 7]]).tolist()
    [[3], [0]]
    >>> net.trace([[7, 2]])["fc1"].tolist()
    [[5]]
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        input_shape: Shape,
        input_format: IntFormat | None = None,
        input_quantizer: Quantizer | None = None,
        output_dequantizer: Dequantizer | None = None,
        output: str | None = None,
    ) -> None:
        if input_quantizer is not None and not isinstance(input_quantizer, Quantizer):
            raise InvalidType(mismatch("input_quantizer", repr(input_quantizer), "a quantizer"))
        if output_dequantizer is not None and not isinstance(output_dequantizer, Dequantizer):
            raise InvalidType(
                mismatch("output_dequantizer", repr(output_dequantizer), "a Dequantizer")
            )
        if input_format is None:
            if input_quantizer is None:
                raise InvalidArgument("input_format: got None, expected it or an input_quantizer")
            input_format = input_quantizer.format
        elif input_quantizer is not None and input_format != input_quantizer.format:
            expected = f"{input_quantizer.format} as in input_quantizer"
            raise InvalidArgument(mismatch("input_format", input_format, expected))
        if not isinstance(input_format, IntFormat):
            raise InvalidType(mismatch("input_format", repr(input_format), "an IntFormat"))
        self.input_format = input_format
        self.input_shape = _sample_shape(input_shape)
        self.input_quantizer = input_quantizer
        self.output_dequantizer = output_dequantizer
        self.tensors: Mapping[str, str] = {}
        self.nodes = linked(nodes)
        self.shapes = shapes_of(self.nodes, self.input_shape)
        self.output = self.nodes[-1].name if output is None else output
        if self.output not in self.shapes or self.output == INPUT:
            raise InvalidArgument(mismatch("output", repr(output), "the name of a node"))

    # --- as Python has it -------------------------------------------------------------------

    def __repr__(self) -> str:
        chain = shortened(", ".join(f"{node.name}: {node.op.kind}" for node in self.nodes), _CHAIN)
        ends = f"{self.input_format} {self.input_shape} -> {self.shapes[self.output]}"
        return f"<Network of {len(self)} nodes, {ends}; {chain}>"

    def __str__(self) -> str:
        """The table of `refqnn inspect`; where no ranges can be proved, what `repr` says."""
        return self._table(text_table)

    def _repr_html_(self) -> str:
        return self._table(html_table)

    def _table(self, form: Callable[[str, list[dict[str, object]]], str]) -> str:
        from refqnn.inspect import table

        try:
            rows = table(self)
        except RefqnnError:
            rows = []
        return form(f"Network {self.digest[:12]}" if rows else repr(self), rows)

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __contains__(self, name: object) -> bool:
        """Is it the name of a node, or a node of this network?"""
        return name in self._by_name or name in self.nodes

    def __eq__(self, other: object) -> bool:
        """The same program between the same doors; see `digest`."""
        if not isinstance(other, Network):
            return NotImplemented
        return self is other or self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle and copies: what the network is, less what was computed from it."""
        return partial(type(self), **self._frame), (self.nodes,)

    @property
    def _frame(self) -> dict[str, Any]:
        """The arguments of the constructor, less the nodes."""
        return {
            "input_shape": self.input_shape,
            "input_format": self.input_format,
            "input_quantizer": self.input_quantizer,
            "output_dequantizer": self.output_dequantizer,
            "output": self.output,
        }

    # --- doors ------------------------------------------------------------------------------

    def quantize_input(self, X: ArrayLike) -> NDArray[np.int64]:
        """Codes of float samples [n, *input_shape].

        Raises: NotCovered without an input quantizer, ShapeMismatch, InvalidArgument for NaN.
        """
        if self.input_quantizer is None:
            raise NotCovered("quantize_input: this network has no input quantizer; bring codes")
        codes = self.input_quantizer.quantize(X)
        self._check_batch(codes.shape, "X")
        return codes

    def codes_of(self, X: ArrayLike) -> NDArray[np.int64]:
        """Codes of samples [n, *input_shape]: of floats through the input quantizer, else as is.

        Raises: as `quantize_input` and `check_codes`.
        """
        samples = as_array(X, "X", "numbers")
        return self.quantize_input(X) if samples.dtype.kind == "f" else self.check_codes(X)

    def dequantize_output(self, acc: ArrayLike) -> FloatArray:
        """Floats of output accumulators [n, *output_shape].  Raises: NotCovered without scales."""
        if self.output_dequantizer is None:
            raise NotCovered("dequantize_output: this network has no output dequantizer")
        return self.output_dequantizer.dequantize(acc)

    def predict(self, X: ArrayLike) -> FloatArray:
        """Float outputs of float samples: quantize_input, forward, dequantize_output."""
        return self.dequantize_output(self.forward(self.quantize_input(X)))

    # --- the integer program ----------------------------------------------------------------

    def forward(self, codes: ArrayLike) -> IntArray:
        """Output of the integer program, [n, *output_shape].

        The integers of the output node in `trace`, faster: the proved ranges say where floats
        are exact and BLAS may be used (refqnn.plan), and large batches go through in blocks.

        Args:
            codes: integers [n, *input_shape], codes of `input_format`, n >= 1.

        Returns: int64, or Python integers in an object array where int64 is not proved enough.

        Raises: InvalidType for non-integers, OutOfRange for codes outside the format or for a node
            that cannot hold what may reach it, ShapeMismatch.
        """
        if self._prepared is not None:
            return self._prepared.forward(codes)
        checked = self.check_codes(codes)
        block = self.traced_block
        parts = (checked[start : start + block] for start in range(0, len(checked), block))
        return np.concatenate([self._forward(part) for part in parts])

    def trace(self, codes: ArrayLike, accumulator: Accumulators | None = None) -> Trace:
        """Every value by name: "input", then the nodes in their order, each [n, *shape].

        Args:
            codes: as for `forward`.
            accumulator: sums as an `Accumulator` of finite width makes them, or for each node
                name in a mapping the one of that node; an `Emulated`; None: exact sums.

        Raises: as `forward`; AccumulatorOverflow where an accumulator is asked to; InvalidArgument
        for a name of no node that sums.
        """
        step = self._step if accumulator is None else self._emulated(accumulator)
        values: Trace = {INPUT: self.check_codes(codes)}
        for node in self.nodes:
            values[node.name] = step(node, values)
        return values

    def diff(
        self,
        other: Mapping[str, ArrayLike],
        codes: ArrayLike | None = None,
        *,
        layout: str | None = None,
    ) -> Difference | None:
        """The first place where another implementation's trace parts from ours, or None.

        Args:
            other: node name -> values [n, *shape], or flat; other nodes may be missing.
            codes: what went in, as for `forward`; by default `other` holds it as "input".
            layout: the order of the axes in `other`, such as "NHWC"; ours is "NCHW".

        Raises: InvalidArgument for unknown names or without input; ShapeMismatch; as `forward`.
        """
        from refqnn.dumps import arranged

        if codes is None:
            first = {n: v for n, v in other.items() if self.value_of(n) == INPUT}
            if not first:
                expected = 'the name "input" too, or codes'
                raise InvalidArgument(mismatch("other", f"names {sorted(other)}", expected))
            values = np.size(np.asarray(next(iter(first.values()))))
            codes = arranged(self, first, values // prod(self.input_shape), layout)[INPUT]
        trace = self.trace(codes)
        return diff(trace, arranged(self, other, len(trace[INPUT]), layout), self)

    def ranges(self, domain: Interval | None = None) -> dict[str, Interval]:
        """Interval bounds of every value, for every input in the domain.

        Args:
            domain: a box of inputs of shape [*input_shape]; the whole input format by default.

        Sound, and exact node by node; see `refqnn.certify` for bounds that are tight as a whole.

        Raises: ShapeMismatch, OutOfRange where a value may leave a Lookup's table or int64 before a
            Requantize.
        """
        box = Interval.of_format(self.input_format, self.input_shape) if domain is None else domain
        if box.shape != self.input_shape:
            raise ShapeMismatch(mismatch("domain", f"shape {box.shape}", f"{self.input_shape}"))
        return propagated(self.nodes, box, lambda node: node.op.out_range)

    def check_codes(self, codes: ArrayLike) -> NDArray[np.int64]:
        """Codes [n, *input_shape] as int64, or the error that says what is wrong with them."""
        checked = self.input_format.check(codes)
        self._check_batch(checked.shape, "codes")
        return checked

    def value_of(self, name: str) -> str:
        """The value that a dump means by a name: its own, or that of a tensor of the file; a name
        of neither stays as it is."""
        return name if name in self.shapes else self.tensors.get(name, name)

    def accumulators(self) -> list[Node]:
        """The nodes that sum: where an overflow could happen."""
        return [node for node in self.nodes if is_sum(node.op)]

    def __getitem__(self, name: str) -> Node:
        if name not in self._by_name:
            raise InvalidArgument(mismatch("name", repr(name), f"one of {list(self._by_name)}"))
        return self._by_name[name]

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, "input" included."""
        return consumers(self.nodes)

    @property
    def traced_block(self) -> int:
        """How many samples to trace at one time."""
        return at_a_time(sum(prod(shape) for shape in self.shapes.values()))

    def with_nodes(self, nodes: Sequence[Node]) -> Network:
        """Other nodes between the same doors."""
        return Network(nodes, **self._frame)

    def with_doors(
        self, input_quantizer: Quantizer | None, output_dequantizer: Dequantizer | None
    ) -> Network:
        """The same nodes between other doors; the format of the input may change its meaning."""
        doors = {"input_quantizer": input_quantizer, "output_dequantizer": output_dequantizer}
        return Network(self.nodes, **{**self._frame, **doors})

    # --- files ------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one file: no pickle, versioned, checksummed (see refqnn.storage)."""
        from refqnn.storage import save

        save(self, path)

    @staticmethod
    def load(path: str | Path) -> Network:
        """`refqnn.load`."""
        return load(path)

    def report(self, X: ArrayLike | None = None, **options: Any) -> Page:
        """A page of HTML on this network: `refqnn.report.report`, with its options."""
        from refqnn.report import report

        return report(self, X, **options)

    @cached_property
    def digest(self) -> str:
        """sha256 of the network's content, hexadecimal: equal for equal programs."""
        from refqnn.storage import digest

        return digest(self)

    # --- inside -----------------------------------------------------------------------------

    def _check_batch(self, shape: Shape, argument: str) -> None:
        if len(shape) != len(self.input_shape) + 1 or shape[1:] != self.input_shape:
            expected = "[n, " + ", ".join(str(d) for d in self.input_shape) + "]"
            raise ShapeMismatch(mismatch(argument, f"shape {list(shape)}", expected))
        if shape[0] == 0:
            raise ShapeMismatch(mismatch(argument, f"shape {list(shape)}", "at least one sample"))

    def _forward(self, checked: NDArray[np.int64]) -> IntArray:
        """The program of nodes as it stands, one after the other, in integers."""
        values: Trace = {INPUT: checked}
        for i, node in enumerate(self.nodes):
            values[node.name] = self._step(node, values)
            for name in self._last_uses[i]:
                del values[name]
        return values[self.output]

    def _step(self, node: Node, values: Trace) -> IntArray:
        x = (values[i] for i in inputs_of(node))
        y = node.op.forward(*x, plan=self._plans[node.name])
        if y.dtype in (np.int64, object):
            return y
        if y.dtype.kind not in "iu":
            raise InvalidType(mismatch(f"values of node {node.name!r}", y.dtype, "integers"))
        return to_int64_if_possible(y)

    @cached_property
    def _plans(self) -> dict[str, Any]:
        """What each node may know from the proved ranges of its inputs."""
        ranges = self.ranges()
        return {
            node.name: node.op.prepare(*(ranges[name] for name in inputs_of(node)))
            for node in self.nodes
        }

    def _emulated(self, accumulators: Accumulators) -> Callable[[Node, Trace], IntArray]:
        """A step with sums as these accumulators make them.

        Raises: InvalidArgument for a name of no node that sums.
        """
        from refqnn.emulate import accumulator_of, check_names

        check_names(accumulators, [node.name for node in self.accumulators()])

        def step(node: Node, values: Trace) -> IntArray:
            # No plan here: an overflow may leave the proved ranges.
            inputs = tuple(values[name] for name in inputs_of(node))
            accumulator = accumulator_of(accumulators, node.name)
            if accumulator is None or not is_sum(node.op):
                return node.op.forward(*inputs)
            try:
                return accumulator.accumulate(node.op, inputs)
            except AccumulatorOverflow as error:
                raise AccumulatorOverflow(f"node {node.name!r}: {error}") from None

        return step

    @cached_property
    def _prepared(self) -> Enumeration | Plan | None:
        """The program in floats that are proved exact; None where they are not wide enough."""
        from refqnn.plan import enumerated, prepare  # when a network runs, not when one is made

        plan = prepare(self)
        return None if plan is None else enumerated(plan) or plan

    @property
    def is_a_table(self) -> bool:
        """Does `forward` look outputs up in a table of all inputs, which are few?"""
        from refqnn.plan import Enumeration

        return isinstance(self._prepared, Enumeration)

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _last_uses(self) -> list[tuple[str, ...]]:
        """Which values may be dropped after node i."""
        return last_uses([(node.name, inputs_of(node)) for node in self.nodes], self.output)


def diff(
    expected: Mapping[str, ArrayLike],
    got: Mapping[str, ArrayLike],
    network: Network | None = None,
) -> Difference | None:
    """The first node, in the order of `expected`, whose values differ, or None.

    Nodes that `got` does not have are passed over.  With the network, a differing Requantize node
    also tells how near its accumulator was to a threshold.

    Raises: InvalidArgument for names that `expected` does not have, ShapeMismatch.

    >>> print(diff({"input": [[7, 0]], "fc1": [[10]]}, {"fc1": [[-6]]}))
    fc1[0, 0]: expected 10, got -6; 1 of 1 values of this node differ
    """
    unknown = sorted(set(got) - set(expected))
    if unknown:
        raise InvalidArgument(mismatch("got", f"names {unknown}", f"names out of {list(expected)}"))
    for name in expected:
        if name not in got:
            continue
        a, b = as_integers(expected[name], name), as_integers(got[name], name)
        if a.shape != b.shape:
            raise ShapeMismatch(mismatch(f"got[{name!r}]", f"shape {b.shape}", f"shape {a.shape}"))
        unequal = np.argwhere(a != b)
        if len(unequal):
            index = tuple(int(i) for i in unequal[0])
            margin = _margin(network, name, expected, index) if network is not None else None
            return Difference(
                name, index, int(a[index]), int(b[index]), len(unequal), int(a.size), margin
            )
    return None


def _margin(
    network: Network, name: str, trace: Mapping[str, ArrayLike], index: tuple[int, ...]
) -> int | None:
    op = None if name == INPUT else network[name].op
    if not isinstance(op, Requantize):
        return None
    acc = int(np.asarray(trace[inputs_of(network[name])[0]])[index])
    row = op.thresholds[index[1] if op.channels > 1 else 0]
    margins = [acc - int(t) for t in row if ALWAYS < t < NEVER]
    return min(margins, key=abs, default=None)


def _sample_shape(shape: object) -> Shape:
    sequence = shape if isinstance(shape, Iterable) and not isinstance(shape, str) else (shape,)
    dims = tuple(sequence)
    if not all(is_integer(d) for d in dims):
        raise InvalidType(mismatch("input_shape", repr(shape), "a tuple of integers"))
    if not dims or min(dims) < 1:
        raise InvalidArgument(
            mismatch("input_shape", repr(shape), "positive dimensions, one or more")
        )
    return tuple(int(d) for d in dims)


def load(path: str | Path) -> Network:
    """Read a network that `Network.save` wrote.

    Raises: FileFormatError for a truncated, altered, foreign or newer file; OSError as open does.

    >>> from refqnn import IntFormat, Linear
    >>> fc1 = Node("fc1", Linear([[1, -2]], [3]))
    >>> net = Network([fc1], input_shape=(2,), input_format=IntFormat(3, signed=False))
    >>> path = getfixture("tmp_path") / "net.npz"
    >>> net.save(path)
    >>> load(path).digest == net.digest
    True
    """
    from refqnn.storage import load as load_file

    return load_file(path)
