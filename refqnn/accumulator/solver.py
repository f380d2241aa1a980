"""Questions for a constraint solver (CP-SAT of OR-tools, the `verify` extra).

Only decisions are asked: "is there an input with sign * acc >= value?".  The model is the cone of
the neuron in exact integers: inputs are variables, sums are linear equations, a code is its lowest
code plus one Boolean per threshold, b_k <=> acc >= T_k.  "No" is trusted as a proof; "yes" comes
with an input, which is computed again.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.cone import Cone, Elementwise, Maximum, Sum, Take
from refqnn.arithmetic import IntArray
from refqnn.errors import MissingExtra
from refqnn.ops.structure import PADDING, Monotone, Table, Thresholds

__all__ = ["decide", "require_solver", "solver_installed"]

_TOLD = 2**20  # coefficients; a larger model takes longer to tell than a search to end
_LARGEST = 2**52  # beyond, the solver's own sums are not sure to fit 64 bits


def solver_installed() -> bool:
    """Is the `verify` extra there?"""
    return find_spec("ortools") is not None


def require_solver() -> None:
    """Raises: MissingExtra without ortools."""
    if not solver_installed():
        raise MissingExtra("verify", "ortools")


def decide(
    cone: Cone,
    lo: IntArray,
    hi: IntArray,
    sign: int,
    value: int,
    *,
    step: int = 1,
    deadline: float | None = None,
) -> tuple[bool | None, NDArray[np.int64] | None]:
    """Is there an input in the box with sign * acc >= value?

    Returns: (True, an input [d]), (False, None), or (None, None) when the time ran out, the numbers
        are too large for the solver, or a function is computed and not listed.

    Raises: MissingExtra.
    """
    require_solver()
    from ortools.sat.python import cp_model

    functions = (part.functions for *_, part in cone.steps if isinstance(part, Elementwise))
    if any(isinstance(f, Monotone) for f in functions):
        return None, None
    boxes = cone.bounds(lo[None], hi[None])[2]
    sizes = [max(abs(int(a.min())), abs(int(b.max()))) for a, b in boxes.values() if a.size]
    sizes += [step_.mass for *_, step_ in cone.steps if isinstance(step_, Sum)]
    if max(sizes, default=0) > _LARGEST or abs(value) > _LARGEST:
        return None, None
    if sum(np.count_nonzero(s.matrix) for *_, s in cone.steps if isinstance(s, Sum)) > _TOLD:
        return None, None
    seconds = None if deadline is None else deadline - time.monotonic()
    if seconds is not None and seconds <= 0:
        return None, None

    model = cp_model.CpModel()
    inputs = []
    for a, b in zip(lo.tolist(), hi.tolist()):
        codes = cp_model.Domain.from_values(list(range(a, b + 1, step)))
        inputs.append(model.new_int_var_from_domain(codes, ""))
    values: dict[str, list[Any]] = {"input": inputs}
    for name, sources, part in cone.steps:
        x = [variable for source in sources for variable in values[source]]
        x_lo, x_hi = (np.concatenate([boxes[s][e][0] for s in sources]) for e in (0, 1))
        ends = [range_[0].tolist() for range_ in boxes[name]]
        values[name] = _constrain(model, part, x, (x_lo, x_hi), ends)
    (acc,) = values[cone.steps[-1][0]]
    model.add(sign * acc >= value)

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    if seconds is not None:
        solver.parameters.max_time_in_seconds = seconds
    answer = solver.solve(model)
    if answer == cp_model.INFEASIBLE:
        return False, None
    if answer in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return True, np.array([solver.value(v) for v in inputs], dtype=np.int64)
    return None, None


def _constrain(
    model: Any, part: Any, x: list[Any], x_range: tuple[IntArray, IntArray], ends: list[list[int]]
) -> list[Any]:
    """Variables for the outputs of one step, tied to its inputs."""
    if isinstance(part, Take):
        return [part.fill if i == PADDING else x[i] for i in part.index.tolist()]
    out = [model.new_int_var(a, b, "") for a, b in zip(*ends)]
    if isinstance(part, Sum):
        for y, row, constant in zip(out, part.matrix.tolist(), part.constant.tolist()):
            model.add(y == sum(w * v for w, v in zip(row, x) if w) + constant)
    elif isinstance(part, Maximum):
        for y, window in zip(out, part.windows.tolist()):
            model.add_max_equality(y, [x[i] for i in window])
    else:
        lows, highs = (end[part.index].tolist() for end in x_range)
        operands = [x[i] for i in part.index.tolist()]
        add = _add_codes if isinstance(part.functions, Thresholds) else _add_table
        for arguments in zip(out, operands, lows, highs, part.functions.values.tolist()):
            add(model, part.functions, *arguments)
    return out


def _add_codes(
    model: Any, functions: Thresholds, y: Any, v: Any, a: int, b: int, row: list[int]
) -> None:
    """y = q_min + one Boolean for each threshold that v in [a, b] may pass."""
    reached = []
    for threshold in row:
        if a < threshold <= b:
            flag = model.new_bool_var("")
            model.add(v >= threshold).only_enforce_if(flag)
            model.add(v < threshold).only_enforce_if(~flag)
            reached.append(flag)
    model.add(y == functions.q_min + sum(t <= a for t in row) + sum(reached))


def _add_table(
    model: Any, functions: Table, y: Any, v: Any, a: int, b: int, row: list[int]
) -> None:
    """y = row[v - lo] for v in [a, b]."""
    model.add_element(v - a, row[a - functions.lo : b - functions.lo + 1], y)
