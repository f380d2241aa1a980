"""Are the constants that a measurement has set still right, on this machine?

For each: its value in the code, and the value found here, in one of four ways.

    fastest     the candidate with which some networks run fastest; "costs" is what they take with
                the code's value, as a multiple of that
    crossing    the size up to which the first of two ways is the faster one
    amount      how much is done in the time that the constant was chosen for
    refit       prices of lookups as the optimizer of Concrete reports them today, and the four
                terms of the work of an encrypted inference, fitted to runs of a few circuits

One core, but for the encrypted runs.  Only an idle machine tells anything.

    python bench/constants.py            # 10 minutes on two idle cores
    python bench/constants.py --quick    # two networks, few candidates, nothing written
"""

# ruff: noqa: E402

from __future__ import annotations

import os

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy is loaded; Concrete keeps its threads

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import pairwise, product
from math import exp, inf
from typing import Any
from unittest.mock import patch

import numpy as np
from common import Call, Session, seconds
from numpy.typing import NDArray

import refqnn.plan
from refqnn import Conv2d, Flatten, IntFormat, Linear, MaxPool2d, Network, Node, Requantize, certify
from refqnn.ops import Op

HOMES = ("refqnn.limits", "refqnn.fhe.prices")
ROUNDS = 5


@dataclass(frozen=True)
class Constant:
    """What was found of one constant."""

    name: str
    code: float
    here: float
    way: str
    costs: float | None = None  # of the code's value, as a multiple of the best

    def __str__(self) -> str:
        costs = "" if self.costs is None else f"costs {self.costs:.2f}"
        code, here = (f"{v:,.0f}" if v >= 1000 else f"{v:.4g}" for v in (self.code, self.here))
        return f"{self.name:<32} {code:>14} {here:>14}  {self.way:<9} {costs}".rstrip()


def value(name: str) -> Any:
    """A constant, read from its home."""
    return next(vars(home)[name] for home in map(import_module, HOMES) if name in vars(home))


@contextmanager
def set_to(name: str, changed: float) -> Iterator[None]:
    """Another value of a constant, in every module that has imported it."""
    users = [m for key, m in sys.modules.items() if key.startswith("refqnn") and name in vars(m)]
    with ExitStack() as stack:
        for module in users:
            stack.enter_context(patch.object(module, name, changed))
        yield


# --- three ways -------------------------------------------------------------------------------


def fastest(name: str, candidates: Sequence[int], calls: Callable[[], list[Call]]) -> Constant:
    """`calls` are made anew under each candidate, and take turns."""
    code = value(name)
    made, times = {}, {}
    for candidate in sorted({code, *candidates}):
        with set_to(name, candidate):
            made[candidate] = calls()
            times[candidate] = np.array([seconds(call, 0.0)[0] for call in made[candidate]])
    for _ in range(ROUNDS):
        for candidate, some in made.items():
            with set_to(name, candidate):
                once = [seconds(call)[0] for call in some]
            times[candidate] = np.minimum(times[candidate], once)
    least = np.min(list(times.values()), axis=0)
    costs = {candidate: exp(np.log(some / least).mean()) for candidate, some in times.items()}
    best = min(costs, key=lambda candidate: costs[candidate])
    return Constant(name, code, best, "fastest", costs[code] / costs[best])


def crossing(name: str, sizes: Sequence[int], ways: Callable[[int], tuple[Call, Call]]) -> Constant:
    """`ways(size)` are the way that small sizes go, and the other."""
    first_wins = []
    for size in sizes:
        calls, times = ways(size), [inf, inf]
        for _ in range(ROUNDS):
            times = [min(t, float(seconds(call)[0])) for t, call in zip(times, calls)]
        first_wins.append(times[0] <= times[1])
    wins = np.array(first_wins)
    # The cut that the fewest sizes contradict: one of them may have been disturbed.
    wrong = [int((~wins[:cut]).sum() + wins[cut:].sum()) for cut in range(len(sizes) + 1)]
    cut = int(np.argmin(wrong))
    return Constant(name, value(name), sizes[cut - 1] if cut else 0, "crossing")


