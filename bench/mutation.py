"""Mutation testing of the core: which changes of its source does no test notice?

cosmic-ray makes the mutants (every operator, comparison, number, branch, decorator, ...).  Those
that cannot change behaviour are left out by rule: in annotations, under TYPE_CHECKING, in
`__all__`, in the text of an error, a cache taken away.  A mutant is run by the tests that reach its
line, fastest first, up to SECONDS of them, and is killed by the first that fails.

mutation.json holds per module how many mutants there are and how many of the sample were run and
killed, and each survivor: with the argument why it is equivalent, or with the test that was written
because of it.  Both are kept when the sample is run again.

    python bench/mutation.py                     # 700 mutants at random: an hour on one core
    python bench/mutation.py --all               # each of them: a day
    python bench/mutation.py --again             # the survivors alone, by more of today's tests
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from inspect import CO_OPTIMIZED
from multiprocessing import get_context
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from common import FOLDER, interval, write_results

import refqnn

ROOT = FOLDER.parent
RESULTS = FOLDER / "mutation.json"
CACHE = ROOT / ".benchmarks" / "mutation.json"
FOLDERS = ("refqnn", "refqnn/ops", "refqnn/accumulator")


def _python(paths: Iterable[str], pattern: str = "*.py") -> list[str]:
    """Files, and those of folders."""
    there = [sorted((ROOT / p).glob(pattern)) if (ROOT / p).is_dir() else [ROOT / p] for p in paths]
    return [path.relative_to(ROOT).as_posix() for some in there for path in some]


# Every other module of refqnn/, ops/ and accumulator/ is mutated.
LEFT_OUT = {
    "refqnn/__main__.py": "starts the command line",
    "refqnn/benches.py": "an old name",
    "refqnn/cli.py": "an old name",
    "refqnn/datasets.py": "data, of no proof",
    "refqnn/demo.py": "prints",
    "refqnn/display.py": "prints",
    "refqnn/dumps.py": "reads what others wrote",
    "refqnn/errors.py": "classes and texts",
    "refqnn/extras.py": "names of packages",
    "refqnn/foreign.py": "tells files of others apart",
    "refqnn/inspect.py": "prints",
    "refqnn/limits.py": "sizes that no result depends on",
    "refqnn/plotting.py": "draws",
    "refqnn/requantize.py": "an old name",
    "refqnn/testing.py": "what tests draw",
    **{f"{folder}/__init__.py": "names" for folder in FOLDERS},
}
MODULES = [
    *(module for module in _python(FOLDERS) if module not in LEFT_OUT),
    "refqnn/brevitas/lower.py",
]

TESTS = [
    *(f"tests/test_{name}.py" for name in ("arithmetic", "rounding", "formats", "quantizers")),
    *(f"tests/test_{name}.py" for name in ("doors", "emulate", "exact", "network", "own_kinds")),
    *(f"tests/test_{name}.py" for name in ("plan", "pruning", "requantize", "simplify", "storage")),
    *(f"tests/test_{name}.py" for name in ("staged_accumulators", "staged_budgets")),
    *("tests/ops", "tests/accumulator", "tests/adversary", "tests/onnx_files/test_onnx_ties.py"),
    *(f"tests/brevitas/test_{name}.py" for name in ("from_brevitas", "functions", "movement")),
    *MODULES,  # their doctests
]
SECONDS, AGAIN, EXAMPLES = 10.0, 40.0, 10

# Of these signs no operator of cosmic-ray makes anything.
_PLAIN = {*"()[]{},.:=;\n", "\r\n"}

# Taking one of these away changes how often something is computed, or nothing at all.
ANNOUNCING = {"cache", "lru_cache", "overload", "abstractmethod", "override"}


# --- mutants ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    module: str
    operator: str
    occurrence: int
    place: tuple[int, int]  # line, from 1, and column

    @property
    def source(self) -> str:
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        return mutate_code(text_of(self.module), get_operator(self.operator)(), self.occurrence)

    @property
    def change(self) -> list[str]:
        """The lines that differ, those of the module first."""
        old, new = (text.splitlines() for text in (text_of(self.module), self.source))
        while old and new and old[-1] == new[-1]:
            del old[-1], new[-1]
        same = next((i for i, pair in enumerate(zip(old, new)) if pair[0] != pair[1]), len(new))
        return [*(f"-{line}" for line in old[same:]), *(f"+{line}" for line in new[same:])]


def text_of(module: str) -> str:
    return (ROOT / module).read_text(encoding="utf-8")


def mutants_of(module: str) -> tuple[list[Mutant], int]:
    """Those of a module that can change what it does, and how many cannot."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = [
        n for n in ast_nodes(get_ast(text_of(module))) if getattr(n, "value", "") not in _PLAIN
    ]
    spans = list(idle(ast.parse(text_of(module))))
    found, left_out = [], 0
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():
            continue  # renames a variable that is named to it
        places = (p for node in nodes for p, _ in kind().mutation_positions(node))
        for occurrence, place in enumerate(places):
            if any(start <= place < end for start, end in spans):
                left_out += 1
            else:
                found.append(Mutant(module, name, occurrence, place))
    return found, left_out


