"""One function for each pair of things that must agree: `compare(network, rng)`.

Each returns a word that says how it ended, for the counts, or raises `Disagreement`.  What it draws
comes from `rng` alone, so that it can be repeated on a smaller network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np
from networks import ALWAYS, EDGES, NEVER, Twice, codes_of, every_input, rebuilt

from refqnn import IntFormat, Network, Requantize, Rounding, certify, exact, find_overflow, simplify
from refqnn.accumulator import Domain, NoOverflow, Overflow, Status, Unknown
from refqnn.emulate import Emulated
from refqnn.errors import AccumulatorOverflow, CircuitError, NotCovered, OutOfRange
from refqnn.storage import from_bytes, to_bytes

Rng = np.random.Generator


AGAIN = "print(again.forward(codes).tolist())", "print(network.forward(codes).tolist())"


class Disagreement(AssertionError):
    """Two things that must agree do not.

    Attributes:
        lines: Python that shows it, given `network`.
    """

    def __init__(self, message: str, *lines: str) -> None:
        super().__init__(message)
        self.lines = lines


@contextmanager
def told(what: str, *lines: str) -> Iterator[None]:
    """Any error of the block is a disagreement: what is asked here has an answer."""
    try:
        yield
    except Disagreement:
        raise
    except Exception as error:
        raise Disagreement(f"{what}: {type(error).__name__}: {error}", *lines) from error


def literal(array: Any) -> str:
    return repr(np.asarray(array).tolist())


def same(expected: Any, got: Any, message: str, *lines: str) -> None:
    expected, got = np.asarray(expected, dtype=object), np.asarray(got, dtype=object)
    if expected.shape != got.shape or (expected != got).any():
        raise Disagreement(f"{message}: expected {expected.tolist()}, got {got.tolist()}", *lines)


def same_outputs(network: Network, codes: np.ndarray, got: Any, what: str, *lines: str) -> None:
    """Held against the trace; the first sample that differs is the one that is told."""
    expected = network.trace(codes)[network.output]
    for x, y, z in zip(codes, expected, got):
        if y.tolist() != z.tolist():
            same(y, z, what, *lines, f"codes = np.array({literal(x[None])})", *AGAIN)
    same(expected.shape, np.shape(got), f"shape of {what}")


# --- limits and block sizes ---------------------------------------------------------------------

# Sizes that decide how something is computed, and never what: tiny ones reach every branch.
LIMITS = {
    "BLOCK_VALUES": [1, 5, 60, 1000],
    "NUMPY_BUFFER": [16, 48],
    "BLAS_PRODUCT": [1, 60, 2000],
    "NARROWEST_PRODUCT": [1, 3],
    "CODE_TABLE": [0, 1, 20],
    "LINE_LEVELS": [0, 2, 4],
    "ENUMERATED_INPUTS": [0, 0, 2**14],
    "COMPARED_THRESHOLDS": [0, 1, 3],
    "UNFOLDED_COLUMNS": [1, 30],
    "HELD": [1, 50, 2000],
    "EXHAUSTIVE_LIMIT": [0, 5],
    "_BATCH": [1, 2, 30],
}


def homes(name: str) -> list[str]:
    """The modules of refqnn, loaded by now, that hold a limit of this name."""
    return [
        module
        for module in sorted(sys.modules)
        if module.startswith("refqnn.") and isinstance(vars(sys.modules[module]).get(name), int)
    ]


@contextmanager
def limits(values: dict[str, int]) -> Iterator[None]:
    """Other values of some limits, in every module that has them."""
    places = [(sys.modules[module], name) for name in values for module in homes(name)]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, values[name])
        yield
    finally:
        for (module, name), value in zip(places, before):
            setattr(module, name, value)


def some_limits(rng: Rng) -> dict[str, int]:
    chosen = {name: int(rng.choice(choices)) for name, choices in LIMITS.items()}
    kept = rng.random(len(chosen)) < rng.choice([0.0, 0.3, 1.0])
    return {name: value for (name, value), keep in zip(chosen.items(), kept) if keep}


def in_python(values: dict[str, int]) -> list[str]:
    return [
        f"import {module}; {module}.{name} = {value}"
        for name, value in values.items()
        for module in homes(name)
    ]


# --- the integer program ------------------------------------------------------------------------


def forward(network: Network, rng: Rng) -> str:
    """forward, trace and exact; batches around every size at which the plan changes."""
    own = any(isinstance(node.op, Twice) for node in network.nodes)
    chosen = some_limits(rng)
    codes = codes_of(network, rng, 600)
    expected = rebuilt(network).trace(codes)
    if not own:
        few = codes[:2]
        for name, values in exact.trace(network, few.tolist()).items():
            line = f"network.trace({literal(few)}), exact.trace(network, {literal(few)})"
            same(values, expected[name][:2], f"trace and exact of {name}", line)
    with limits(chosen):
        fresh = rebuilt(network)
        block = int(getattr(fresh._prepared, "block", 0) or 64)
        sizes = [1, 2, 3, 31, 32, 33, 255, 256, 257, 600]
        sizes += [n for n in (block - 1, block, block + 1, 2 * block + 1) if 1 <= n <= 600] * 2
        for n in rng.choice(sizes, 4):
            start = int(rng.integers(0, 600 - n + 1))
            part = codes[start : start + n]
            out = expected[network.output][start : start + n]
            lines = [
                *in_python(chosen),
                f"codes = np.array({literal(part)})" if n < 40 else "",
                "" if n < 40 else _many(network, n),
                "print(network.forward(codes).tolist())",
                "print(network.trace(codes)[network.output].tolist())",
            ]
            with told(f"forward of {n} samples", *lines):
                got = fresh.forward(part)
            same(out, got, f"forward and trace of {n} samples", *lines)
    return "small limits" if chosen else "equal"


def _many(network: Network, n: int) -> str:
    fmt = network.input_format
    shape = (n, *network.input_shape)
    return (
        f"codes = {fmt.q_min} + {fmt.step} * "
        f"np.random.default_rng(0).integers(0, {fmt.levels}, {shape})"
    )


def _arrays(codes: np.ndarray) -> Iterator[tuple[str, Any]]:
    """The same integers in every type that holds them and in every order of memory."""
    for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i2", ">u4", ">i8", "O"):
        if dtype == "O" or (
            np.iinfo(dtype).min <= codes.min() and codes.max() <= np.iinfo(dtype).max
        ):
            yield f"codes.astype({dtype!r})", codes.astype(dtype)
    yield "np.asfortranarray(codes)", np.asfortranarray(codes)
    yield "np.repeat(codes, 2, axis=0)[::2]", np.repeat(codes, 2, axis=0)[::2]
    yield "codes[::-1].copy()[::-1]", codes[::-1].copy()[::-1]
    yield "np.repeat(codes, 3, axis=-1)[..., 1::3]", np.repeat(codes, 3, axis=-1)[..., 1::3]
    yield "np.broadcast_to(codes[:1], codes.shape)", np.broadcast_to(codes[:1], codes.shape)
    frozen = codes.copy()
    frozen.flags.writeable = False
    yield "codes", frozen
    yield "codes.tolist()", codes.tolist()


def dtypes(network: Network, rng: Rng) -> str:
    """forward and trace of the same codes in all integer types and orders of memory."""
    n = int(rng.choice([1, 2, 5, 40]))
    codes = codes_of(network, rng, n)
    plain = rebuilt(network).trace(codes)[network.output]
    repeated = rebuilt(network).trace(codes[:1])[network.output]
    for expression, array in _arrays(codes):
        expected = plain if "broadcast" not in expression else np.repeat(repeated, n, axis=0)
        before = np.array(array)
        for name in ("forward", "trace"):
            suffix = "" if name == "forward" else "[network.output]"
            lines = [f"codes = np.array({literal(codes)})", f"network.{name}({expression}){suffix}"]
            lines[1] = f"print({lines[1]}.tolist(), network.forward(codes).tolist())"
            with told(f"{name}({expression})", *lines):
                got = getattr(network, name)(array)
            got = got if name == "forward" else got[network.output]
            same(expected, got, f"{name}({expression})", *lines)
            same(before, array, f"{name}({expression}) changes its argument", *lines)
    return "equal"


def refusals(network: Network, rng: Rng) -> str:
    """One code outside the format: forward, trace and exact refuse it alike."""
    fmt = network.input_format
    codes = codes_of(network, rng, int(rng.choice([1, 3, 300])))
    outside = [fmt.q_min - 1, fmt.q_max + 1, fmt.q_min - 2, fmt.q_max + 2**30, -(2**62), 2**63]
    outside += [0] if fmt.step == 2 else []
    value = int(outside[rng.integers(len(outside))])
    wrong = codes.astype(object) if value >= 2**63 else codes.copy()
    wrong[(rng.integers(len(codes)), *(rng.integers(n) for n in network.input_shape))] = value
    if rng.random() < 0.5 and -(2**31) <= value < 2**31 and np.abs(codes).max() < 2**31:
        wrong = wrong.astype(np.int32)
    doors: dict[str, Callable[[Any], Any]] = {"forward": network.forward, "trace": network.trace}
    if not any(isinstance(node.op, Twice) for node in network.nodes) and len(codes) < 9:
        doors["exact"] = lambda x: exact.forward(network, x.tolist())
    for name, door in doors.items():
        line = f"network.{name}(np.array({literal(wrong[:300])}, dtype={wrong.dtype.name!r}))"
        with told(f"{name} of the code {value}", line), suppress(OutOfRange):
            got = door(wrong)
            raise Disagreement(f"{name} of the code {value}: {str(got)[:200]}", line)
    return "refused"


def emulated(network: Network, rng: Rng) -> str:
    """An accumulator of few bits, or of as many as 64: trace and exact, or one refusal of both."""
    bits = int(rng.choice([1, 2, 4, 8, 16, 31, 32, 62, 63, 64]))
    overflow = ("wrap", "saturate", "error")[rng.integers(3)]
    when, signed = ("step", "end")[rng.integers(2)], bool(rng.integers(2))
    order = ("forward", "reverse", "bias_first")[rng.integers(3)]
    call = f"Emulated({bits}, {signed}, {overflow!r}, {when!r}, {order!r})"
    accumulator = Emulated(bits, signed, overflow, when, order)  # type: ignore[arg-type]
    codes = codes_of(network, rng, 3)
    lines = ["from refqnn.emulate import Emulated", f"codes = {literal(codes)}"]
    lines += [f"print(network.trace(codes, {call}))", f"print(exact.trace(network, codes, {call}))"]
    ends: list[Any] = []
    for trace in (network.trace, lambda *x: exact.trace(network, *x)):
        end: Any = "refused"
        with suppress(AccumulatorOverflow, OutOfRange):
            end = trace(codes.tolist(), accumulator)
        ends.append(end)
    got, expected = ends
    if "refused" in (got, expected):
        if got != expected:
            raise Disagreement(f"{call}: {str(got)[:200]}, {str(expected)[:200]}", *lines)
        return "refused"
    for name, values in expected.items():
        same(values, got[name], f"{call}: {name}", *lines)
    return overflow


def files(network: Network, rng: Rng) -> str:
    """What is read back from a file is the same program."""
    again = from_bytes(to_bytes(network))
    codes = codes_of(network, rng, 5)
    lines = ["from refqnn.storage import from_bytes, to_bytes", "from_bytes(to_bytes(network))"]
    if again.digest != network.digest:
        raise Disagreement("digest of what a file holds", *lines)
    for name, values in again.trace(codes).items():
        same(network.trace(codes)[name], values, f"{name} of what a file holds", *lines)
    return "equal"


# --- bounds -------------------------------------------------------------------------------------


def some_domain(network: Network, rng: Rng, inputs: np.ndarray) -> tuple[Any, np.ndarray, str]:
    """A domain, all its points, and what makes it."""
    kind = rng.integers(4)
    if kind < 2:
        return None, inputs, "None"
    if kind == 2:
        rows = inputs[np.sort(rng.permutation(len(inputs))[: rng.integers(1, 40)])]
        return rows, rows, f"np.array({literal(rows)})"
    a, b = inputs[rng.integers(len(inputs), size=2)]
    lo, hi = np.minimum(a, b), np.maximum(a, b)
    inside = ((inputs >= lo) & (inputs <= hi)).reshape(len(inputs), -1).all(axis=1)
    domain = f"Domain.box(network, {literal(lo)}, {literal(hi)})"
    return Domain.box(network, lo, hi), inputs[inside], domain


def ends_of(trace: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: (values.min(axis=0), values.max(axis=0)) for name, values in trace.items()}


METHODS = ["interval", "exhaustive", "search"] + ["solver"] * (find_spec("ortools") is not None)


def bounds(network: Network, rng: Rng) -> str:
    """certify by each method alone, against enumeration; and its own check of what it says."""
    inputs = every_input(network)
    domain, points, text = some_domain(network, rng, inputs)
    truth = ends_of(network.trace(points))
    method = METHODS[rng.integers(len(METHODS))]
    X = points[rng.permutation(len(points))[:8]] if rng.random() < 0.3 else None
    chosen = some_limits(rng)
    chosen["EXHAUSTIVE_LIMIT"] = 2**20 if method == "exhaustive" else 0
    data = "" if X is None else f", X=np.array({literal(X)})"
    budget = "" if method in ("interval", "exhaustive") else ", budget_s=20"
    lines = [*in_python(chosen), f"c = certify(network, {text}, {method!r}{budget}{data})"]
    arguments = {"X": X, "budget_s": 20.0 if budget else None}
    with told("certify", *lines), limits(chosen):
        certificate = certify(rebuilt(network), domain, method, **arguments)
    check_bounds(certificate, network, truth, lines)
    with told("verify", *lines, "c.verify(network, allow_trusted=True)"):
        certificate.verify(network, allow_trusted=True)
    return method


def check_bounds(certificate: Any, network: Network, truth: Any, lines: list[str]) -> None:
    """Sound everywhere, the truth where it says exact, and witnesses that reach."""
    for name, ends in truth.items():
        layer = certificate[name]
        for end, (stated, reached) in enumerate(zip((layer.lo, layer.hi), ends)):
            sound = stated <= reached if end == 0 else stated >= reached
            exactly = (layer.status[end] != Status.EXACT) | (stated == reached)
            if not (sound & exactly).all():
                index = np.argwhere(~(sound & exactly))[0].tolist()
                place = f"{('lo', 'hi')[end]} of {name}{index}"
                got = f"{stated[tuple(index)]}, {Status(int(layer.status[(end, *index)])).label}"
                values = f"certified {got}, true {reached[tuple(index)]}"
                raise Disagreement(f"{place}: {values}", *lines, f"print(c[{name!r}])")
    for name, layer in certificate.layers.items():
        for end, *index in np.argwhere(layer.status == Status.EXACT).tolist():
            with told("witness", *lines, f"c.witness(network, {name!r}, {tuple(index)}, {end})"):
                witness = certificate.witness(network, name, tuple(index), end)
            bound = int((layer.lo, layer.hi)[end][tuple(index)])
            if witness is not None:
                got = int(network.trace(witness[None])[name][(0, *index)])
                if got != bound:
                    text = f"witness of {name}{index}: gives {got}, the bound is {bound}"
                    raise Disagreement(text, *lines)


def overflows(network: Network, rng: Rng) -> str:
    """find_overflow against enumeration, from nothing or from interval bounds."""
    if not network.accumulators():
        return "no sum"
    inputs = every_input(network)
    domain, points, text = some_domain(network, rng, inputs)
    truth = ends_of(network.trace(points))
    node = network.accumulators()[rng.integers(len(network.accumulators()))]
    index = tuple(int(rng.integers(n)) for n in network.shapes[node.name])
    lo, hi = (int(end[index]) for end in truth[node.name])
    needed = max((v if v >= 0 else -v - 1).bit_length() + 1 for v in (lo, hi))
    bits = min(max(int(needed + rng.integers(-1, 2)), 1), 64)
    signed = bool(rng.random() < 0.8)
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    chosen = {"EXHAUSTIVE_LIMIT": 0} if rng.random() < 0.7 else {}
    call = f"{node.name!r}, {index}, {bits}, {signed}, domain={text}, budget_s=20"
    lines = [*in_python(chosen), f"print(find_overflow(network, {call}))"]
    with told("find_overflow", *lines), limits(chosen):
        answer = find_overflow(
            rebuilt(network), node.name, index, bits, signed, domain=domain, budget_s=20.0
        )
    possible = lo < least or hi > most
    expected = Overflow if possible else NoOverflow
    if not isinstance(answer, (expected, Unknown)):
        raise Disagreement(f"find_overflow: {answer}, but the range is [{lo}, {hi}]", *lines)
    if isinstance(answer, NoOverflow) and not (answer.range[0] <= lo and hi <= answer.range[1]):
        text = f"find_overflow: proved range {answer.range}, the range is [{lo}, {hi}]"
        raise Disagreement(text, *lines)
    if isinstance(answer, Overflow):
        got = int(network.trace(answer.witness[None])[node.name][(0, *index)])
        if got != answer.value or least <= got <= most:
            raise Disagreement(f"witness of {answer}: gives {got}", *lines)
    return type(answer).__name__


def simplified(network: Network, rng: Rng) -> str:
    """The same outputs on the certified domain."""
    domain, points, text = some_domain(network, rng, every_input(network))
    method = ("interval", "exhaustive")[rng.integers(2)]
    line = f"again = simplify(network, certify(network, {text}, {method!r}))"
    with told("simplify", line):
        small = simplify(network, certify(network, domain, method))
        got = small.trace(points)[network.output]
    same_outputs(network, points, got, "simplify", line)
    return "smaller" if len(small.nodes) < len(network.nodes) else "as it was"


# --- other programs of the same network ---------------------------------------------------------


def lowering(network: Network, rng: Rng) -> str:
    """The steps of the encrypted circuit, on plain integers; with and without a certificate."""
    from refqnn.fhe.lowering import lower, proved_ranges

    certified, levels = rng.random() < 0.3, bool(rng.random() < 0.7)
    codes = codes_of(network, rng, 12)
    lines = [
        "from refqnn.fhe.lowering import lower, proved_ranges",
        f"ranges = proved_ranges(network{', certify(network)' if certified else ''})",
        f"lowered = lower(network, ranges, input_levels={levels})",
        "class again: forward = staticmethod(lambda codes: np.stack(",
        "    [lowered.outputs(lowered.program(x)) for x in lowered.arguments(codes)]))",
    ]
    with told("lowering", *lines):
        try:
            ranges = proved_ranges(network, certify(network) if certified else None)
            lowered = lower(network, ranges, input_levels=levels)
        except (NotCovered, CircuitError):
            return "refused"
        got = np.stack([lowered.outputs(lowered.program(x)) for x in lowered.arguments(codes)])
    same_outputs(network, codes, got, "lowering", *lines)
    return "lookups" if lowered.layers else "no lookup"


def onnx(network: Network, rng: Rng) -> str:
    """Written and read back, in each flavour."""
    from refqnn.onnx import from_onnx, to_onnx

    flavour = ("qonnx", "qcdq", "integer")[rng.integers(3)]
    codes = codes_of(network, rng, 40)
    lines = [
        "from refqnn.onnx import from_onnx, to_onnx",
        f"again = from_onnx(to_onnx(network, flavour={flavour!r}))",
    ]
    with told(f"onnx {flavour}", *lines):
        try:
            got = from_onnx(to_onnx(network, flavour=flavour)).forward(codes)
        except NotCovered:
            return f"{flavour} refused"
    same_outputs(network, codes, got, f"onnx {flavour}", *lines)
    return flavour


# --- constructors -------------------------------------------------------------------------------

MODES = [mode.value for mode in Rounding]


def constructors(network: Network, rng: Rng) -> str:
    """Requantize from a multiplier, a shift or a scale, against fractions; the network plays no
    part."""
    bits, signed = int(rng.integers(1, 5)), bool(rng.integers(2))
    fmt = IntFormat(bits, signed)
    zero_point = int(rng.choice([0, 0, 1, -2, 7, -154, 2**31, -(2**40)]))
    mode, first_mode = (MODES[i] for i in rng.integers(len(MODES), size=2))
    kind = ("from_multiplier", "twice", "from_shift", "from_scale")[rng.integers(4)]
    common = f"{fmt!r}, {mode!r}, zero_point={zero_point}"
    if kind == "from_shift":
        shift, offset = int(rng.choice([0, 1, 5, 31, 62])), int(rng.choice([0, 1, -3, *EDGES]))
        call = f"Requantize.from_shift({shift}, {common}, offset={offset})"

        def value(acc: int) -> int:
            return exact.round(Fraction(acc + offset, 2**shift), mode)
    elif kind == "from_scale":
        scales = [float(s) for s in rng.choice([1.0, 0.1, 2.0**-40, 3e-5, 1e9, 7e-300], 2)]
        offset_ = float(rng.choice([0.0, 0.5, -1e9, 1e-30]))
        call = f"Requantize.from_scale({scales[0]!r}, {scales[1]!r}, {common}, bias={offset_!r})"

        def value(acc: int) -> int:
            real = (acc * Fraction(scales[0]) + Fraction(offset_)) / Fraction(scales[1])
            return exact.round(real, mode)
    else:
        mantissa = int(rng.choice([1, 3, 2**31, 2**32 - 1, int(rng.integers(1, 2**32))]))
        first = int(rng.choice([0, 1, 7, 31]))
        shift = int(rng.integers(first, 63))
        double = f", first_rounding={first_mode!r}, first_shift={first}" * (kind == "twice")
        call = f"Requantize.from_multiplier({mantissa}, {shift}, {common}{double})"

        def value(acc: int) -> int:
            if kind != "twice":
                return exact.round(Fraction(acc * mantissa, 2**shift), mode)
            product = exact.round(Fraction(acc * mantissa, 2**first), first_mode)
            return exact.round(Fraction(product, 2 ** (shift - first)), mode)

    op = eval(call, {"Requantize": Requantize, "IntFormat": IntFormat})
    reachable = [int(t) for t in op.thresholds.ravel() if ALWAYS < t < NEVER]
    near = [t + d for t in reachable for d in (-1, 0, 1)] + [0, 1, -1, *EDGES, *(-e for e in EDGES)]
    for acc in {min(max(a, ALWAYS + 1), NEVER - 1) for a in near}:
        expected = min(max(value(acc) + zero_point, fmt.q_min), fmt.q_max)
        got = int(op.forward(np.array([[acc]]))[0, 0])
        if got != expected:
            line = f"print({call}.forward(np.array([[{acc}]])), {expected})"
            raise Disagreement(f"{call} of {acc}: {got}, expected {expected}", line)
    return kind


# --- all of them --------------------------------------------------------------------------------

# name: (comparison, arguments of `network_of`, networks by default, networks with -m slow)
COMPARISONS: dict[str, tuple[Callable[[Network, Rng], str], dict[str, Any], int, int]] = {
    "forward": (forward, {"points": None}, 50, 40_000),
    "forward, few inputs": (forward, {}, 30, 30_000),
    "a kind of one's own": (forward, {"points": None, "own": True}, 20, 10_000),
    "dtypes": (dtypes, {"points": None}, 25, 10_000),
    "refusals": (refusals, {"points": None}, 60, 30_000),
    "emulated": (emulated, {"points": None}, 40, 40_000),
    "files": (files, {"points": None}, 20, 10_000),
    "bounds": (bounds, {}, 60, 12_000),
    "bounds, a kind of one's own": (bounds, {"own": True}, 15, 3_000),
    "overflows": (overflows, {}, 40, 20_000),
    "simplified": (simplified, {}, 40, 20_000),
    "constructors": (constructors, {}, 200, 80_000),
}
if find_spec("concrete") is not None:
    COMPARISONS["lowering"] = (lowering, {"tame": True}, 40, 15_000)
if find_spec("onnx") is not None:
    COMPARISONS["onnx"] = (onnx, {"points": None, "tame": True}, 40, 25_000)
