"""Fill the figures of README and pages from bench/*.json, or check that they are those.

In a page, a figure stands between two comments that a reader does not see, and nobody types it:

    accuracy <!--=digits_default-->.977<!--/=-->, or a table on lines of its own

    python bench/readme.py            # a second: writes README.md and refqnn/docs/*.md
    python bench/readme.py --check    # exits with 1 where a page differs
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import cache
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

from common import FOLDER, published

PAGES = (FOLDER.parent / "README.md", *sorted((FOLDER.parent / "refqnn" / "docs").glob("*.md")))
FIGURE = re.compile(r"<!--=(\w+)-->(.*?)<!--/=-->", re.DOTALL)
FIGURES: dict[str, Callable[[], str]] = {}


def figure(function: Callable[[], str]) -> Callable[[], str]:
    """Enter a figure under its function's name."""
    FIGURES[function.__name__] = function
    return function


@cache
def results(name: str) -> Any:
    """What bench/NAME.py wrote."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def thousandths(share: float) -> str:
    """.973; 1.000 as it is."""
    return f"{share:.3f}".removeprefix("0")


def digits(value: float, significant: int = 2) -> str:
    """A quantity at so many digits: 0.068, 1.9, 18, 6,500."""
    return format(Decimal(f"{value:.{significant}g}"), ",f")


def between(values: Iterable[float], significant: int = 2) -> str:
    """least to most."""
    ordered = sorted(values)
    least, most = digits(ordered[0], significant), digits(ordered[-1], significant)
    return least if least == most else f"{least} to {most}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, on lines of its own."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# --- training into a width ----------------------------------------------------------------------

METHODS = {"omega": "Omega, per layer", "4 x omega": "4 x Omega", "a2q": "A2Q bound"}


def _under_budget(method: str, bits: int) -> str:
    some = [r for r in results("accumulator_training")["runs"] if r["method"] == method]
    some = [r for r in some if r["bits"] == bits]
    over = sum(max(r["widths"]) > bits for r in some)
    return f"{thousandths(mean(r['accuracy'] for r in some))} ({over})"


@figure
def accumulator_table() -> str:
    methods = [*METHODS, "sign-split"]
    rows = [[f"{n} bits", *(_under_budget(m, n) for m in methods)] for n in (7, 8, 9)]
    bold = [[*row[:-1], f"**{row[-1]}**"] for row in rows]
    return table(["budget n", *METHODS.values(), "sign-split"], bold)


@figure
def unconstrained() -> str:
    runs = [r for r in results("accumulator_training")["runs"] if r["method"] == "unconstrained"]
    widest = max(max(r["widths"]) for r in runs)
    return f"{thousandths(mean(r['accuracy'] for r in runs))} at {widest} bits"


def _staged(network: str, tile: int | None, bits: int) -> str:
    runs = results("staged_accumulators")["runs"]
    some = [r for r in runs if (r["network"], r["tile"], r["inner"]) == (network, tile, bits)]
    open_ = sum(not r["proved"] for r in some)
    return f"{thousandths(mean(r['accuracy'] for r in some))} ({open_})"


@figure
def staged_table() -> str:
    runs = results("staged_accumulators")["runs"]
    widths = sorted({r["inner"] for r in runs})
    rows = [
        [
            network.upper(),
            "one register" if tile is None else f"tiles of {tile}",
            *(_staged(network, tile, bits) for bits in widths),
        ]
        for network in ("mlp", "cnn")
        for tile in (*sorted({r["tile"] for r in runs} - {None}), None)
    ]
    return table(["", "sums of", *(f"{bits} bits" for bits in widths)], rows)


@figure
def staged_seeds() -> str:
    seeds: dict[str, set[int]] = {}
    for run in results("staged_accumulators")["runs"]:
        seeds.setdefault(run["network"], set()).add(run["seed"])
    return f"{len(seeds['mlp'])} and {len(seeds['cnn'])}"


@figure
def posttraining_table() -> str:
    found = results("posttraining")["mean_accuracy"]
    titles = [bits if bits == "float" else f"{bits} bits" for bits in found["MLP"]]
    rows = [[name, *map(thousandths, row.values())] for name, row in found.items()]
    return table(["", *titles], rows)


@figure
def wide_certificate() -> str:
    found = results("proofs")["wide"]
    ratio = found["seconds"] / found["forward_s"]
    return f"{found['seconds']:.1f} s, {ratio:.1f} times its forward pass of 64 samples"


@figure
def classes_decided() -> str:
    found = results("proofs")["classes"]
    share = f"{round(found['decided'] * found['samples'])} of {found['samples']}"
    return f"{share} decided, {found['changed']} by an input, within {found['longest_s']:.1f} s"


# --- experiments --------------------------------------------------------------------------------


def _default(name: str) -> Any:
    return results("defaults")["summary"][name]


def _peer(name: str) -> str:
    accuracy = published("concrete_ml")["accuracy"].get(name, {})
    return ", ".join(f"{thousandths(value)} {what}" for what, value in accuracy.items())


@figure
def experiments() -> str:
    board, iris = results("checkerboard"), results("iris")
    literature, right = published("iris")["accuracy"], iris["accuracy"]
    theirs = published("checkerboard")["accuracy"]
    cnn, mnist, diabetes = results("digits_cnn"), results("mnist"), results("diabetes")

    def ours(value: float, beside: str = "") -> str:
        return f"**{thousandths(value)}**{beside}"

    def twin(value: float) -> str:
        return f" (float twin {thousandths(value)})"

    def bits(runs: Iterable[Any], key: str = "signed_bits") -> str:
        return f"{max(max(run[key]) for run in runs)} bits"

    rows = [
        [
            "`checkerboard`: 30 of 100 weights, QAT",
            f"{thousandths(theirs['QAT 30 of 100'])}, converted",
            ours(
                board["mean_accuracy"]["QAT 30 of 100"],
                f" (ceiling of the data {thousandths(board['mean_ceiling'])})",
            ),
            bits([r for r in board["runs"] if r["row"] == "QAT 30 of 100"], "widths"),
        ],
        [
            "`iris`: ten-fold cross-validation",
            f"{thousandths(literature['clear'])} float, "
            f"{thousandths(literature['quantized'])} quantized",
            ours(right["right"]["mean"], twin(right["right_float"]["mean"])),
            f"{iris['widest']} bits",
        ],
        [
            "`digits_cnn`: convolutional",
            "",
            ours(cnn["accuracy"]["large"]),
            bits([r for r in cnn["runs"] if r["variant"] == "large"]),
        ],
        *(
            [
                f"`defaults`: {name}{', R2' * (name == 'diabetes')}, no setting touched",
                _peer(name),
                ours(_default(name)["accuracy"], twin(_default(name)["float_accuracy"])),
                f"{_default(name)['certified_bits']} bits",
            ]
            for name in results("defaults")["summary"]
        ),
        [
            f"`mnist`: 5,000 digits, {'-'.join(map(str, mnist['settings']['sizes']))}",
            "",
            ours(mnist["accuracy"], twin(mnist["accuracy_float"])),
            bits(mnist["runs"]),
        ],
        [
            "`diabetes`: regression, R2",
            "",
            ours(diabetes["r2"], twin(diabetes["r2_float"])),
            bits(diabetes["runs"], "widths"),
        ],
    ]
    return table(["experiment", "literature, or the peer", "ours", "certified accumulators"], rows)


@figure
def checkerboard_table() -> str:
    """Ways to 3 bits, in brackets what is published and the widest certified accumulator."""
    board, theirs = results("checkerboard"), published("checkerboard")["accuracy"]

    def cell(row: str) -> str:
        runs = [run for run in board["runs"] if run["row"] == row]
        widest = max(max(run["widths"], default=0) for run in runs)
        beside = [f"{thousandths(theirs[row])} published"] if row in theirs else []
        beside += [f"{widest} bits"] * (widest > 0)
        beside += [f"{len(runs)} seeds"] * (len(runs) < int(checkerboard_seeds()))
        return f"{thousandths(board['mean_accuracy'][row])} ({', '.join(beside)})"

    ways = {
        "float": "float",
        "PTQ": "scales of least squared error",
        "calibrated": "`quantize_module`",
        "calibrated, split": "`quantize_module`, accumulators of 7 bits",
        "QAT": "trained so, accumulators of 7 bits",
    }
    rows = [
        [what, *(cell(f"{way} h={h}") for h in (10, 30, 100))]
        for way, what in ways.items()
        if f"{way} h=100" in board["mean_accuracy"]
    ]
    return table(["2-h-h-2", "h = 10", "h = 30", "h = 100"], rows)


@figure
def checkerboard_seeds() -> str:
    return str(len({run["seed"] for run in results("checkerboard")["runs"]}))


@figure
def literature_module() -> str:
    """The literature's module as it reports it, and as it is read here."""
    found = results("literature")
    reported = found["literature"]
    rows = [
        [
            "as reported",
            thousandths(reported["module"]),
            thousandths(reported["converted"]),
            f"{reported['bits']}, observed",
            "",
        ]
    ]
    for last, means in found["mean"].items():
        classes = sum(r["classes_differ"] for r in found["runs"] if r["last"] == int(last))
        widths = f"{means['certified_bits']}, certified; last {means['last_certified_bits']}"
        accuracies = thousandths(means["module"]), thousandths(means["integers"])
        rows.append([f"last layer of {last} bits", *accuracies, widths, str(classes)])
    head = ["30 of 100 weights", "module", "integers", "accumulator bits", "classes that differ"]
    return table(head, rows)