def idle(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where no change of the source changes what it does: start and end as (line, column)."""
    for node in ast.walk(tree):
        for part in _idle_parts(node):
            # The "@" of a decorator stands before it.
            start = (part.lineno, max(0, part.col_offset - 1))
            yield start, (part.end_lineno or 0, part.end_col_offset or 0)


def _idle_parts(node: ast.AST) -> list[Any]:
    match node:
        case ast.arg(annotation=ast.expr() as part):
            return [part]
        case ast.FunctionDef():
            words = [d for d in node.decorator_list if _named(d) in ANNOUNCING]
            return [*words, *filter(None, [node.returns])]
        case ast.AnnAssign():
            alias = _named(node.annotation) == "TypeAlias"
            return [node] if alias else [node.annotation]
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return node.body
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return [node]
        case ast.Raise(exc=ast.expr() as error):
            return [part for part in ast.walk(error) if isinstance(part, ast.JoinedStr)]
    return []


def _named(node: ast.expr) -> str:
    name = node.func if isinstance(node, ast.Call) else node
    return name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")


# --- tests --------------------------------------------------------------------------------------


class Run:
    """pytest, up to the point where tests run; from there each mutant has a process of its own.

    There the functions that it changes get other code.  What it changes outside of functions is
    seen only by another pytest, which imports the changed module.
    """

    def __init__(self, work: Callable[[Run], None]) -> None:
        self._work = work
        self.items: dict[str, pytest.Item] = {}
        self.seconds: dict[str, float] = {}
        self._lines: dict[str, dict[int, list[str]]] = {}
        self._functions: dict[tuple[str, CodeType], list[FunctionType]] = {}
        self._failed = ""

    # --- hooks of pytest

    def pytest_sessionstart(self) -> None:
        """Hypothesis tries the same few examples each time and shrinks none."""
        from hypothesis import HealthCheck, Phase, settings

        settings.register_profile(
            "mutation",
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for item in session.items:
            self.items[item.nodeid] = item
            _fewer_examples(item)
        for function in (f for f in gc.get_objects() if type(f) is FunctionType):
            key = function.__code__.co_filename, function.__code__
            self._functions.setdefault(key, []).append(function)
        self._work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed = report.nodeid

    # --- what tests reach

    def look(self) -> None:
        """Run each test once, and note its seconds and the lines that it reaches."""
        files = sorted({item.nodeid.split("::")[0] for item in self.items.values()})
        stored = json.loads(CACHE.read_text()) if CACHE.exists() else {}
        sources = "".join(map(text_of, MODULES))
        for file in files:
            key = hashlib.sha256((sources + text_of(file)).encode()).hexdigest()
            if stored.get(file, [None])[0] != key:
                print(f"  what {file} reaches", flush=True)
                failed, *found = apart(self._reached, file) or ("in a process of its own",)
                if failed:
                    pytest.exit(f"{file} fails as it stands: {failed}", 1)
                stored[file] = [key, *found]
                CACHE.parent.mkdir(exist_ok=True)
                CACHE.write_text(json.dumps(stored))
            seconds, lines = stored[file][1:]
            self.seconds |= seconds
            for module, of_module in lines.items():
                for line, tests in of_module.items():
                    known = self._lines.setdefault(module, {})
                    known.setdefault(int(line), []).extend(tests)

    def _reached(self, file: str) -> Any:
        from coverage import Coverage

        names = {str(ROOT / module): module for module in MODULES}
        coverage = Coverage(data_file=None, config_file=False, include=list(names))
        coverage.start()
        seconds = {}
        for test in (test for test in self.items if test.split("::")[0] == file):
            coverage.switch_context(test)
            start = time.process_time()
            self._run([test])
            seconds[test] = time.process_time() - start
        coverage.stop()
        data, lines = coverage.get_data(), {}
        for path in set(data.measured_files()) & set(names):
            lines[names[path]] = data.contexts_by_lineno(path)
        return self._failed, seconds, lines

    def reaching(self, mutant: Mutant, seconds: float) -> list[str]:
        """Fastest first; every test of the module where no test runs the line itself."""
        lines = self._lines.get(mutant.module, {})
        tests = lines.get(mutant.place[0]) or {t for some in lines.values() for t in some}
        chosen, left = [], seconds
        for test in sorted(tests, key=lambda test: self.seconds[test]):
            left -= self.seconds[test]
            if left < 0 and chosen:
                break
            chosen.append(test)
        return chosen

    # --- mutants

    def kill(self, mutant: Mutant, seconds: float = SECONDS) -> str:
        """What killed it, or nothing."""
        path = str(ROOT / mutant.module)
        old = compile(text_of(mutant.module), path, "exec", dont_inherit=True)
        try:
            new = compile(mutant.source, path, "exec", dont_inherit=True)
        except SyntaxError:
            return "syntax"
        tests = self.reaching(mutant, seconds)
        killer = apart(self._killer, mutant, old, new, tests, wait=60 + 40 * seconds)
        return "time" if killer is None else str(killer)

    def _killer(self, mutant: Mutant, old: CodeType, new: CodeType, tests: Sequence[str]) -> str:
        changed = [pair for pair in _pairs(old, new) if _own(pair[0]) != _own(pair[1])]
        found = [
            (function, after)
            for before, after in changed
            for function in self._functions.get((before.co_filename, before), ())
            if len(before.co_freevars) == len(after.co_freevars)
        ]
        if found and all(before.co_flags & CO_OPTIMIZED for before, _ in changed):
            for function, after in found:
                function.__code__ = after
            self._run(tests, limited=True)
            return self._failed
        forget("refqnn", "tests")
        sys.meta_path.insert(0, Loader(mutant, new))
        again = Run(lambda run: run._run(tests, limited=True))
        again.seconds = self.seconds
        _limit(60)
        done = started(list(dict.fromkeys(test.split("::")[0] for test in tests)), again)
        return again._failed or ("import" if done else "")

    def _run(self, tests: Sequence[str], *, limited: bool = False) -> None:
        """These tests, until one fails; perhaps none of them longer than a mutant may make it."""
        for test in tests:
            if not self._failed and (item := self.items.get(test)) is not None:
                if limited:
                    _limit(5 + 5 * self.seconds[test])
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


def started(files: Sequence[str], run: Run) -> int:
    """The exit code of pytest; where it rewrites assertions, it imports a module past `Loader`."""
    options = ["-qs", "--assert=plain", "-p", "no:cacheprovider", "-W", "ignore"]
    return int(pytest.main([*options, *files], [run]))


def forget(*folders: str) -> None:
    """Modules of these folders are imported anew, and what they took from each other with them."""
    paths = tuple(f"{ROOT / folder}{os.sep}" for folder in folders)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(paths):
            del sys.modules[name]


def _limit(seconds: float) -> None:
    """From now on, of the processor (a busy machine is no failure); what needs more is ended."""
    most = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _fewer_examples(item: pytest.Item) -> None:
    from hypothesis import settings

    test = getattr(item, "obj", None)
    test = getattr(test, "__func__", test)
    chosen = getattr(test, "_hypothesis_internal_use_settings", None)
    if chosen is not None and chosen.max_examples > EXAMPLES:
        test._hypothesis_internal_use_settings = settings(chosen, max_examples=EXAMPLES)


def _inner(code: CodeType) -> list[CodeType]:
    return [value for value in code.co_consts if isinstance(value, CodeType)]


def _pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """All code of two modules, what stands for each other side by side."""
    yield old, new
    for before, after in zip(_inner(old), _inner(new)):
        yield from _pairs(before, after)


def _own(code: CodeType) -> CodeType:
    """Without the code of what is defined inside; a function's holds that of its own functions."""
    if code.co_flags & CO_OPTIMIZED:
        return code
    return code.replace(co_consts=tuple(v for v in code.co_consts if not isinstance(v, CodeType)))


class Loader(SourceFileLoader):
    """Imports one module from other source than its file has; no file is changed."""

    def __init__(self, mutant: Mutant, code: CodeType) -> None:
        self.code = code
        super().__init__(mutant.module[:-3].replace("/", "."), str(ROOT / mutant.module))

    def get_code(self, fullname: str) -> CodeType:
        return self.code

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None


def apart(function: Callable[..., Any], *arguments: Any, wait: float = 1800) -> Any:
    """What a function returns in a silent process of its own; None where that dies or hangs."""

    def work() -> None:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        there.send(function(*arguments))

    fork = get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=work)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(wait) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


