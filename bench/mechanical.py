"""Mechanical mutants: every small change of the source of running functions, one at a time.

A *unit* is a function of some modules that is alive in this process; a *change* replaces one node
of its syntax tree.  `changed` puts the code of a change into the function itself, so that whoever
holds the function runs the change, and takes it out again: nothing is imported twice, and a mutant
costs the compilation of one function.
"""

from __future__ import annotations
import __future__

import ast
import copy
import gc
import importlib
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import numpy as np

from refqnn.conformance.operations import ERROR_CODES, OPERATIONS

Lines = set[tuple[str, int]]  # file, line

# --- what can be written instead of what ---------------------------------------------------------

_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod)
_INSTEAD: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    **{op: tuple(o for o in _ARITHMETIC if o is not op) for op in _ARITHMETIC},
    ast.Div: (ast.FloorDiv, ast.Mult),
    ast.Pow: (ast.Mult, ast.Add),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.BitAnd: (ast.BitOr, ast.BitXor),
    ast.BitOr: (ast.BitAnd, ast.BitXor),
    ast.BitXor: (ast.BitAnd, ast.BitOr),
    **{
        op: tuple(o for o in (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq) if o is not op)
        for op in (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
    },
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Continue: (ast.Break,),
    ast.Break: (ast.Continue,),
}
_NAMES = {
    name: tuple(other for other in group if other != name)
    for group in (
        ("min", "max"),
        ("minimum", "maximum"),
        ("any", "all"),
        ("floor", "ceil", "trunc"),
        ("__floor__", "__ceil__"),
        ("float32", "float64", "float16"),
        ("int64", "int32", "int16", "int8"),
        ("argmin", "argmax"),
        ("lo", "hi"),
        ("q_min", "q_max"),
    )
    for name in group
}
_WORDS = [list(ERROR_CODES)] + [
    list(field.choices)
    for operation in OPERATIONS.values()
    for field in operation.arguments.values()
    if field.choices
]
_ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
_SAYS = {"Rejected", "mismatch"}  # calls whose texts nobody compares


def narrowed(value: Any, kind: str) -> Any:
    """A number, or an array of numbers, as another type holds it; anything else as it is."""
    if isinstance(value, (bool, str, np.bool_)):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuO":
        if value.dtype == object and not all(isinstance(v, (int, np.integer)) for v in value.flat):
            return value
        cells = [narrowed(int(v), kind) for v in value.flat]
        return np.array(cells, dtype=value.dtype).reshape(value.shape)
    if not isinstance(value, (int, np.integer, Fraction)):
        return value
    if kind.startswith("float"):
        with np.errstate(all="ignore"):
            short = np.dtype(kind).type(float(value))
        exact: Any = Fraction(float(short)) if np.isfinite(short) else 0
        return type(value)(exact)
    if isinstance(value, Fraction):
        return value
    bits = int(kind[3:])
    return type(value)((int(value) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1))


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _instead(node: ast.AST) -> Iterator[ast.AST]:
    """Every other node that could stand there."""
    maker = globals().get(f"_of_{type(node).__name__.lower()}")
    if maker is not None:
        yield from maker(node)


def _other_operators(node: Any, field: str) -> Iterator[ast.AST]:
    for op in _INSTEAD.get(type(getattr(node, field)), ()):
        other = copy.copy(node)
        setattr(other, field, op())
        yield other


def _of_binop(node: ast.BinOp) -> Iterator[ast.AST]:
    yield from _other_operators(node, "op")
    yield node.left
    yield node.right
    if isinstance(node.op, _ORDERED):
        yield ast.BinOp(node.right, node.op, node.left)
    if not isinstance(node.op, (ast.BitAnd, ast.BitOr)):
        for kind in ("int8", "int16", "int32", "float32"):
            yield _call("__narrowed__", node, ast.Constant(kind))


def _of_augassign(node: ast.AugAssign) -> Iterator[ast.AST]:
    yield from _other_operators(node, "op")
    yield ast.Pass()