@figure
def brevitas_modules() -> str:
    found = results("brevitas_modules")
    return f"{found['modules']:,} random modules and {found['codes']:,} codes"


# --- encrypted ----------------------------------------------------------------------------------


@cache
def _encrypted() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for run in results("fhe")["benchmarks"]:
        entry = {"seconds": run["stats"]["median"], **run["extra_info"]}
        found.setdefault(run["group"], {})[entry["form"]] = entry
    return found


def _lookups(pbs: dict[str, int]) -> str:
    total, bits = sum(pbs.values()), sorted(map(int, pbs))
    if not total:
        return "none"
    return f"{total} of {bits[0]} bits" if len(bits) == 1 else f"{total}, up to {bits[-1]} bits"


@figure
def encrypted_table() -> str:
    rows = []
    for name, forms in _encrypted().items():
        ours, peer, strict = forms["encrypted"], forms["peer"], forms["peer, 2^-128"]
        limit = ours["limit_seconds"]
        rows.append(
            [
                name if ours["pbs"] else f"{name} (public)",
                thousandths(forms["integer"]["accuracy"]),
                _lookups(ours["pbs"]),
                f"{digits(ours['seconds'])} s",
                "" if limit is None else f"{ours['seconds'] / limit:.2f}",
                f"{digits(peer['seconds'])} s",
                f"{digits(strict['seconds'])} s",
                f"{ours['evaluation_key_bytes'] / 1e6:.0f}, "
                f"{peer['evaluation_key_bytes'] / 1e6:.0f} MB",
                f"{ours['compared_samples'] - ours['wrong_samples']} of {ours['compared_samples']}",
            ]
        )
    head = ["network", "test accuracy", "lookups", "encrypted", "/ limit", "peer's way"]
    return table([*head, "at 2^-128", "keys, peer's", "samples equal"], rows)


