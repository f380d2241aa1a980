"""TOSA's own conformance tests of integer operators, through our nodes: how many are equal?

The tests and the answers of the reference model are made by the package tosa-tools, whose programs
are looked for on PATH; it needs an older numpy and so a virtual environment of its own
(`pip install tosa-tools "numpy<2.2"`).  An operator is made of nodes of ours: zero points are
folded into biases, a second operand of MATMUL and MUL is the constant of a node, what only moves
values is a Gather.  Where no nodes do it, the test is counted with the reason.

    python bench/tosa.py                     # an hour on one core, most of it to make the tests
    python bench/tosa.py --quick             # three tests of each operator, nothing written
    python bench/tosa.py add sub --most 20   # of these operators, at most so many tests of each
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import FOLDER, write_results
from numpy.typing import NDArray

from refqnn import (
    Add,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Gather,
    IntFormat,
    Linear,
    Lookup,
    MaxPool2d,
    Rescale,
    Reshape,
    SumPool2d,
    exact,
)
from refqnn.errors import RefqnnError
from refqnn.ops import Op

Array = NDArray[Any]
TOOLS = ("tosa_verif_build_tests", "tosa_reference_model", "flatc")
PROFILE = ("--profile", "tosa-pro-int", "--extension", "tosa-ext-doubleround", "tosa-ext-int16",
           "tosa-ext-int4")  # fmt: skip
SMALL = 2_000  # values of a node that exact.py computes too
BITS = {"BOOL": 1, "INT4": 4, "INT8": 8, "INT16": 16, "INT32": 32, "INT48": 48}


class Inexpressible(Exception):
    """No nodes of ours compute it; says why."""


@dataclass(frozen=True)
class Test:
    """One test.

    Args:
        name: of its folder, which says its shapes, types and parameters.
        attributes: of the operator.
        inputs: its operands and constants in order, as 64-bit integers.
        bits: of the types of its inputs and, the last, of its result.
        result: what the reference model answers.
    """

    name: str
    attributes: dict[str, Any]
    inputs: list[Array]
    bits: list[int]
    result: Array


def missing() -> list[str]:
    """The programs that are not on PATH."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def _ran(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def made(operator: str, folder: Path) -> list[Path]:
    """The folders of the tests of an operator, made there."""
    only = ("--test-type", "positive", "--dump-const-tensors", "--filter", f"^{operator}$")
    _ran(TOOLS[0], *PROFILE, *only, "-o", folder)
    return sorted(path.parent for path in folder.rglob("desc.json"))


def read(folder: Path) -> Test:
    """A test with the answer of the reference model, which is asked for it."""
    _ran(TOOLS[1], "--test_desc", folder / "desc.json")
    (schema,) = Path(str(shutil.which("flatc"))).absolute().parents[1].rglob("tosa.fbs")
    _ran(TOOLS[2], "--json", "--raw-binary", "--strict-json", "--defaults-json", "-o", folder,
         schema, "--", folder / "test.tosa")  # fmt: skip
    (region,) = json.loads((folder / "test.json").read_text())["regions"]
    (block,) = region["blocks"]
    operator = block["operators"][-1]
    types = {t["name"]: t["type"] for t in block["tensors"]}
    names = [*operator["inputs"], *operator["outputs"]]
    return Test(
        folder.name,
        operator["attribute"],
        [np.load(folder / f"{name}.npy").astype(np.int64) for name in operator["inputs"]],
        [BITS.get(types.get(name, ""), 0) for name in names],
        np.load(folder / "ref-result-0.npy"),
    )


# --- the operators -------------------------------------------------------------------------------