# --- results ------------------------------------------------------------------------------------


def summary(modules: dict[str, Any]) -> dict[str, Any]:
    """Sums over the modules; the interval is that of the share killed of those not equivalent."""
    total: Counter[str] = Counter()
    for found in modules.values():
        total.update({key: found[key] for key in ("mutants", "left_out", "run", "killed")})
        of_kind = Counter("equivalent" if s["equivalent"] else "real" for s in found["survivors"])
        total["equivalent"] += of_kind["equivalent"]
        total["mended"] += sum(bool(s["killed_by"]) for s in found["survivors"])
    counted = total["run"] - total["equivalent"]
    ends = interval(total["killed"], counted) if counted else (0.0, 1.0)
    return {**total, "equivalent": total["equivalent"], "interval": ends}


def survivor(mutant: Mutant, before: dict[Any, Any]) -> dict[str, Any]:
    key = (mutant.module, *mutant.change)
    told = {"equivalent": None, "killed_by": None}
    told |= {name: before[key][name] for name in told if key in before}
    of_mutant = {"operator": mutant.operator, "occurrence": mutant.occurrence}
    return {"line": mutant.place[0], "change": mutant.change, **told, **of_mutant}


def sampled(run: Run, chosen: Sequence[Mutant], modules: dict[str, Any], seed: int) -> None:
    before = {(m, *s["change"]): s for m, s in _survivors()}
    run.look()
    for i, mutant in enumerate(chosen, 1):
        found = modules[mutant.module]
        killer = run.kill(mutant)
        if killer == "syntax":
            continue
        found["run"] += 1
        found["killed"] += bool(killer)
        if not killer:
            found["survivors"].append(survivor(mutant, before))
            print(f"{mutant.module}:{mutant.place[0]}", *mutant.change, sep="\n  ", flush=True)
        if i % 20 == 0 or i == len(chosen):
            print(f"{i}: {summary(modules)}", flush=True)
            write(modules, seed)


