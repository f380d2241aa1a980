"""How many wrong implementations do the vectors tell from right ones?

Mutants are right kernels with one step replaced (refqnn/conformance/mutants); one is killed when
some vector gets another answer from it.  Counted by operation and by flag.

    ours        the vectors of vectors/, each asked of the mutants of its own operation
    networks    mutants of whole networks (wiring, widths between nodes, float doors), counted
                apart: only whole-network vectors ask them
    onnx        the integer node vectors of the onnx package, for the operations that they cover

Ours were chosen by search against these very mutants, so 100 % is what the choice aimed at and no
estimate for mutants that nobody thought of.  `same_choices` counts only the mutants that some
vector of ours kills with what ONNX itself fixes: rounding half to even, float32 doors, zero point
last.

`--mechanical` asks mutants that nobody chose instead, and writes them beside the others:

    mechanical  every operator, comparison, constant, type, slice and loop of the kernels' source,
                changed one at a time; each change counts for every operation that runs it
    foreign     families of mistakes of ports to C, made with every argument and result

Those that the vectors do not tell are asked random questions: `told` by one of them, or `alike`.

    python bench/vector_strength.py               # 15 seconds on one core
    python bench/vector_strength.py --mechanical  # half an hour on one core
    python bench/vector_strength.py --quick       # operations of the onnx package, nothing written
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import FOLDER, write_results
from rich.progress import track

from refqnn.conformance import OPERATIONS, load_vectors
from refqnn.conformance.making.onnx_wheel import killed_by_onnx, onnx_vectors
from refqnn.conformance.making.writing import kills
from refqnn.conformance.mutants import MUTANTS
from refqnn.conformance.notes import NOTES

NETWORKS = ("network", "predict")
ONNX_CHOICES = {"half_even"}  # profiles of vectors that an ONNX operator could be asked


def killers(operations: Iterable[str]) -> dict[str, list[Any]]:
    """Mutant -> the vectors that kill it."""
    wanted = set(operations)
    found: dict[str, list[Any]] = {}
    vectors = [v for v in load_vectors() if v.operation in wanted]
    for vector in track(vectors, description="vectors"):
        for mutant in kills(vector):
            found.setdefault(mutant, []).append(vector)
    return found


def counted(found: dict[str, list[Any]], attribute: str, names: Iterable[str]) -> dict[str, Any]:
    """{name: {killed, mutants, killed_twice}} over the mutants with this operation or flag."""
    table = {}
    for name in names:
        mutants = [m for m in MUTANTS if getattr(m, attribute) == name and not m.equivalent]
        killed = [len(found.get(m.id, ())) for m in mutants]
        table[name] = {
            "killed": sum(n > 0 for n in killed),
            "mutants": len(mutants),
            "killed_twice": sum(n > 1 for n in killed),
        }
    return table


def compared(found: dict[str, list[Any]]) -> dict[str, Any]:
    """The node vectors of the onnx package beside ours, by operation."""
    vectors = onnx_vectors()
    killed, asked = killed_by_onnx(vectors)
    theirs = {m.id for m in killed}
    same = {
        m.id for m in asked if any(ONNX_CHOICES.issuperset(v.profiles) for v in found.get(m.id, ()))
    }

    def row(operation: str | None) -> dict[str, int]:
        ids = {m.id for m in asked if operation in (None, m.operation)}
        return {
            "mutants": len(ids),
            "ours": len(ids & set(found)),
            "onnx": len(ids & theirs),
            "same_choices": len(ids & same),
            "onnx_of_same_choices": len(ids & same & theirs),
        }

    names = sorted({m.operation for m in asked}, key=list(OPERATIONS).index)
    return {
        "vectors": [v.name for v in vectors],
        "operations": {name: row(name) for name in names},
        "total": row(None),
        "survivors": sorted(m.id for m in asked if m.id not in theirs),
    }


def total(table: dict[str, Any], names: Iterable[str]) -> dict[str, int]:
    rows = [table[name] for name in names]
    return {key: sum(row[key] for row in rows) for key in ("killed", "mutants", "killed_twice")}


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of mutants killed; by operation with the onnx package beside, and by flag."""
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, (left, right) = figure(11, 8, columns=2)
    for axes, names, rows, title in (
        (left, list(results["operations"]), results["operations"], "by operation"),
        (right, list(results["flags"]), results["flags"], "by kind of mistake (flag)"),
    ):
        places = range(len(names))
        killed = [rows[name]["killed"] for name in names]
        mutants = [rows[name]["mutants"] for name in names]
        axes.barh(places, mutants, height=0.8, color="none", edgecolor="#999999", label="mutants")
        axes.barh(places, killed, height=0.8, color=COLOURS[0], label="killed by refqnn's vectors")
        for place, k, n in zip(places, killed, mutants):
            axes.text(n + 0.6, place, f"{k}" if k == n else f"{k} of {n}", va="center", fontsize=8)
        axes.set_yticks(places, names, fontsize=8)
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.set_xlim(0, max(mutants) * 1.12)
        axes.set_xlabel("wrong implementations (number)")
        axes.set_title(f"killed, {title}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    theirs = results["onnx"]["operations"]
    names = list(results["operations"])
    count = len(results["onnx"]["vectors"])
    left.barh(
        [names.index(name) for name in theirs],
        [row["onnx"] for row in theirs.values()],
        height=0.35,
        color=COLOURS[1],
        label=f"killed by the {count} integer vectors of onnx",
    )
    legend_below(left)
    whole = results["total"]
    fig.suptitle(
        f"{whole['killed']} of {whole['mutants']} wrong implementations told from right ones "
        f"by {results['vectors']} vectors"
    )
    save_figure(fig, path)


def mechanical(operations: Iterable[str], folder: Path) -> None:
    """Ask the mutants that nobody chose; what is counted is written after each operation."""
    import vector_search

    vector_search.limit_memory()
    path = folder / "vector_strength.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    old.pop("machine", None)
    for kind in vector_search.KINDS:
        old.setdefault(kind, {})
    for operation in operations:
        for kind in vector_search.KINDS:
            found = vector_search.surveyed(kind, operation)
            old[kind][operation] = found
            told = found["killed"] + len(found["told"]) + found["unargued"]
            print(f"{operation}: {kind} {found['killed']} of {told} that differ", flush=True)
        write_results("vector_strength", old, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four operations, nothing written")
    parser.add_argument("--mechanical", action="store_true", help="mutants that nobody chose")
    parser.add_argument("operations", nargs="*", default=list(OPERATIONS), metavar="OPERATION",
                        help="of --mechanical; all by default")  # fmt: skip
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for results")
    arguments = parser.parse_args()
    start = time.perf_counter()
    if arguments.quick:
        onnx = compared(killers(("quantize", "linear", "conv2d", "requantize_scale")))
        print(f"{len(onnx['vectors'])} vectors of onnx: {onnx['total']}")
        return
    if arguments.mechanical:
        mechanical(arguments.operations, arguments.output)
        return
    found = killers(OPERATIONS)
    operations = counted(found, "operation", OPERATIONS)
    single = [name for name in OPERATIONS if name not in NETWORKS]
    path = arguments.output / "vector_strength.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    results = {
        "what": __doc__.splitlines()[0],
        "vectors": len(load_vectors()),
        "total": total(operations, OPERATIONS),
        "single_operations": total(operations, single),
        "whole_networks": total(operations, NETWORKS),
        "equivalent": sorted(m.id for m in MUTANTS if m.equivalent),
        "operations": operations,
        "flags": counted(found, "flag", NOTES),
        "onnx": compared(found),
        "seconds": round(time.perf_counter() - start, 1),
        **{kind: old[kind] for kind in ("mechanical", "foreign") if kind in old},
    }
    path = write_results("vector_strength", results, arguments.output)
    plot(results, path.with_suffix(".png"))
    print(f"total {results['total']}\nwhole networks {results['whole_networks']}")
    print(f"{len(results['onnx']['vectors'])} vectors of onnx: {results['onnx']['total']}")
    print(f"wrote {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