def run(op: Op, *x: Array) -> Array:
    """What a node computes, its first samples by exact.py too."""
    y = op.forward(*x)
    count = min(len(y), SMALL // max(1, *(v[0].size for v in (*x, y))))
    for n in range(count):
        again = exact.apply(op, [v[n].tolist() for v in x])
        if again != y[n].tolist():
            raise AssertionError(f"exact.py differs from {op}")
    return y


def _moved(x: Array, places: Array, fill: int = 0) -> Array:
    """Values of x, or the fill where the place is -1."""
    op = Gather(places.reshape(-1), (x.size,), fill)
    return run(op, x.reshape(1, -1)).reshape(places.shape)


def _places(x: Array) -> Array:
    return np.arange(x.size).reshape(x.shape)


def _columns(*x: Array) -> list[Array]:
    """Operands of one shape as samples of one channel."""
    return [v.reshape(-1, 1) for v in np.broadcast_arrays(*x)]


def _sides(pad: Sequence[int]) -> tuple[tuple[int, int], ...]:
    top, bottom, left, right = pad
    return (top, bottom), (left, right)


def _first(x: Array) -> Array:
    """Channels first."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def _last(x: Array) -> Array:
    return np.moveaxis(x, 1, -1)


def _conv(t: Test, weight: Array, groups: int) -> Array:
    """weight: [out, in / groups, kh, kw], its zero point taken off."""
    x, _, bias, zero, _ = t.inputs
    folded = np.broadcast_to(bias, len(weight)) - zero * weight.sum(axis=(1, 2, 3))
    a = t.attributes
    op = Conv2d(
        weight,
        folded,
        stride=tuple(a["stride"]),
        padding=_sides(a["pad"]),
        dilation=tuple(a["dilation"]),
        groups=groups,
        pad_code=int(zero.item()),
    )
    return _last(run(op, _first(x)))


def conv2d(t: Test) -> Array:
    return _conv(t, (t.inputs[1] - t.inputs[4]).transpose(0, 3, 1, 2), 1)


def depthwise_conv2d(t: Test) -> Array:
    height, width, channels, _ = t.inputs[1].shape
    weight = (t.inputs[1] - t.inputs[4]).transpose(2, 3, 0, 1)
    return _conv(t, weight.reshape(-1, 1, height, width), channels)


def transpose_conv2d(t: Test) -> Array:
    """Positions that no input reaches are those of a kernel that is padded with zeros."""
    x, weight, bias, zero, weight_zero = t.inputs
    sides = _sides(t.attributes["out_pad"])
    weight = (weight - weight_zero).transpose(3, 0, 1, 2)
    more = [(max(a, 0), max(b, 0)) for a, b in sides]
    less = tuple((max(-a, 0), max(-b, 0)) for a, b in sides)
    op = ConvTranspose2d(
        np.pad(weight, ((0, 0), (0, 0), *more)),
        np.broadcast_to(bias, weight.shape[1]),
        stride=tuple(t.attributes["stride"]),
        padding=less,
    )
    return _last(run(op, run(_to(32, offset=-zero), _first(x))))


def _to(bits: int, **how: Any) -> Rescale:
    """A number as it is, in another format."""
    return Rescale(1, 0, IntFormat(bits, signed=True), rounding="half_up", **how)


def matmul(t: Test) -> Array:
    return _matmul(t, np.swapaxes(t.inputs[1], 1, 2))


def matmul_t(t: Test) -> Array:
    return _matmul(t, t.inputs[1])


def _matmul(t: Test, weight: Array) -> Array:
    """weight: [n or 1, out, in]."""
    x, _, zero, weight_zero = t.inputs
    rows = np.broadcast_to(weight - weight_zero, (len(x), *weight.shape[1:]))
    return np.stack([run(Linear(w, -zero * w.sum(axis=1)), v) for w, v in zip(rows, x)])


def avg_pool2d(t: Test) -> Array:
    """The sum of each window, and the reciprocal of how many of its positions lie in x."""
    x, zero, zero_out = t.inputs
    a = t.attributes
    windows = {"kernel": a["kernel"], "stride": a["stride"], "padding": _sides(a["pad"])}
    windows = {name: tuple(value) for name, value in windows.items()}
    acc = run(SumPool2d(**windows, pad_code=int(zero.item())), _first(x))
    counts = SumPool2d(**windows).forward(np.ones((1, 1, *x.shape[1:3]), dtype=np.int64))
    k = [int(n - 1).bit_length() for n in counts.flat]
    mean = Rescale(
        np.array([(2**30 + 1) * 2**e // n for e, n in zip(k, counts.flat)]),
        np.array(k) + 30,
        IntFormat(t.bits[-1], signed=True),
        rounding="half_up",
        offset=-zero * int(np.prod(windows["kernel"])),
        zero_point=zero_out,
    )
    return _last(run(mean, acc.reshape(-1, counts.size)).reshape(acc.shape))


def max_pool2d(t: Test) -> Array:
    a = t.attributes
    op = MaxPool2d(tuple(a["kernel"]), tuple(a["stride"]), _sides(a["pad"]))
    return _last(run(op, _first(t.inputs[0])))


def add(t: Test) -> Array:
    return run(Add((1, 1)), *_columns(*t.inputs))


def sub(t: Test) -> Array:
    return run(Add((1, -1)), *_columns(*t.inputs))


def mul(t: Test) -> Array:
    """The second operand is the multiplier of a node, with its sign moved to the first."""
    a, b = (v.reshape(1, -1) for v in np.broadcast_arrays(*t.inputs[:2]))
    signed = np.where(b < 0, run(Add((-1,)), a), a)
    op = Rescale(abs(b[0]), t.inputs[2], IntFormat(32, signed=True), rounding="half_up")
    return run(op, signed)


def clamp(t: Test) -> Array:
    ends = [
        int.from_bytes(bytes(t.attributes[name][: t.bits[-1] // 8]), "little", signed=True)
        for name in ("min_val", "max_val")
    ]
    return run(_to(t.bits[-1], clip=np.array([ends])), *_columns(t.inputs[0]))


def table(t: Test) -> Array:
    if t.bits[0] != 8:
        raise Inexpressible("interpolates between entries")
    return run(Lookup(t.inputs[1].reshape(1, -1), -128), *_columns(t.inputs[0]))


def pad(t: Test) -> Array:
    x, sides, value = t.inputs
    places = np.pad(_places(x), sides.reshape(-1, 2), constant_values=-1) if x.ndim else _places(x)
    return _moved(x, places, int(value.item()))


def concat(t: Test) -> Array:
    flat = [x.reshape(1, -1) for x in t.inputs]
    starts = np.cumsum([0, *(x.size for x in t.inputs)])
    places = [_places(x) + start for x, start in zip(t.inputs, starts)]
    joined = run(Concat(), *flat) if len(flat) > 1 else flat[0]
    return _moved(joined, np.concatenate(places, axis=t.attributes["axis"]))


def reshape(t: Test) -> Array:
    x = t.inputs[0]
    return run(Reshape(t.result.shape or (1,)), x.reshape(1, *(x.shape or (1,))))


def transpose(t: Test) -> Array:
    x = t.inputs[0]
    return _moved(x, _places(x).transpose(t.attributes["perms"]))


def slice(t: Test) -> Array:
    x, start, size = t.inputs
    part = tuple(np.s_[a : a + n] for a, n in zip(start.reshape(-1), size.reshape(-1)))
    return _moved(x, _places(x)[part])


def reverse(t: Test) -> Array:
    x = t.inputs[0]
    return _moved(x, np.flip(_places(x), t.attributes["axis"]))


def tile(t: Test) -> Array:
    x, times = t.inputs
    return _moved(x, np.tile(_places(x), times.reshape(-1)))


def gather(t: Test) -> Array:
    """The indices are the constant of a node."""
    x, indices = t.inputs
    return _moved(x, np.stack([p[i] for p, i in zip(_places(x), indices)]))


def resize(t: Test) -> Array:
    if t.attributes["mode"] != "NEAREST":
        raise Inexpressible("bilinear")
    x, scale, offset, _ = t.inputs
    near = []
    for axis in (0, 1):
        n, d = scale[2 * axis : 2 * axis + 2]
        at = np.arange(t.result.shape[1 + axis]) * d + offset[axis]
        near.append(np.clip(at // n + (at % n * 2 >= n), 0, x.shape[1 + axis] - 1))
    return _moved(x, _places(x)[:, near[0]][:, :, near[1]])


def negate(t: Test) -> Array:
    x, zero, zero_out = t.inputs
    op = _to(t.bits[-1], offset=zero, zero_point=zero_out)
    return run(op, run(Add((-1,)), *_columns(x)))


def _greater(a: Array, b: Array) -> Array:
    """Elementwise: a window over both."""
    pairs = run(Concat(), a[:, :, None, None], b[:, :, None, None])
    return run(MaxPool2d((2, 1)), run(Reshape((1, 2, 1)), pairs)).reshape(-1, 1)


def maximum(t: Test) -> Array:
    return _greater(*_columns(*t.inputs))


def minimum(t: Test) -> Array:
    opposite = Add((-1,))
    return run(opposite, _greater(*(run(opposite, v) for v in _columns(*t.inputs))))


def abs_(t: Test) -> Array:
    (x,) = _columns(t.inputs[0])
    return _greater(x, run(Add((-1,)), x))


def argmax(t: Test) -> Array:
    raise Inexpressible("no node answers a place")


def cast(t: Test) -> Array:
    """What a wider type holds stays; what 16 bits hold may be looked up."""
    bits, out = t.bits
    (x,) = _columns(t.inputs[0])
    if bits <= out:
        return run(_to(out), x)
    if bits > 16:
        raise Inexpressible("32 bits wrap or become a bool")
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    entries = codes != 0 if out == 1 else (codes + 2 ** (out - 1)) % 2**out - 2 ** (out - 1)
    return run(Lookup(entries.astype(np.int64)[None], int(codes[0])), x)


_RESCALED = re.compile(r"_i(\d+)_outi(\d+)_sc(\d)_rm(\w)_pc(\d)_iu(\d)_ou(\d)$")


def rescale(t: Test) -> Array:
    found = _RESCALED.search(t.name)
    assert found is not None, t.name
    bits_in, bits_out, _, rounding, _, unsigned_in, unsigned_out = found.groups()
    x, multiplier, shift, zero_in, zero_out = t.inputs
    if unsigned_in == "1":
        x, zero_in = (v % 2 ** int(bits_in) for v in (x, zero_in))
    if unsigned_out == "1":
        zero_out = zero_out % 2 ** int(bits_out)
    twice: dict[str, Any] = {"rounding": "half_up"}
    if rounding == "D":
        twice = {"rounding": "half_away", "first_rounding": "half_up",
                 "first_shift": np.minimum(shift, 31)}  # fmt: skip
    fmt = IntFormat(int(bits_out), unsigned_out == "0")
    op = Rescale(multiplier, shift, fmt, zero_point=zero_out, offset=-zero_in, **twice)
    y = run(op, x.reshape(-1, x.shape[-1] if op.channels > 1 else 1))
    return (y + 2 ** (fmt.bits - 1)) % 2**fmt.bits - 2 ** (fmt.bits - 1)  # as a signed type


OPERATORS: dict[str, Callable[[Test], Array]] = {
    f.__name__.rstrip("_"): f
    for f in (conv2d, depthwise_conv2d, transpose_conv2d, matmul, matmul_t, avg_pool2d, max_pool2d,
              add, sub, mul, clamp, table, pad, concat, reshape, transpose, slice, reverse, tile,
              gather, resize, negate, abs_, minimum, maximum, rescale, argmax, cast)
}  # fmt: skip


# --- counting ------------------------------------------------------------------------------------


def outcome(operator: str, t: Test) -> str:
    """ "equal", "different", or why no nodes of ours do it."""
    try:
        got = OPERATORS[operator](t)
    except Inexpressible as reason:
        return str(reason)
    except RefqnnError as refusal:
        return f"refused: {type(refusal).__name__}"
    same = np.array_equal(got.reshape(t.result.shape), t.result.astype(np.int64))
    return "equal" if same else "different"


def counted(operator: str, folder: Path, most: int | None) -> dict[str, Any]:
    """How many tests of an operator there are, were run, and how each ended."""
    tests = made(operator, folder)
    some = tests[:: max(1, -(-len(tests) // most))] if most else tests
    outcomes: Counter[str] = Counter()
    values, failed = 0, []
    for path in some:
        test = read(path)
        found = outcome(operator, test)
        outcomes[found] += 1
        values += test.result.size * (found == "equal")
        failed += [test.name] if found == "different" else []
    equal, different = outcomes.pop("equal", 0), outcomes.pop("different", 0)
    return {
        "made": len(tests),
        "run": len(some),
        "equal": equal,
        "values": values,
        "different": different,
        "failed": failed,
        "not_expressible": dict(sorted(outcomes.items())),
    }


def all_counted(operators: Sequence[str], most: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for operator in operators:
        with tempfile.TemporaryDirectory() as folder:
            yield operator, counted(operator, Path(folder), most)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operators", nargs="*", default=list(OPERATORS), metavar="OPERATOR")
    parser.add_argument("--most", type=int, help="tests of each operator; all by default")
    parser.add_argument("--quick", action="store_true", help="three of each, nothing written")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for results")
    arguments = parser.parse_args()
    if missing():
        parser.exit(1, f"not on PATH: {', '.join(missing())}; of the package tosa-tools\n")
    path = arguments.output / "tosa.json"
    old = json.loads(path.read_text())["operators"] if path.exists() else {}
    for operator, found in all_counted(
        arguments.operators, 3 if arguments.quick else arguments.most
    ):
        print(operator, found, flush=True)
        if not arguments.quick:
            old[operator] = found
            ordered = {name: old[name] for name in OPERATORS if name in old}
            write_results("tosa", {"what": (__doc__ or "").splitlines()[0], "operators": ordered},
                          arguments.output)  # fmt: skip


if __name__ == "__main__":
    main()