@figure
def against_default() -> str:
    """Latency of the peer's default network / ours for encryption, by data set."""
    found = _encrypted()

    def gain(data: str) -> str:
        peer, ours = found[f"{data} dense"]["peer"], found[f"{data} target"]["encrypted"]
        return f"{digits(peer['seconds'] / ours['seconds'])} x on {data}"

    return ", ".join(gain(data) for data in ("iris", "breast_cancer", "digits"))


@figure
def estimates_within() -> str:
    ratios = [f["encrypted"] for f in _encrypted().values()]
    return f"{max(abs(r['estimated_seconds'] / r['seconds'] - 1) for r in ratios):.0%}"


@figure
def clear_microseconds() -> str:
    return between(f["integer"]["seconds"] * 1e6 for f in _encrypted().values())


@figure
def throughput_table() -> str:
    found = results("throughput")["networks"]
    batches = [str(run["batch"]) for run in next(iter(found.values()))]
    rows = [
        [
            name,
            *(
                f"{digits(run['latency_seconds'])} s, {digits(run['samples_per_second'])} / s"
                for run in runs
            ),
        ]
        for name, runs in found.items()
    ]
    return table(["network", *(f"batch {batch}" for batch in batches)], rows)


@figure
def ml_inference_table() -> str:
    found = results("ml_inference")["instances"]
    rows = [
        [phase, *(f"{digits(of['phases'][phase])} s" for of in found.values())]
        for phase in next(iter(found.values()))["phases"]
    ]
    rows += [
        [name, *(f"{digits(of['bytes'][name] / 1e6)} MB" for of in found.values())]
        for name in next(iter(found.values()))["bytes"]
    ]
    heads = (f"{name}: {of['images']}" for name, of in found.items())
    return table(["phase, size", *heads], rows)