def amount(
    name: str, budget: float, sizes: Sequence[int], call: Callable[[int], tuple[Call, float]]
) -> Constant:
    """`call(size)` is what is timed, and how much of the constant's unit it does."""
    before = (0.0, 0.0)
    for size in sizes:
        work, units = call(size)
        now = (min(float(seconds(work, 0.0)[0]) for _ in range(2)), units)
        if now[0] >= budget:
            share = (budget - before[0]) / (now[0] - before[0])
            return Constant(name, value(name), before[1] + share * (now[1] - before[1]), "amount")
        before = now
    return Constant(name, value(name), before[1], "amount")


# --- the plan and the integer core ------------------------------------------------------------


def weights(*shape: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(-3, 4, shape)


def codes_of(bits: int, fan_in: int) -> Requantize:
    """Codes that such sums spread over."""
    spread = int(2 * (fan_in**0.5) * 2 ** (bits - 1))
    return Requantize.from_shift(
        max(0, spread.bit_length() - bits + 1), IntFormat(bits, signed=False)
    )


def mlp(bits: int, *sizes: int) -> Network:
    ops: list[Op] = []
    for n_in, n_out in pairwise(sizes):
        ops += [Linear(weights(n_out, n_in)), codes_of(bits, n_in)]
    return network(ops[:-1], (sizes[0],), bits)


def cnn(bits: int, shape: tuple[int, int, int], *channels: int) -> Network:
    ops: list[Op] = []
    (n_in, height, width) = shape
    for n_out in channels:
        ops += [Conv2d(weights(n_out, n_in, 3, 3), padding=1), codes_of(bits, 9 * n_in)]
        ops.append(MaxPool2d(2))
        n_in, height, width = n_out, height // 2, width // 2
    ops += [Flatten(), Linear(weights(10, n_in * height * width))]
    return network(ops, shape, bits)


def network(ops: Sequence[Op], shape: tuple[int, ...], bits: int) -> Network:
    nodes = [Node(f"n{i}", op) for i, op in enumerate(ops)]
    return Network(nodes, input_shape=shape, input_format=IntFormat(bits, signed=False))


def samples(network: Network, n: int) -> NDArray[np.int64]:
    shape, top = network.input_shape, network.input_format.q_max
    return np.random.default_rng(0).integers(0, top + 1, (n, *shape))


def forwards(quick: bool) -> list[Call]:
    networks = [mlp(3, 64, 64, 10), cnn(3, (1, 8, 8), 8, 16)]
    if not quick:
        networks += [mlp(4, 784, 256, 256, 10), cnn(4, (3, 32, 32), 16, 32, 64)]
    batches = [
        (net, samples(net, 2_000 if net.input_shape[0] == 3 else 10_000)) for net in networks
    ]
    return [lambda net=net, x=x: net.forward(x) for net, x in batches]


def unfolded(quick: bool) -> list[Call]:
    net = cnn(4, (3, 32, 32), 16)
    x = samples(net, 64 if quick else 512)
    return [lambda: net.trace(x)]


def uneven(levels: int, span: int, channels: int = 16) -> Requantize:
    """Thresholds that no line meets."""
    inner = np.random.default_rng(0).integers(-span, span, (channels, levels - 1))
    return Requantize(np.sort(inner, axis=1), IntFormat((levels - 1).bit_length(), signed=False))


def compared(n_thresholds: int) -> tuple[Call, Call]:
    op = uneven(n_thresholds + 1, 1_000)
    acc = np.random.default_rng(0).integers(-1_000, 1_000, (2_000, 16))

    def with_limit(limit: int) -> None:
        with set_to("COMPARED_THRESHOLDS", limit):
            op.forward(acc)

    return lambda: with_limit(n_thresholds), lambda: with_limit(0)


def searched(n: int) -> tuple[Call, Call]:
    op = uneven(128, 1_000, 256)
    acc = np.random.default_rng(0).integers(-1_000, 1_000, (n, 256))

    def with_limit(limit: int) -> None:
        with set_to("SEARCHED_TOGETHER", limit):
            op.forward(acc)

    return lambda: with_limit(n + 1), lambda: with_limit(0)


def by_table(entries: int) -> tuple[Call, Call]:
    weight = np.ones((16, 4), dtype=np.int64) * max(1, entries // (16 * 4 * 255))
    ops = [Linear(weight), uneven(16, 2 * int(weight[0, 0]) * 255)]
    nets = [network(ops, (4,), 8) for _ in range(2)]
    x = samples(nets[0], 10_000)
    for net, limit in zip(nets, (2**62, 0)):
        with set_to("CODE_TABLE", limit):
            net.forward(x[:1])  # makes the plan
    return lambda: nets[0].forward(x), lambda: nets[1].forward(x)


def small(n_inputs: int, hidden: int, outputs: int) -> Network:
    """Two inputs, so many pairs of codes."""
    net = mlp(2, 2, hidden, outputs)
    return network([node.op for node in net.nodes], (2,), (n_inputs - 1).bit_length() // 2)


def unlimited() -> ExitStack:
    stack = ExitStack()
    for name in ("ENUMERATED_INPUTS", "ENUMERATED_OUTPUTS", "ENUMERATED_WORK"):
        stack.enter_context(set_to(name, 2**62))
    return stack


def enumerated(n_inputs: int, outputs: int) -> tuple[Call, Call]:
    net = small(n_inputs, 16, outputs)
    plan = refqnn.plan.prepare(net)
    with unlimited():
        table = refqnn.plan.enumerated(plan)
    x = samples(net, 1_000)
    return lambda: table.forward(x), lambda: plan.forward(x)


def making_a_table(n_inputs: int) -> tuple[Call, float]:
    net = small(n_inputs, 64, 4)
    plan = refqnn.plan.prepare(net)

    def make() -> None:
        with unlimited():
            refqnn.plan.enumerated(plan)

    return make, n_inputs * refqnn.plan._work(net)


def fitting_lines(levels: int) -> tuple[Call, float]:
    """A layer of 64 channels, none of which is a line."""
    bits = (levels - 1).bit_length()
    net = network([Linear(weights(64, 16)), uneven(levels, 400, 64)], (16,), bits)

    def make() -> None:
        with set_to("LINE_LEVELS", 2**62):
            refqnn.plan.prepare(net)

    return make, levels


def walking(points: int) -> tuple[Call, float]:
    net = mlp(1, (points - 1).bit_length(), 16, 3)
    return lambda: certify(net, method="exhaustive"), points


def powers(first: int, last: int, step: int = 1) -> list[int]:
    return [2**e for e in range(first, last + 1, step)]


def core(quick: bool) -> Iterator[Constant]:
    """The constants of refqnn.limits that a measurement has set."""

    def calls() -> list[Call]:
        return forwards(quick)

    few = 4 if quick else 1
    yield fastest("BLOCK_VALUES", [*powers(17, 23, few), 650_000, 2_600_000], calls)
    yield fastest("BLAS_PRODUCT", powers(16, 26, 2 * few), calls)
    yield fastest("NARROWEST_PRODUCT", powers(3, 9, few), calls)
    yield fastest("NUMPY_BUFFER", powers(6, 13, few), calls)
    yield fastest("UNFOLDED_COLUMNS", powers(17, 26, 2 * few), lambda: unfolded(quick))
    yield crossing("COMPARED_THRESHOLDS", [1, 3, 7, 15, 31, 63], compared)
    yield crossing("SEARCHED_TOGETHER", powers(2, 9), searched)
    yield crossing("CODE_TABLE", powers(14, 18 if quick else 26), by_table)
    most = 14 if quick else 20
    yield crossing("ENUMERATED_INPUTS", powers(6, most, 2), lambda n: enumerated(n, 1))
    outputs = crossing("ENUMERATED_OUTPUTS", powers(3, most - 4), lambda n: enumerated(2**10, n))
    yield Constant(outputs.name, outputs.code, outputs.here * 2**10, outputs.way)
    yield amount("ENUMERATED_WORK", 0.1, powers(8, 20, 2), making_a_table)
    yield amount("LINE_LEVELS", 0.1, powers(3, 12), fitting_lines)
    yield amount("EXHAUSTIVE_LIMIT", 0.2, powers(8, 20), walking)


# --- encrypted --------------------------------------------------------------------------------


def price(bits: int, shift: int, neurons: int = 16, p_error: float = 2.0**-46) -> float:
    """Millions of operations of one accumulator: a dense ternary layer, bits removed, a table."""
    from concrete import fhe

    top = 1 if bits == 1 else 3
    weight = np.random.default_rng(0).choice([-1, 1], (neurons, max(1, (2**bits - 1) // top)))
    offset = top * (weight < 0).sum(axis=1)
    ends = [np.where(row == sign, top, 0) for row in weight for sign in (1, -1)]

    def layer(x: Any) -> Any:
        acc = weight @ x + offset
        kept = fhe.truncate_bit_pattern(acc, lsbs_to_remove=shift) if shift else acc
        return fhe.univariate(lambda v: np.minimum(v >> shift, 3))(kept)

    configuration = fhe.Configuration(p_error=p_error, parameter_selection_strategy="multi")
    circuit = fhe.Compiler(layer, {"x": "encrypted"}).compile(ends, configuration)
    return float(circuit.complexity) / neurons / 1e6


def prices(quick: bool) -> Iterator[Constant]:
    table = value("_DROP")
    for bits in (4, 5) if quick else table:
        for shift, code in enumerate(table[bits]):
            if bits - shift <= 8:  # wider tables have no parameters
                yield Constant(f"_DROP[{bits}][{shift}]", code, price(bits, shift), "refit")
    if not quick:
        widest = max(table)
        more = [price(widest + k, 7 + k) for k in range(3)]
        yield Constant(
            "_PER_BIT_BEYOND", value("_PER_BIT_BEYOND"), (more[2] - more[0]) / 2, "refit"
        )


TERMS = ("CALL", "INPUT", "KEY_BYTE", "REMOVED_BIT")
CIRCUITS = (  # inputs, hidden neurons, bits removed from each
    *((4, 8, 0), (16, 8, 1), (64, 8, 2), (64, 32, 2), (16, 16, 3)),
    *((256, 8, 1), (32, 64, 0), (8, 32, 1), (128, 16, 0), (16, 48, 3)),
)


def work(quick: bool) -> Iterator[Constant]:
    """seconds = speed * (complexity + terms), no term negative, relative errors least."""
    runs = [encrypted(*circuit) for circuit in CIRCUITS[: 2 if quick else None]]
    if quick:
        return
    seconds_of = np.array([took for _, took in runs])
    rows = np.array([row for row, _ in runs]) / seconds_of[:, None]
    fits = []
    for chosen in product((False, True), repeat=len(TERMS)):
        factors = np.zeros(1 + len(TERMS))
        used = np.array((True, *chosen))
        factors[used] = np.linalg.lstsq(rows[:, used], np.ones(len(rows)), rcond=None)[0]
        if factors[0] > 0 and (factors >= 0).all():
            fits.append((float(np.square(rows @ factors - 1).sum()), factors.tolist()))
    _, (speed, *terms) = min(fits)
    for term, factor in zip(TERMS, terms):
        name = f"_OPERATIONS_PER_{term}"
        yield Constant(name, value(name), factor / speed, "refit")


def encrypted(n_inputs: int, hidden: int, removed: int) -> tuple[list[float], float]:
    """What one inference counts, and its seconds: the median of some, the first left out."""
    from refqnn import fhe

    rng = np.random.default_rng(0)
    weight = np.zeros((hidden, n_inputs), dtype=np.int64)
    for row in weight:  # sums of `removed` + 4 bits
        row[rng.permutation(n_inputs)[: min(n_inputs, 5 * 2**removed)]] = 1
    codes = IntFormat(2, signed=False)
    last = Linear(rng.choice([-1, 1], (2, hidden)))
    ops = [Linear(weight), Requantize.from_shift(removed + 2, codes), last]
    circuit = fhe.compile(network(ops, (n_inputs,), 2), input_levels=False)
    circuit.keygen()
    x = samples(circuit.network, 1)
    circuit.execute(x)  # unpacks the keys
    took = float(np.median([seconds(lambda: circuit.execute(x), 0.0)[0] for _ in range(5)]))
    bits = sum(layer.removed_bits for layer in circuit.layers)
    return [circuit.complexity, 1, n_inputs, circuit.key_sizes.bootstrap, bits], took


def main() -> None:
    session = Session("constants", __doc__, "two networks, few candidates, nothing written")
    session.say(f"{'constant':<32} {'in the code':>14} {'here':>14}")
    found = []
    for part in (core, prices, work):
        for constant in part(session.quick):
            session.say(str(constant))
            found.append(constant)
    if not session.quick:
        session.write({"constants": [asdict(constant) for constant in found]})


if __name__ == "__main__":
    main()
