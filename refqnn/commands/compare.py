"""`refqnn bench --compare`: a bench run again, held against its committed figures.

Seconds of two machines, or of two days, say little; how many times longer a peer takes in the same
run says more.  Committed and new results are compared by these ratios, peer / ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refqnn.errors import InvalidArgument, mismatch

__all__ = ["ALLOWED", "RATIOS", "Compared", "compared", "run_again"]

ALLOWED = 1.2  # a ratio may be so many times smaller than it was

Ratios = Iterator[tuple[str, float]]


def _clear(content: dict[str, Any]) -> Ratios:
    for result in content["results"]:
        seconds = result["seconds"]
        for peer in seconds.keys() - {"refqnn", "refqnn predict", "BLAS limit"}:
            label = f"{result['network']}, batch {result['batch']}: {peer}"
            yield label, seconds[peer] / seconds["refqnn"]


def _encrypted(content: dict[str, Any]) -> Ratios:
    seconds: dict[str, dict[str, float]] = {}
    for run in content["benchmarks"]:
        form = run["extra_info"]["form"]
        seconds.setdefault(run["group"], {})[form] = run["stats"]["median"]
    for network, forms in seconds.items():
        yield f"{network}: peer's construction", forms["peer"] / forms["encrypted"]


# What the results of a bench say of peers, by the bench's name.
RATIOS: dict[str, Callable[[dict[str, Any]], Ratios]] = {"clear_speed": _clear, "fhe": _encrypted}


@dataclass(frozen=True)
class Compared:
    """One ratio, as committed and as it is now."""

    label: str
    before: float
    now: float

    @property
    def worse(self) -> bool:
        """Has it become more than 1.2 times smaller?"""
        return self.now * ALLOWED < self.before


def compared(name: str, before: dict[str, Any], now: dict[str, Any]) -> list[Compared]:
    """The ratios that both results of a bench hold, by label.

    Raises: InvalidArgument for a bench without a peer.

    >>> def ran(peer, ours):
    ...     forms = {"peer": peer, "encrypted": ours}
    ...     return {"benchmarks": [
    ...         {"group": "iris", "stats": {"median": t}, "extra_info": {"form": form}}
    ...         for form, t in forms.items()
    ...     ]}
    >>> (found,) = compared("fhe", ran(6.0, 2.0), ran(3.0, 1.25))
    >>> found.before, found.now, found.worse
    (3.0, 2.4, True)
    """
    if name not in RATIOS:
        raise InvalidArgument(mismatch("name", repr(name), f"one of {', '.join(RATIOS)}"))
    old, new = (dict(RATIOS[name](content)) for content in (before, now))
    return [Compared(label, old[label], new[label]) for label in sorted(old.keys() & new.keys())]


def run_again(name: str, module: Path) -> list[Compared]:
    """Run a bench, write its results to a temporary folder, and compare.

    Raises: InvalidArgument as `compared`, before anything runs; SystemExit, with its status, for a
        bench that fails.
    """
    compared(name, {"results": [], "benchmarks": []}, {"results": [], "benchmarks": []})
    before = json.loads(module.with_suffix(".json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(module), "--output", folder]
        if status := subprocess.run(command).returncode:
            raise SystemExit(status)
        now = json.loads(Path(folder, f"{name}.json").read_text())
    return compared(name, before, now)