@figure
def ml_inference_quality() -> str:
    return thousandths(results("ml_inference")["quality"])


@figure
def ml_inference_images() -> str:
    return f"{results('ml_inference')['quality_images']:,}"


@figure
def failures_table() -> str:
    rows = [
        [
            s["network"],
            f"{s['predicted']:.1%}",
            f"{s['encrypted']['failed']} of {s['encrypted']['samples']}",
            " to ".join(f"{end:.1%}" for end in s["encrypted"]["interval"]),
            f"{s['simulated']['failed']} of {s['simulated']['samples']}",
            str(s["encrypted"]["other_class"]),
        ]
        for s in results("fhe_failures")["settings"]
    ]
    head = ["network", "promised at most", "encrypted: failed", "95 % interval"]
    return table([*head, "simulated: failed", "other class"], rows)


@figure
def worker_keys() -> str:
    return f"{results('fhe_workers')['megabytes_to_each_worker']:.0f} MB for a small network"


@figure
def worker_memory() -> str:
    return f"{results('fhe_workers')['memory_of_each_worker_megabytes']:.0f} MB"


@figure
def worker_gain() -> str:
    gains = results("fhe_workers")["speed_up_of_two_workers"]
    loky, dask = gains["loky over one core"], gains["dask over one core"]
    return f"{loky:.1f} (loky) and {dask:.1f} times (Dask)"


# --- clear --------------------------------------------------------------------------------------

PEERS = {
    "Brevitas": "Brevitas, evaluation",
    "torch float32": "torch float32, same shapes",
    "onnxruntime": "onnxruntime on our QCDQ file",
    "qonnx": "qonnx executor",
    "Concrete": "Concrete, simulated",
    "BLAS limit": "float32 BLAS, the products alone",
}


@figure
def clear_table() -> str:
    runs = results("clear_speed")["results"]
    batches = sorted({r["batch"] for r in runs})

    def cell(peer: str, batch: int) -> str:
        some = [r["seconds"] for r in runs if r["batch"] == batch and peer in r["seconds"]]
        return between(s[peer] / s["refqnn"] for s in some) if some else "not run"

    rows = [[text, *(cell(peer, b) for b in batches)] for peer, text in PEERS.items()]
    return table(["time of the peer / ours", *(f"batch {b:,}" for b in batches)], rows)


@figure
def clear_memory() -> str:
    return f"{ceil(max(a['refqnn'] for a in results('clear_speed')['added_mib'].values()))} MB"


@figure
def call_microseconds() -> str:
    runs = results("clear_speed")["results"]
    return between(r["seconds"]["refqnn"] * 1e6 for r in runs if r["batch"] == 1)


@figure
def import_ratio() -> str:
    taken = results("clear_speed")["import_seconds"]
    package, core = (digits(taken[name] / taken["numpy"]) for name in ("refqnn", "refqnn.network"))
    return f"{package} times as long as `import numpy`, and with what the core needs {core} times"


@figure
def tflite_speed_table() -> str:
    def cells(r: dict[str, Any]) -> list[str]:
        times = [f"{digits(1e3 * r['seconds'][who])} ms" for who in ("refqnn", "LiteRT")]
        return [r["model"], r["runtime"], str(r["batch"]), *times, digits(r["ratio"])]

    rows = map(cells, results("tflite_speed")["results"])
    return table(["model", "runtime", "batch", "refqnn", "LiteRT", "ratio"], rows)


# --- mutants of the core ------------------------------------------------------------------------


@figure
def core_mutants() -> str:
    return str(results("mutation")["run"] - results("mutation")["equivalent"])


@figure
def core_mutants_killed() -> str:
    return str(results("mutation")["killed"])


# --- vectors ------------------------------------------------------------------------------------


