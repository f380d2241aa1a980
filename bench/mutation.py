"""Mutation testing of the core: which changes of its source do the tests beside it not notice?

Each module of MODULES is mutated by cosmic-ray (every operator, comparison, number, branch, ...),
in a copy of the checkout, and its tests run against each mutant; one that no test fails survives.
Writes mutation.json: per module how many mutants, how many killed, and every survivor by its place.

    python bench/mutation.py refqnn/rounding.py   # minutes a module, hours for all of them
    python bench/mutation.py --sample 40          # so many mutants of each module, at random
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import FOLDER, machine

ROOT = FOLDER.parent
RESULTS = FOLDER / "mutation.json"

# The tests nearest to each module: what takes seconds, so that thousands of mutants can be run.
MODULES = {
    "refqnn/arithmetic.py": "tests/test_arithmetic.py tests/ops",
    "refqnn/rounding.py": "tests/test_rounding.py",
    "refqnn/formats.py": "tests/test_formats.py",
    "refqnn/quantizers.py": "tests/test_quantizers.py",
    "refqnn/emulate.py": "tests/test_emulate.py",
    "refqnn/graph.py": "tests/test_network.py tests/test_storage.py",
    "refqnn/network.py": "tests/test_network.py",
    "refqnn/plan.py": "tests/test_plan.py",
    "refqnn/storage.py": "tests/test_storage.py",
    "refqnn/simplify.py": "tests/test_simplify.py",
    "refqnn/pruning.py": "tests/test_pruning.py",
    **{
        f"refqnn/ops/{name}.py": "tests/ops tests/test_exact.py"
        for name in (
            *("add", "base", "concat", "conv", "conv_transpose", "gather", "linear", "lookup"),
            *("movement", "pool", "reshape", "structure", "weighted", "windows"),
        )
    },
    "refqnn/ops/requantize.py": "tests/test_requantize.py",
    "refqnn/accumulator/widths.py": "tests/accumulator/test_widths.py",
    "refqnn/accumulator/domain.py": "tests/accumulator/test_certificates.py",
    "refqnn/accumulator/rungs.py": "tests/accumulator/test_certificates.py",
    "refqnn/accumulator/cone.py": "tests/accumulator/test_overflow_search.py",
    "refqnn/accumulator/search.py": "tests/accumulator/test_overflow_search.py",
    "refqnn/accumulator/overflow.py": "tests/accumulator/test_overflow_search.py",
    "refqnn/accumulator/certificate.py": "tests/accumulator/test_certificates.py",
    "refqnn/accumulator/recheck.py": "tests/accumulator/test_recheck.py",
    "refqnn/accumulator/readings.py": "tests/accumulator/test_recheck.py",
}

CONFIG = """
[cosmic-ray]
module-path = {module!r}
timeout = {timeout}
test-command = {command!r}
[cosmic-ray.distributor]
name = "local"
"""


def mutated(module: str, folder: Path, sample: int | None, timeout: float) -> dict[str, Any]:
    """Run the mutants of one module in a copy of the checkout."""
    tests = MODULES[module]
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {tests}"
    config, session = folder / "mutation.toml", folder / "mutation.sqlite"
    config.write_text(CONFIG.format(module=module, timeout=timeout, command=command))
    session.unlink(missing_ok=True)
    _ray(folder, "init", config, session)
    if sample is not None:
        _keep(session, sample)
    _ray(folder, "exec", config, session)
    dumped = _ray(folder, "dump", session)
    pairs = [json.loads(line) for line in dumped.splitlines()]
    survivors, counts = [], {"killed": 0, "survived": 0, "incompetent": 0}
    for item, result in pairs:
        if result is None:
            continue
        outcome = str(result.get("test_outcome") or "incompetent").lower()
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome == "survived":
            (mutation,) = item["mutations"]
            line = mutation["start_pos"][0]
            changed = [row for row in result["diff"].splitlines() if row[:1] in ("+", "-")]
            diff = [row for row in changed if not row.startswith(("+++", "---"))]
            survivors.append({"line": line, "mutation": diff})
    return {"tests": tests, **counts, "survivors": survivors}


def _ray(folder: Path, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", "cosmic_ray.cli", *map(str, arguments)]
    copy = {**os.environ, "PYTHONPATH": str(folder)}  # and no other refqnn
    done = subprocess.run(
        command, cwd=folder, env=copy, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"cosmic-ray {arguments[0]}: {done.stderr or done.stdout}")
    return done.stdout


def _keep(session: Path, sample: int) -> None:
    """Only so many mutants, drawn at random."""
    with sqlite3.connect(session) as database:
        jobs = sorted(row[0] for row in database.execute("select job_id from work_items"))
        dropped = [(job,) for job in random.Random(0).sample(jobs, max(0, len(jobs) - sample))]
        database.executemany("delete from mutation_specs where job_id = ?", dropped)
        database.executemany("delete from work_items where job_id = ?", dropped)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(MODULES), metavar="MODULE")
    parser.add_argument("--sample", type=int, help="mutants of each module; all by default")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one mutant")
    arguments = parser.parse_args(argv)
    unknown = [module for module in arguments.modules if module not in MODULES]
    if unknown:
        parser.error(f"got {unknown}, expected modules out of {list(MODULES)}")
    results = json.loads(RESULTS.read_text())["modules"] if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "checkout")
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, folder, ignore=ignored)
        for module in arguments.modules:
            found = mutated(module, folder, arguments.sample, arguments.timeout)
            found["sample"] = arguments.sample
            results[module] = found
            print(f"{module}: {found['killed']} of {found['killed'] + found['survived']} killed")
            for survivor in found["survivors"]:
                print(f"  line {survivor['line']}:", *survivor["mutation"], sep="\n    ")
            content = {"machine": machine(), "modules": results}
            RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
