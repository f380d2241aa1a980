"""Encrypted inference: latency against clear inference, its limit, and the peer's construction.

Runs bench/test_fhe.py, prints two tables, writes fhe.json (as pytest-benchmark does, so that
`pytest-benchmark compare` reads it) and fhe.png.

    float, integer, simulated, encrypted   one sample: torch, Network.forward, circuit, real keys
    limit       sum of the time of a lookup in a full tensor of 32, both cores, one for every
                neuron; neurons of one input take none, so a network may stay below
    estimate    refqnn.fhe.estimate, before any key is made
    peer        the same network in the peer's construction, encrypted (bench/fhe_peer.py); it may
                fail with 2^-40 at each lookup, ours and the last column with 2^-128 altogether

Each network's commit stands beside its times.

    python bench/fhe.py                        # 26 minutes on two idle cores
    python bench/fhe.py iris "digits target"   # these alone; the others stay as they were measured
    python bench/fhe.py --quick                # the smallest network, nothing written
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from common import FOLDER, machine

FORMS = ("float", "integer", "simulated", "encrypted", "peer", "peer, 2^-128")

LABELS = {  # of the networks, as the README's table has them
    "iris": "iris 4-16-3",
    "breast_cancer": "breast_cancer 30-128-2, one input each",
    "digits": "digits 64-64-10",
    "digits CNN": "digits, convolution of 16 channels",
    "iris target": 'iris, target="encrypted"',
    "breast_cancer target": 'breast_cancer, target="encrypted"',
    "digits target": 'digits, target="encrypted"',
    "digits alone": "digits 64-256-10, one input each",
    "iris w3a3": "iris, 3 bits, sparse",
    "breast_cancer w3a3": "breast_cancer, 3 bits, sparse",
    "digits w3a3": "digits, 3 bits, sparse",
}

Results = dict[str, dict[str, dict[str, Any]]]  # network -> form -> {"seconds": ..., **extra_info}


class Only:
    """A plugin of pytest that leaves the other networks out."""

    def __init__(self, networks: list[str]) -> None:
        self.networks = networks

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.callspec.params["name"] in self.networks]


def measure(networks: list[str]) -> dict[str, Any]:
    """Run the suite and return what pytest-benchmark writes, without the host's name.

    Args:
        networks: those to measure; all where there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "fhe.json")
        status = pytest.main(
            [
                str(FOLDER / "test_fhe.py"),
                *("-m", "slow", "-v", "--benchmark-enable", "--benchmark-columns=median"),
                *("-p", "no:cacheprovider", f"--benchmark-json={file}"),
            ],
            plugins=[Only(networks)] if networks else [],
        )
        if status:
            sys.exit(int(status))
        content: dict[str, Any] = json.loads(file.read_text())
    content["machine_info"].pop("node", None)
    content["refqnn_machine"] = machine()
    for run in content["benchmarks"]:
        run["stats"].pop("data", None)
        run["commit"] = content["refqnn_machine"]["commit"]
    return content


