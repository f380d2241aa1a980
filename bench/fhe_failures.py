"""How often does encrypted inference fail, and does `global_p_error` predict it?

At the default, 2**-128, nobody will see a failure.  Here the allowed probability is so large that
failures are seen and counted: in simulation, which draws the noise of the parameters, and with real
keys and ciphertexts.

    visible   8 sums of 4 bits, each behind a table whose neighbours differ, each an output of its
              own: no failure of a lookup goes unseen
    4-16-3    a dense network, 3-bit codes: a lookup that fails lands on the next sum, whose code
              may be the same, and an output that moved may leave the class as it was

One inference fails if any of its outputs is wrong.  The promise counts lookups and outputs, a union
bound that needs no assumption; an output hardly ever fails by itself, so that the lookups alone
are what should be seen.  Intervals are Clopper and Pearson's, 95 %.

    python bench/fhe_failures.py            # 6 minutes on two cores
    python bench/fhe_failures.py --quick    # one setting, few samples, nothing written
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import FOLDER, interval, write_results

from refqnn import IntFormat, Linear, Lookup, Network, Node, Requantize, fhe

ALLOWED = (0.03, 0.1, 0.3)
CODES = IntFormat(2, signed=False)


def visible() -> Network:
    """8 different sums of 13 values each; tables in which neighbours are far apart."""
    signs = 1 - 2 * (np.arange(8)[:, None] >> np.arange(4) & 1)  # [8, 4], each row its own
    places = np.arange(-12, 13)
    tables = (5 * places + np.arange(8)[:, None]) % 16
    nodes = [
        Node("sums", Linear(signs)),
        Node("codes", Lookup(tables, -12, IntFormat(4, signed=False))),
    ]
    return Network(nodes, input_shape=(4,), input_format=CODES)


def dense() -> Network:
    rng = np.random.default_rng(1)
    nodes = [
        Node("fc0", Linear(rng.integers(-1, 2, (16, 4)))),
        Node("act0", Requantize.from_shift(0, IntFormat(3, signed=False))),
        Node("fc1", Linear(rng.integers(-3, 4, (3, 16)))),
    ]
    return Network(nodes, input_shape=(4,), input_format=CODES)


NETWORKS: dict[str, Callable[[], Network]] = {"visible": visible, "4-16-3": dense}


@dataclass(frozen=True)
class Count:
    """Failures among samples."""

    samples: int
    failed: int  # any output wrong
    other_class: int

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.failed, self.samples)


@dataclass(frozen=True)
class Setting:
    network: str
    allowed: float  # what was asked for
    predicted: float  # what the parameters promise: 1 - (1 - p)**events
    lookups_alone: float  # the same without the outputs: 1 - (1 - p)**lookups
    p_error: float
    events: int
    complexity: float
    seconds: float  # per encrypted sample
    simulated: Count
    encrypted: Count


def compared(got: Any, expected: Any) -> Count:
    failed = (got != expected).any(axis=1)
    other = got.argmax(axis=1) != expected.argmax(axis=1)
    return Count(len(got), int(failed.sum()), int(other.sum()))


def measured(name: str, allowed: float, n_simulated: int, n_encrypted: int) -> Setting:
    network = NETWORKS[name]()
    circuit = fhe.compile(network, global_p_error=allowed)
    rng = np.random.default_rng(2)
    codes = rng.integers(0, CODES.q_max + 1, (max(n_simulated, n_encrypted), 4))
    expected = network.forward(codes)
    simulated = compared(circuit.simulate(codes[:n_simulated]), expected[:n_simulated])
    circuit.keygen()
    circuit.execute(codes[:1])  # unpacks the keys
    start = time.perf_counter()
    got = circuit.execute(codes[:n_encrypted])
    seconds = (time.perf_counter() - start) / n_encrypted
    events = circuit.lowered.events
    return Setting(
        network=name,
        allowed=allowed,
        predicted=1 - (1 - circuit.p_error) ** events,
        lookups_alone=1 - (1 - circuit.p_error) ** sum(circuit.pbs.values()),
        p_error=circuit.p_error,
        events=events,
        complexity=circuit.complexity,
        seconds=seconds,
        simulated=simulated,
        encrypted=compared(got, expected[:n_encrypted]),
    )


def plot(settings: list[Setting], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, axes = figure(7.0, 4.2)
    for i, (name, marker) in enumerate(zip(NETWORKS, "os")):
        chosen = [s for s in settings if s.network == name]
        if not chosen:
            continue
        x = [s.predicted for s in chosen]
        expected = [s.lookups_alone for s in chosen]
        axes.plot(x, expected, "_", color=COLOURS[i], ms=22, label=f"{name}, lookups alone")
        for kind, fill, shift in (("encrypted", "full", 1.0), ("simulated", "none", 1.06)):
            counts = [getattr(s, kind) for s in chosen]
            x = [s.predicted * shift for s in chosen]
            y = [c.failed / c.samples for c in counts]
            below = [value - c.interval[0] for value, c in zip(y, counts)]
            above = [c.interval[1] - value for value, c in zip(y, counts)]
            axes.errorbar(
                *(x, y, [below, above]),
                fmt=marker,
                color=COLOURS[i],
                fillstyle=fill,
                capsize=3,
                label=f"{name}, {kind} ({counts[0].samples:,} samples)",
            )
    ends = np.array([0.5 * min(s.predicted for s in settings), 0.6])
    axes.plot(ends, ends, color="grey", linewidth=1, linestyle="--", label="as promised")
    axes.set(xscale="log", yscale="log", ylim=(5e-4, 1))
    axes.set_xticks(ALLOWED, [str(allowed) for allowed in ALLOWED])
    axes.minorticks_off()
    axes.set_xlabel("promised probability that an inference fails, at most (share of samples)")
    axes.set_ylabel("measured share that failed (95 % interval)")
    axes.set_title("Failures of encrypted inference at loose global_p_error")
    legend_below(axes, 2)
    save_figure(fig, path)


def written(settings: list[Setting], seconds: float, folder: Path) -> None:
    """After each setting, so that an interrupted run keeps what it has measured."""
    rows = [
        {
            **asdict(s),
            "simulated": {**asdict(s.simulated), "interval": s.simulated.interval},
            "encrypted": {**asdict(s.encrypted), "interval": s.encrypted.interval},
        }
        for s in settings
    ]
    content = {"what": __doc__.splitlines()[0], "seconds": round(seconds), "settings": rows}
    path = write_results("fhe_failures", content, folder)
    plot(settings, path.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one setting, nothing written")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the results")
    arguments = parser.parse_args()
    plan = [(name, allowed) for name in NETWORKS for allowed in ALLOWED]
    sizes = (1000, 240)
    if arguments.quick:
        plan, sizes = [("visible", 0.3)], (200, 20)
    start = time.perf_counter()
    settings = []
    for name, allowed in plan:
        setting = measured(name, allowed, *sizes)
        settings.append(setting)
        counts = " ".join(
            f"{kind} {c.failed}/{c.samples} (class {c.other_class})"
            for kind, c in (("simulated", setting.simulated), ("encrypted", setting.encrypted))
        )
        print(
            f"{time.perf_counter() - start:6.0f} s  {name:<8} allowed {allowed:<5}"
            f" promised {setting.predicted:.4f}"
            f" (lookups {setting.lookups_alone:.4f})  {counts}  {setting.seconds:.3f} s/sample",
            flush=True,
        )
        if not arguments.quick:
            written(settings, time.perf_counter() - start, arguments.output)


if __name__ == "__main__":
    main()