def _of_compare(node: ast.Compare) -> Iterator[ast.AST]:
    for i, op in enumerate(node.ops):
        for other in _INSTEAD.get(type(op), ()):
            yield ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]],
                              node.comparators)  # fmt: skip
    if len(node.ops) > 1:
        yield ast.Compare(node.left, node.ops[:1], node.comparators[:1])
        yield ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:])


def _of_boolop(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield from _other_operators(node, "op")
    for i in range(len(node.values)):
        rest = node.values[:i] + node.values[i + 1 :]
        yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def _of_unaryop(node: ast.UnaryOp) -> Iterator[ast.AST]:
    yield node.operand


def _of_constant(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        for other in sorted({value + 1, value - 1, -value, 0, 2 * value} - {value}):
            yield (
                ast.Constant(other) if other >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-other))
            )
    elif isinstance(value, str):
        group: list[str] = next((words for words in _WORDS if value in words), [])
        for other in (*group, *_NAMES.get(value, ())):
            if other != value:
                yield ast.Constant(other)


def _of_ifexp(node: ast.IfExp) -> Iterator[ast.AST]:
    yield node.body
    yield node.orelse
    yield ast.IfExp(node.test, node.orelse, node.body)


def _of_if(node: ast.If) -> Iterator[ast.AST]:
    for test in (ast.UnaryOp(ast.Not(), node.test), ast.Constant(True), ast.Constant(False)):
        yield ast.If(test, node.body, node.orelse)


def _of_while(node: ast.While) -> Iterator[ast.AST]:
    yield ast.While(ast.Constant(False), node.body, node.orelse)


def _of_expr(node: ast.Expr) -> Iterator[ast.AST]:
    if not isinstance(node.value, ast.Constant):
        yield ast.Pass()


def _of_raise(node: ast.Raise) -> Iterator[ast.AST]:
    yield ast.Pass()


def _of_assign(node: ast.Assign) -> Iterator[ast.AST]:
    yield ast.Pass()


def _of_continue(node: ast.AST) -> Iterator[ast.AST]:
    yield from (other() for other in _INSTEAD[type(node)])
    yield ast.Pass()


_of_break = _of_continue


def _of_call(node: ast.Call) -> Iterator[ast.AST]:
    named = node.func.id if isinstance(node.func, ast.Name) else ""
    for i in range(len(node.args) - 1):
        arguments = list(node.args)
        arguments[i], arguments[i + 1] = arguments[i + 1], arguments[i]
        if named not in _SAYS:
            yield ast.Call(node.func, arguments, node.keywords)
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])
    if len(node.args) == 1 and not node.keywords:
        yield node.args[0]
    if isinstance(node.func, ast.Attribute) and len(node.args) < 2:
        yield node.func.value  # the method left out
    if named == "range":
        last = node.args[-1] if len(node.args) < 3 else node.args[1]
        at = len(node.args[:2]) - 1
        for change in (ast.BinOp(last, ast.Sub(), ast.Constant(1)),
                       ast.BinOp(last, ast.Add(), ast.Constant(1))):  # fmt: skip
            yield ast.Call(node.func, [*node.args[:at], change, *node.args[at + 1 :]], [])
    if named in ("int", "sum"):
        for kind in ("int8", "int16", "int32", "float32"):
            yield _call("__narrowed__", node, ast.Constant(kind))


def _of_name(node: ast.Name) -> Iterator[ast.AST]:
    if isinstance(node.ctx, ast.Load):
        for other in _NAMES.get(node.id, ()):
            yield ast.Name(other, ast.Load())
        if node.id == "object":
            for kind in ("int64", "int32", "int16", "int8", "float64", "float32"):
                yield ast.Constant(kind)


def _of_attribute(node: ast.Attribute) -> Iterator[ast.AST]:
    if isinstance(node.ctx, ast.Load):
        for other in _NAMES.get(node.attr, ()):
            yield ast.Attribute(node.value, other, ast.Load())