def _strength(*keys: str) -> Any:
    found = results("vector_strength")
    for key in keys:
        found = found[key]
    return found


@figure
def vectors() -> str:
    manifest = json.loads((FOLDER.parent / "vectors" / "MANIFEST.json").read_text())
    return str(manifest["number_of_tests"])


def _files() -> list[Path]:
    return sorted((FOLDER.parent / "vectors").glob("*.json"))


@figure
def vector_files() -> str:
    return str(len(_files()) - 1)  # without the manifest


@figure
def vector_size() -> str:
    return f"{sum(path.stat().st_size for path in _files()) / 1e6:.1f} MB"


@figure
def mutants() -> str:
    return str(_strength("total", "mutants"))


@figure
def mutants_killed() -> str:
    killed, of = _strength("total", "killed"), _strength("total", "mutants")
    return "all" if killed == of else f"{killed}"


@figure
def mutants_whole() -> str:
    return str(_strength("whole_networks", "mutants"))


@figure
def onnx_vectors() -> str:
    return str(len(_strength("onnx", "vectors")))


@figure
def onnx_killed() -> str:
    return f"{_strength('onnx', 'total', 'onnx')} of the {_strength('onnx', 'total', 'mutants')}"


def _of_those_that_differ(kind: str) -> str:
    rows = _strength(kind).values()
    killed = sum(row["killed"] for row in rows)
    return f"{killed:,} of {killed + sum(len(r['told']) + r['unargued'] for r in rows):,}"


@figure
def mechanical_killed() -> str:
    return _of_those_that_differ("mechanical")


@figure
def foreign_killed() -> str:
    return _of_those_that_differ("foreign")


@figure
def tosa_table() -> str:
    rows = [
        [name, *(str(found[key]) for key in ("made", "run", "equal", "different")),
         ", ".join(f"{n} {why}" for why, n in found["not_expressible"].items())]
        for name, found in results("tosa")["operators"].items()
    ]  # fmt: skip
    return table(["operator", "tests", "run", "equal", "different", "left out"], rows)


# --- against the peers --------------------------------------------------------------------------


@figure
def peers_table() -> str:
    peer = published("concrete_ml")
    equal = peer["classes_equal_to_its_module"].values()
    one_by_one = peer["clear_samples_per_second_one_by_one"].values()

    def ours(name: str) -> str:
        return ", ".join(thousandths(_default(name)[k]) for k in ("accuracy", "float_accuracy"))

    def defaults(name: str) -> list[str]:
        theirs = ", ".join(
            thousandths(v) for v in (peer["accuracy"][name][k] for k in ("quantized", "float"))
        )
        return [f"3-bit {name} MLP, defaults: quantized, float", ours(name), theirs, "", ""]

    speed = [r["seconds"] for r in results("clear_speed")["results"] if r["batch"] == 1]

    def times(name: str) -> str:
        return f"{between(s[name] / s['refqnn'] for s in speed if name in s)} x ours"

    rows = [
        [
            "integers equal those of the trained module",
            f"all, at every quantizer: {brevitas_modules()}",
            f"classes on {between((100 * share for share in equal), 3)} %",
            "is the module",
            "",
        ],
        [
            "overflow",
            "proof for every input, or an input that does it",
            "observed on samples",
            "A2Q in training, bias not counted",
            "",
        ],
        defaults("digits"),
        defaults("breast_cancer"),
        [
            "inference in clear, one sample",
            f"{call_microseconds()} us",
            f"{between((1e3 / rate for rate in one_by_one), 1)} ms",
            times("Brevitas"),
            times("qonnx"),
        ],
        ["vectors and runner for other implementations", f"{vectors()}, any language", "", "", ""],
    ]
    return table(
        ["", "refqnn", f"Concrete ML {peer['version']}", "Brevitas 0.13", "qonnx 1.0"], rows
    )


def filled(text: str) -> str:
    """A page with its figures as bench/ has them.  Raises: KeyError: no figure of that name."""
    return FIGURE.sub(lambda m: f"<!--={m[1]}-->{FIGURES[m[1]]()}<!--/=-->", text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if stale")
    check = parser.parse_args(argv).check
    stale = []
    for page in map(Path, PAGES):
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if old != new:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    print("changed:" if stale else "every figure is that of bench/", *stale)
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