def write(modules: dict[str, Any], seed: int) -> None:
    what = (__doc__ or "").splitlines()[0]
    content = {"what": what, "seed": seed, **summary(modules), "modules": modules}
    write_results("mutation", content)


def _survivors() -> list[tuple[str, dict[str, Any]]]:
    modules = json.loads(RESULTS.read_text())["modules"] if RESULTS.exists() else {}
    return [(name, each) for name, found in modules.items() for each in found["survivors"]]


def found_again(module: str, each: dict[str, Any]) -> Mutant | None:
    """The mutant that makes a survivor's change today; only those on its line are made."""
    lines = text_of(module).splitlines()
    near = (
        mutant
        for mutant in mutants_of(module)[0]
        if mutant.operator == each["operator"]
        and "-" + lines[mutant.place[0] - 1] in each["change"]
    )
    return next((mutant for mutant in near if mutant.change == each["change"]), None)


def again(run: Run) -> None:
    """Runs the survivors that are not equivalent, found anew by their change, by more tests."""
    stored = json.loads(RESULTS.read_text())
    run.look()
    for module, found in stored["modules"].items():
        for each in found["survivors"]:
            if each["equivalent"]:
                continue
            mutant = found_again(module, each)
            each["killed_by"] = (mutant and run.kill(mutant, AGAIN)) or None
            print(f"{module}:{each['line']}: {each['killed_by'] or 'lives'}", flush=True)
    write(stored["modules"], stored["seed"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="MODULE")
    parser.add_argument("--sample", type=int, default=700, help="so many mutants, at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--again", action="store_true", help="the survivors of the last sample")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.modules) - set(MODULES))
    if unknown:
        parser.error(f"got {unknown}, expected modules out of {MODULES}")
    os.chdir(ROOT)
    if Path(refqnn.__file__).parents[1] != ROOT:
        parser.error(
            f"{refqnn.__file__} is mutated nowhere: run it where this checkout is installed"
        )
    if arguments.again:
        sys.exit(started(TESTS, Run(again)))
    chance, modules = random.Random(arguments.seed), {}
    mutants: list[tuple[float, Mutant]] = []
    for module in arguments.modules:
        some, left_out = mutants_of(module)
        chance.shuffle(some)
        start = chance.random()
        # Stratified, wherever the run is stopped: of each module the same share.
        mutants += [((i + start) / len(some), mutant) for i, mutant in enumerate(some)]
        counts = {"mutants": len(some), "left_out": left_out, "run": 0, "killed": 0}
        modules[module] = {**counts, "survivors": []}
    ordered = [mutant for _, mutant in sorted(mutants, key=lambda pair: pair[0])]
    chosen = ordered if arguments.all else ordered[: arguments.sample]
    sys.exit(started(TESTS, Run(lambda run: sampled(run, chosen, modules, arguments.seed))))


if __name__ == "__main__":
    main()