def _of_slice(node: ast.Slice) -> Iterator[ast.AST]:
    for field in ("lower", "upper", "step"):
        if getattr(node, field) is not None:
            other = copy.copy(node)
            setattr(other, field, None)
            yield other


def _of_subscript(node: ast.Subscript) -> Iterator[ast.AST]:
    if isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Tuple):
        items = node.slice.elts
        for i in range(len(items) - 1):
            turned = [*items[:i], items[i + 1], items[i], *items[i + 2 :]]
            yield ast.Subscript(node.value, ast.Tuple(turned, ast.Load()), ast.Load())


def _iterations(of: ast.expr) -> Iterator[ast.expr]:
    """The same things in another order, or without the first or the last."""
    yield _call("__reversed__", of)
    first, last = (
        ast.Slice(ast.Constant(1)),
        ast.Slice(None, ast.UnaryOp(ast.USub(), ast.Constant(1))),
    )
    for part in (first, last):
        yield ast.Subscript(_call("list", of), part, ast.Load())


def _of_for(node: ast.For) -> Iterator[ast.AST]:
    for other in _iterations(node.iter):
        yield ast.For(node.target, other, node.body, node.orelse)


def _of_comprehension(node: ast.comprehension) -> Iterator[ast.AST]:
    for other in _iterations(node.iter):
        yield ast.comprehension(node.target, other, node.ifs, node.is_async)
    for i in range(len(node.ifs)):
        yield ast.comprehension(node.target, node.iter, node.ifs[:i] + node.ifs[i + 1 :], 0)


# --- units and their changes ---------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """A living function and its syntax tree."""

    module: str
    name: str
    function: FunctionType
    tree: ast.FunctionDef | ast.Lambda


@dataclass(frozen=True)
class Change:
    """One change of a unit.

    Args:
        unit: what is changed.
        line: of the node that is replaced.
        before, after: its text, and what stands there instead.
        span: the lines of the statement around it, of its head where it has a body.
        code: of the changed function.
    """

    unit: Unit
    line: int
    before: str
    after: str
    span: range
    code: CodeType

    @property
    def id(self) -> str:
        """module:line function: before -> after."""
        where = f"{self.unit.module.removeprefix('refqnn.')}:{self.line} {self.unit.name}"
        return f"{where}: {self.before} -> {self.after}"

    def reached_by(self, lines: Lines) -> bool:
        """Did something run the statement?"""
        file = self.unit.function.__code__.co_filename
        return any((file, line) in lines for line in self.span)


def units(modules: Iterable[str]) -> list[Unit]:
    """The functions, methods and lambdas of modules that no other function makes."""
    files = {name: importlib.import_module(name).__file__ for name in modules}
    living: dict[tuple[str, str, int], list[FunctionType]] = {}
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename in files.values():
            code = thing.__code__
            living.setdefault((code.co_filename, code.co_name, code.co_firstlineno), []).append(
                thing
            )
    found = []
    for module, file in files.items():
        for tree, name, line in _definitions(ast.parse(Path(str(file)).read_text())):
            functions = living.get((str(file), tree.name if name != "<lambda>" else name, line), [])
            if len(functions) == 1:  # else two lambdas of one line, or nobody holds it
                found.append(Unit(module, name, functions[0], tree))
    return found


