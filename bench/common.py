"""What every bench shares: where results go, what machine made them, the trained networks.

A bench is one module of this folder.  `python bench/NAME.py` or `refqnn bench NAME` runs it; it
says how long it takes, shows progress, and writes NAME.json and NAME.png beside itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.container import write_atomically

FOLDER = Path(__file__).parent
PACKAGES = (
    "refqnn",
    "numpy",
    "torch",
    "brevitas",
    "concrete-python",
    "scikit-learn",
    "onnxruntime",
    "qonnx",
)

SHORTEST = 0.004  # seconds a timing lasts at least, by repeating the call

Call = Callable[[], Any]


class Session:
    """One run of a bench: what was asked of it, its clock, where its results go.

    Args:
        name: of the bench; its results are NAME.json and NAME.png.
        doc: its docstring, whose first line says what it measures.
        quick: what --quick does.
        parts: what can be run by itself, by name.

    Attributes:
        parts: those that were asked for; all where none was.
    """

    def __init__(self, name: str, doc: str, quick: str, parts: Sequence[str] = ()) -> None:
        self.name, self.what = name, doc.splitlines()[0]
        parser = argparse.ArgumentParser(description=self.what)
        if parts:
            parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; default: all")
        parser.add_argument("--quick", action="store_true", help=quick)
        parser.add_argument("--output", type=Path, default=FOLDER, help="folder for results")
        arguments = parser.parse_args()
        self.quick: bool = arguments.quick
        asked: list[str] = getattr(arguments, "parts", [])
        if unknown := set(asked) - set(parts):
            parser.error(f"parts: got {', '.join(sorted(unknown))}, expected {', '.join(parts)}")
        self.parts = [part for part in parts if part in asked or not asked]
        self._output: Path = arguments.output
        self._start = time.perf_counter()

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"{time.perf_counter() - self._start:6.0f} s  {text}", flush=True)

    def written(self) -> dict[str, Any]:
        """What an earlier run wrote; {} where there was none."""
        path = self._output / f"{self.name}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def write(self, content: Mapping[str, Any]) -> Path:
        """Write the results.  Returns: where their figure goes."""
        seconds = round(time.perf_counter() - self._start)
        results = {"what": self.what, **content, "seconds": seconds}
        return write_results(self.name, results, self._output).with_suffix(".png")


def published(name: str) -> Any:
    """Figures of a peer or of the literature, with their "source"; see published.json."""
    return json.loads((FOLDER / "published.json").read_text())[name]


def seconds(call: Call, shortest: float = SHORTEST) -> NDArray[np.float64]:
    """Wall and processor seconds of one call, repeated until `shortest` has passed."""
    calls, start = 0, np.array([time.perf_counter(), time.process_time()])
    while True:
        call()
        calls += 1
        passed = np.array([time.perf_counter(), time.process_time()]) - start
        if passed[0] >= shortest:
            return passed / calls


def interval(k: int, n: int) -> tuple[float, float]:
    """Between what shares k of n lies with 95 % (Clopper and Pearson: it is never too narrow)."""
    from scipy.stats import beta

    low = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
    return low, 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))


def machine() -> dict[str, Any]:
    """Commit, processor, cores, memory, interpreter, packages: what a figure depends on."""
    return {
        "commit": commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def commit() -> str | None:
    """The commit that was measured, with "+" where files differ from it; None outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(FOLDER), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../refqnn", ".")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_results(name: str, results: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write `folder`/`name`.json."""
    path = folder / f"{name}.json"
    content = {**results, "machine": machine()}
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