def beside(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """With the networks that an earlier run measured, in its order."""
    if not path.exists():
        return content
    runs: dict[str, list[Any]] = {}
    for run in json.loads(path.read_text())["benchmarks"]:
        runs.setdefault(run["group"], []).append(run)
    for name in {run["group"]: None for run in content["benchmarks"]}:
        runs[name] = [run for run in content["benchmarks"] if run["group"] == name]
    return {**content, "benchmarks": [run for found in runs.values() for run in found]}


def by_network(content: dict[str, Any]) -> Results:
    found: Results = {}
    for run in content["benchmarks"]:
        form = run["extra_info"]["form"]
        stats = run["stats"]
        entry = {"seconds": stats["median"], "rounds": stats["rounds"], **run["extra_info"]}
        found.setdefault(run["group"], {})[form] = entry
    return found


def times(results: Results) -> str:
    """One line per network: accuracy, seconds, ratios, the peer's wrong samples."""
    head = (
        f"{'network':20} {'accuracy':>8} {'keygen':>7} {'float':>7} {'integer':>7} {'simul.':>7} "
        f"{'encrypted':>9} {'/ limit':>7} {'estimate':>8} {'peer':>7} {'ratio':>5} {'wrong':>6} "
        f"{'at 2^-128':>9}"
    )
    lines = [head, "-" * len(head)]
    for name, forms in results.items():
        ours, peer = forms["encrypted"], forms["peer"]
        limit = ours["limit_seconds"]
        lines.append(
            f"{name:20} {forms['integer']['accuracy']:8.3f} {ours['keygen_seconds'] * 1e3:7.0f} "
            f"{forms['float']['seconds'] * 1e3:7.2f} {forms['integer']['seconds'] * 1e3:7.3f} "
            f"{forms['simulated']['seconds'] * 1e3:7.1f} {ours['seconds'] * 1e3:9.0f} "
            f"{'' if limit is None else format(ours['seconds'] / limit, '.2f'):>7} "
            f"{ours['estimated_seconds'] / ours['seconds']:8.2f} "
            f"{peer['seconds'] * 1e3:7.0f} {peer['seconds'] / ours['seconds']:5.1f} "
            f"{peer['wrong_samples']:>2} of {peer['compared_samples']} "
            f"{forms['peer, 2^-128']['seconds'] / ours['seconds']:9.1f}"
        )
    lines.append("milliseconds for one sample; measured / limit, estimate / measured, peer / ours")
    return "\n".join(lines)


def sizes(results: Results) -> str:
    """One line per network: keys, ciphertexts, memory, lookups by width."""
    head = (
        f"{'network':20} {'keys':>6} {'peer':>6} {'input':>6} {'output':>6} {'memory':>6}  "
        "lookups by bits"
    )
    lines = [head, "-" * len(head)]
    for name, forms in results.items():
        ours, peer = forms["encrypted"], forms["peer"]
        lookups = ", ".join(f"{n} of {bits}" for bits, n in ours["pbs"].items())
        lines.append(
            f"{name:20} {ours['evaluation_key_bytes'] / 1e6:6.0f} "
            f"{peer['evaluation_key_bytes'] / 1e6:6.0f} {ours['input_bytes'] / 1e3:6.1f} "
            f"{ours['output_bytes'] / 1e3:6.0f} {ours['peak_memory_bytes'] / 1e6:6.0f}  {lookups}"
        )
    lines.append("evaluation keys in MB, ciphertexts of one sample in kB; peak memory in MB of the")
    lines.append("process, which still holds the keys of the networks above")
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, (left, right) = figure(13.0, 4.6, columns=2)
    names = list(results)
    places = range(len(names))
    for form, colour, marker in zip(FORMS, COLOURS, "os^Dv<"):
        seconds = [results[name][form]["seconds"] for name in names]
        left.plot(seconds, places, marker, color=colour, label=form)
    left.set_xscale("log")
    left.set_xlabel("latency of one sample (s)")
    rounds = [results[name]["encrypted"]["rounds"] for name in names]
    left.set_title(
        f"Clear and encrypted inference, medians of {min(rounds)} to {max(rounds)} samples"
    )
    legend_below(left)
    ratios = [results[n]["peer"]["seconds"] / results[n]["encrypted"]["seconds"] for n in names]
    right.hlines(places, 1, ratios, color=COLOURS[0], linewidth=2)  # from equal; bars have no 0
    right.plot(ratios, places, "o", color=COLOURS[0])
    right.axvline(1, color="black", linewidth=1)
    for place, ratio, name in zip(places, ratios, names):
        limit = results[name]["encrypted"]["limit_seconds"]
        near = f", {results[name]['encrypted']['seconds'] / limit:.2f} x limit" if limit else ""
        right.text(max(ratio, 1), place, f"  {ratio:.1f}{near}", va="center", fontsize=8)
    right.set_xscale("log")
    right.set_xlim(min(0.5, min(ratios) * 0.8), max(ratios) * 8)
    right.set_xlabel("latency of the peer's construction / ours (right of 1: ours is faster)")
    right.set_title("Encrypted latency against the peer's construction")
    for axes in (left, right):
        axes.set_yticks(places, [LABELS.get(name, name) for name in names])
        axes.invert_yaxis()
        axes.label_outer()
    save_figure(fig, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help="names of networks; default: all")
    parser.add_argument("--quick", action="store_true", help="the smallest network only")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the results")
    arguments = parser.parse_args()
    content = measure(["iris"] if arguments.quick else arguments.networks)
    if not arguments.quick:
        content = beside(content, arguments.output / "fhe.json")
    results = by_network(content)
    print(times(results))
    print()
    print(sizes(results))
    if arguments.quick:
        return
    (arguments.output / "fhe.json").write_text(json.dumps(content, indent=1) + "\n")
    plot(results, arguments.output / "fhe.png")


if __name__ == "__main__":
    main()