def _definitions(tree: ast.AST, inside: str = "") -> Iterator[tuple[Any, str, int]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            yield node, inside + node.name, first
            yield from _definitions(node.args, inside)
        elif isinstance(node, ast.Lambda):
            yield node, "<lambda>", node.lineno
        else:
            yield from _definitions(
                node, f"{node.name}." if isinstance(node, ast.ClassDef) else inside
            )


def changes(unit: Unit) -> Iterator[Change]:
    """Every change of a unit that compiles to other code."""
    tree = copy.deepcopy(unit.tree)
    if isinstance(tree, ast.FunctionDef):
        tree.decorator_list = []
        _strip(tree)
    texts = set()
    for parent, field, index, node, span in list(_places(tree)):
        for other in _instead(node):
            _put(parent, field, index, other)
            try:
                code = _compiled(tree, unit)
            except (SyntaxError, ValueError, TypeError):
                code = None
            finally:
                _put(parent, field, index, node)
            before, after = _text(node), _text(other)
            fresh = code is not None and (node.lineno, node.col_offset, before, after) not in texts
            if code is not None and fresh and before != after:
                texts.add((node.lineno, node.col_offset, before, after))
                yield Change(unit, node.lineno, before, after, span, code)


def _strip(tree: ast.FunctionDef) -> None:
    """Without annotations and defaults, which are none of the code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    arguments = tree.args
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [v and ast.Constant(None) for v in arguments.kw_defaults]


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, Any, range]]:
    """Every node that may be replaced: its parent, where it is there, and its statement's lines."""
    body = tree.body if isinstance(tree, ast.FunctionDef) else [tree.body]  # type: ignore[attr-defined]
    spans = [(tree, "body", i if isinstance(tree, ast.FunctionDef) else None, n)
             for i, n in enumerate(body)]  # fmt: skip
    for parent, field, index, node in spans:
        yield from _below(parent, field, index, node, range(node.lineno, node.lineno + 1))


def _below(
    parent: ast.AST, field: str, index: int | None, node: ast.AST, span: range
) -> Iterator[tuple[ast.AST, str, int | None, Any, range]]:
    if isinstance(node, (ast.JoinedStr, ast.arguments, ast.AnnAssign)) and not (
        isinstance(node, ast.AnnAssign) and node.value
    ):
        return
    if isinstance(node, ast.stmt):
        below = getattr(node, "body", None)
        end = below[0].lineno - 1 if below else node.end_lineno or node.lineno
        span = range(node.lineno, max(end, node.lineno) + 1)
    if hasattr(node, "lineno") or isinstance(node, ast.comprehension):
        if isinstance(node, ast.comprehension):
            node.lineno, node.col_offset = node.iter.lineno, node.iter.col_offset  # type: ignore[attr-defined]
        yield parent, field, index, node, span
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SAYS:
        for i, argument in enumerate(node.args[:1]):
            yield from _below(node, "args", i, argument, span)
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "targets", "target"):
            continue
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not isinstance(
                child, (ast.expr_context, ast.operator)
            ):
                yield from _below(node, name, i, child, span)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.comprehension):
        return ast.unparse(node).strip()
    text = " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
    return text if len(text) < 100 else text[:97] + "..."


def _compiled(tree: ast.FunctionDef | ast.Lambda, unit: Unit) -> CodeType:
    """The code of the (changed) function."""
    whole = ast.Module([tree if isinstance(tree, ast.FunctionDef) else ast.Expr(tree)], [])
    whole = ast.fix_missing_locations(copy.deepcopy(whole))
    flags = __future__.annotations.compiler_flag
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nonsense is meant
        outer = compile(whole, unit.function.__code__.co_filename, "exec", flags, True)
    code: CodeType = next(c for c in outer.co_consts if isinstance(c, CodeType))
    if code.co_freevars != unit.function.__code__.co_freevars:
        raise ValueError("other free variables")
    return code


# --- running -------------------------------------------------------------------------------------


class Slow(BaseException):
    """The changed function takes too long; no `except Exception` stops it."""


def _late(_: int, __: FrameType | None) -> None:
    raise Slow


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raises: Slow after so many seconds of the processor."""
    before = signal.signal(signal.SIGVTALRM, _late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def changed(change: Change) -> Iterator[None]:
    """The unit with its change."""
    function = change.unit.function
    right, names = function.__code__, function.__globals__
    names |= {"__narrowed__": narrowed, "__reversed__": lambda v: list(v)[::-1]}
    function.__code__ = change.code
    try:
        yield
    finally:
        function.__code__ = right


def lines_of(calls: Iterable[Callable[[], object]], files: Sequence[str]) -> Lines:
    """The lines of some files that calls run."""
    lines: Lines = set()
    wanted = set(files)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in wanted:
            return None
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        for call in calls:
            call()
    finally:
        sys.settrace(old)
    return lines
