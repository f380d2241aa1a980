"""How fast is the integer program in the clear, beside its peers and beside its limit?

Six networks at batch 1, 64 and 10,000, one thread, everything in one run:

    refqnn          Network.forward, codes in, integers out
    refqnn predict  Network.predict, floats in, floats out: both doors included
    Brevitas        the module the network was made from, eval mode, no gradients
    torch float32   layers of the same shapes, biases and ReLU, nothing quantized
    onnxruntime     the QCDQ export of the network
    qonnx           the QONNX export of the network in qonnx's executor
    Concrete        fhe.compile(network).simulate, one sample after another; small networks only
    BLAS limit      numpy's float32 products of the layers alone: operands ready, fastest form

Peers take turns: each round times every peer once, and the figure is the least of the rounds, so
that a busy moment hits all of them or none.  Processor seconds are recorded, too: on a busy machine
they are what to compare.  qonnx and Concrete are left out where they would take
minutes.  Before anything is timed, the integers of Brevitas, onnxruntime, qonnx and Concrete are
compared with those of refqnn on 64 samples (`agreement`, share of equal outputs).

    python bench/clear_speed.py            # 2 minutes on two idle cores
    python bench/clear_speed.py --quick    # the two smallest networks, nothing written
"""

# ruff: noqa: E402

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy and torch are loaded

import ctypes
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8WeightPerTensorFixedPoint,
    Uint8ActPerTensorFixedPoint,
)
from common import Call, Session, seconds
from numpy.typing import NDArray
from torch import Tensor, nn

import refqnn
from refqnn import Network, fhe
from refqnn.ops import Conv2d, Linear

BATCHES = (1, 64, 10_000)
ROUNDS = 5
LONG_ROUND = 5.0  # seconds; then two rounds do
SLICE = 500  # samples at a time for peers that hold a batch of images whole


# --- networks ---------------------------------------------------------------------------------


def mlp(bits: int, *sizes: int) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """The quantized and the float module of an MLP, and the shape of a sample."""
    quantized: list[nn.Module] = [_input(bits)]
    plain: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        if i:
            quantized.append(_relu(bits))
            plain.append(nn.ReLU())
        quantized.append(QuantLinear(n_in, n_out, bias=True, **_weight(bits)))
        plain.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*quantized), nn.Sequential(*plain), (sizes[0],)


def cnn(
    bits: int, shape: tuple[int, int, int], channels: tuple[int, ...], classes: int = 10
) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """3 x 3 convolutions with padding, ReLU, 2 x 2 max pooling after each; one dense layer."""
    n_in, height, width = shape
    quantized: list[nn.Module] = [_input(bits)]
    plain: list[nn.Module] = []
    for n_out in channels:
        conv = QuantConv2d(n_in, n_out, 3, padding=1, bias=True, **_weight(bits))
        quantized += [conv, _relu(bits), nn.MaxPool2d(2)]
        plain += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        n_in, height, width = n_out, height // 2, width // 2
    features = n_in * height * width
    quantized += [nn.Flatten(), QuantLinear(features, classes, bias=True, **_weight(bits))]
    plain += [nn.Flatten(), nn.Linear(features, classes)]
    return nn.Sequential(*quantized), nn.Sequential(*plain), shape


def _input(bits: int) -> nn.Module:
    return QuantIdentity(act_quant=Int8ActPerTensorFixedPoint, bit_width=bits)


def _relu(bits: int) -> nn.Module:
    return QuantReLU(act_quant=Uint8ActPerTensorFixedPoint, bit_width=bits)


def _weight(bits: int) -> dict[str, Any]:
    return {"weight_quant": Int8WeightPerTensorFixedPoint, "weight_bit_width": bits}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, nn.Module, tuple[int, ...]]]] = {
    "iris MLP 4-16-3, 3 bits": lambda: mlp(3, 4, 16, 3),
    "digits MLP 64-64-10, 3 bits": lambda: mlp(3, 64, 64, 10),
    "digits CNN 1x8x8, 8-16, 3 bits": lambda: cnn(3, (1, 8, 8), (8, 16)),
    "MNIST MLP 784-256-256-10, 4 bits": lambda: mlp(4, 784, 256, 256, 10),
    "MNIST MLP 784-1024-1024-10, 6 bits": lambda: mlp(6, 784, 1024, 1024, 10),
    "CIFAR CNN 3x32x32, 16-32-64, 4 bits": lambda: cnn(4, (3, 32, 32), (16, 32, 64)),
}
SIMULATED = ("iris MLP 4-16-3, 3 bits", "digits MLP 64-64-10, 3 bits")


class Subject:
    """One network, its peers' forms of it, and samples."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.name = name
        self.module, self.plain, self.shape = NETWORKS[name]()
        data = torch.randn(BATCHES[-1], *self.shape)
        self.module.train()
        for _ in range(3):  # the activation scales come from the statistics of these batches
            self.module(data[:256])
        self.module.eval()
        self.plain.eval()
        self.network = refqnn.from_brevitas(self.module, data[:2])
        self.data = data.numpy()
        self.codes = self.network.quantize_input(self.data)


# --- peers ------------------------------------------------------------------------------------


def peers(subject: Subject, n: int) -> Iterator[tuple[str, Call]]:
    """What to time on n samples, by name."""
    network, module, plain = subject.network, subject.module, subject.plain
    codes, floats = subject.codes[:n], subject.data[:n]
    tensor = torch.from_numpy(floats)
    yield "refqnn", lambda: network.forward(codes)
    yield "refqnn predict", lambda: network.predict(floats)
    yield "Brevitas", lambda: sliced(module, tensor)
    yield "torch float32", lambda: sliced(plain, tensor)
    session = onnxruntime_session(network)
    (name,) = (value.name for value in session.get_inputs())
    yield "onnxruntime", lambda: session.run(None, {name: floats})
    if n == 1 or n * prod(subject.shape) <= 64 * 3 * 32 * 32:
        run = qonnx_run(network, n)
        yield "qonnx", lambda: run(codes)
    if subject.name in SIMULATED and n <= 64:
        circuit = simulation(subject.name, network)
        yield "Concrete", lambda: circuit.simulate(codes)
    yield "BLAS limit", limit(subject, n)


@torch.no_grad()
def sliced(module: nn.Module, x: Tensor) -> Tensor:
    """The module on slices of images (a whole large batch is slower), vectors at once."""
    if x.ndim == 2 or len(x) <= SLICE:
        return module(x)
    return torch.cat([module(part) for part in x.split(SLICE)])


def onnxruntime_session(network: Network) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = refqnn.to_onnx(network, flavour="qcdq").SerializeToString()
    # This optimizer rounds float biases: other integers.
    return onnxruntime.InferenceSession(
        model, options, disabled_optimizers=["WeightBiasQuantization"]
    )


def qonnx_run(network: Network, n: int) -> Callable[[NDArray[np.int64]], NDArray[Any]]:
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    without_door = Network(
        network.nodes, input_shape=network.input_shape, input_format=network.input_format
    )
    model = ModelWrapper(refqnn.to_onnx(without_door, flavour="qonnx", batch=n))
    (name,), (out,) = ([v.name for v in ends] for ends in (model.graph.input, model.graph.output))

    def run(codes: NDArray[np.int64]) -> NDArray[Any]:
        return execute_onnx(model, {name: codes.astype(np.float32)})[out]

    return run


_circuits: dict[str, Any] = {}


def simulation(name: str, network: Network) -> Any:
    if name not in _circuits:
        _circuits[name] = fhe.compile(network)
    return _circuits[name]


def limit(subject: Subject, n: int) -> Call:
    """The products of all layers for n samples, each in the fastest form there is here."""
    forms = []
    for node in subject.network.nodes:
        if isinstance(node.op, (Linear, Conv2d)):
            weight = node.op.weight.reshape(len(node.op.weight), -1).astype(np.float32)
            columns = n * prod(subject.network.shapes[node.name][1:])
            forms.append(min(products(weight, columns), key=lambda form: seconds(form, 0.001)[1]))

    def multiply() -> None:
        for form in forms:
            form()

    return multiply


def products(weight: NDArray[np.float32], columns: int) -> Iterator[Call]:
    """weight [out, K] @ x [K, columns] in slices of columns, and x.T @ weight.T."""
    for width in sorted({min(columns, width) for width in (64, 256, 1024, 4096, columns)}):
        if width * weight.shape[1] > 2**25:
            continue
        x = np.random.default_rng(0).integers(0, 8, (weight.shape[1], width)).astype(np.float32)
        for a, b in ((weight, x), (np.ascontiguousarray(x.T), np.ascontiguousarray(weight.T))):
            out = np.empty((len(a), b.shape[1]), np.float32)

            def multiply(a: Any = a, b: Any = b, out: Any = out, width: int = width) -> None:
                for _ in range(-(-columns // width)):
                    np.matmul(a, b, out=out)

            yield multiply


# --- measurement ------------------------------------------------------------------------------


def check(subject: Subject) -> dict[str, float]:
    """Share of outputs that agree, by peer; anything below 1 is a bug of somebody."""
    n = 64
    network, codes = subject.network, subject.codes[:n]
    expected = network.forward(codes)
    with torch.no_grad():
        floats = subject.module(torch.from_numpy(subject.data[:n])).numpy()
    session = onnxruntime_session(network)
    (name,) = (value.name for value in session.get_inputs())
    got = {
        "Brevitas": floats == network.dequantize_output(expected),
        "specification": network.trace(codes)[network.output] == expected,
        "onnxruntime": session.run(None, {name: subject.data[:n]})[0] == expected,
        "qonnx": qonnx_run(network, n)(codes) == expected,
    }
    if subject.name in SIMULATED:
        got["Concrete"] = simulation(subject.name, network).simulate(codes) == expected
    return {peer: float(np.mean(agrees)) for peer, agrees in got.items()}


def measure(subject: Subject, n: int) -> dict[str, dict[str, float]]:
    """Seconds and processor seconds of one call of each peer: the least over the rounds."""
    calls = dict(peers(subject, n))
    best = {peer: seconds(call, 0.0) for peer, call in calls.items()}  # warms up, too
    for _ in range(ROUNDS if sum(best.values())[0] < LONG_ROUND else 2):
        for peer, call in calls.items():
            best[peer] = np.minimum(best[peer], seconds(call))
    return {
        key: {peer: float(times[i]) for peer, times in best.items()}
        for i, key in enumerate(("seconds", "cpu_seconds"))
    }


def peak_mib(subject: Subject) -> dict[str, float]:
    """MiB that a call of 10,000 samples adds to the process, its inputs not counted."""
    calls = dict(peers(subject, BATCHES[-1]))
    return {peer: added_mib(calls[peer]) for peer in ("refqnn", "Brevitas", "torch float32")}


def added_mib(call: Call) -> float:
    """The highest resident memory during a call minus that before it (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed counts again
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A field of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def import_seconds() -> dict[str, float]:
    """Of numpy, refqnn and the core's names, in fresh interpreters, whose start counts."""

    def one(package: str) -> float:
        command = [sys.executable, "-c", f"import {package}"]
        return float(seconds(lambda: subprocess.run(command, check=True), 0.0)[0])

    packages = ("numpy", "refqnn", "refqnn.network")
    rounds = [{package: one(package) for package in packages} for _ in range(9)]
    return {package: min(taken[package] for taken in rounds) for package in packages}


# --- results ----------------------------------------------------------------------------------


def summary(results: list[dict[str, Any]], key: str) -> dict[str, float]:
    """The least favourable ratio over the networks, for each claim, in `key`."""

    def ratios(slow: str, fast: str, *batches: int) -> list[float]:
        times = [result[key] for result in results if result["batch"] in batches]
        return [t[slow] / t[fast] for t in times if slow in t and fast in t]

    return {
        "Brevitas / refqnn, least, batch 1": min(ratios("Brevitas", "refqnn", 1)),
        "Brevitas / refqnn, least, any batch": min(ratios("Brevitas", "refqnn", *BATCHES)),
        "Brevitas / refqnn predict, least": min(ratios("Brevitas", "refqnn predict", *BATCHES)),
        "Concrete / refqnn, least, batch 1": min(ratios("Concrete", "refqnn", 1)),
        "Concrete / refqnn, least, batch 64": min(ratios("Concrete", "refqnn", 64)),
        "refqnn / torch, most, batch 10,000": max(ratios("refqnn", "torch float32", BATCHES[-1])),
        "refqnn / BLAS, most, batch 10,000": max(ratios("refqnn", "BLAS limit", BATCHES[-1])),
    }


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """One panel per batch size: how many times the time of refqnn each peer takes, log axis."""
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    names = list(dict.fromkeys(result["network"] for result in results))
    shown = [p for p in PEERS if p != "refqnn"]
    fig, panels = figure(12, 4.8, columns=len(BATCHES))
    for axes, n in zip(panels, BATCHES):
        for result in results:
            if result["batch"] != n:
                continue
            row = names.index(result["network"])
            for i, peer in enumerate(shown):
                if peer in result["seconds"]:
                    ratio = result["seconds"][peer] / result["seconds"]["refqnn"]
                    height = row + (i - (len(shown) - 1) / 2) * 0.1
                    label = peer if row == 0 else None
                    colour = "black" if peer == "BLAS limit" else COLOURS[i]
                    axes.plot(ratio, height, MARKERS[i], color=colour, ms=7, label=label)
        axes.axvline(1, color="grey", linewidth=1)
        axes.set_xscale("log")
        axes.set_yticks(range(len(names)), [name.replace(", ", "\n", 1) for name in names])
        axes.set_title(f"batch of {n:,}, {ROUNDS} rounds")
        axes.invert_yaxis()
        axes.label_outer()
    told = "time / time of refqnn forward (no unit; right of 1: slower than refqnn)"
    panels[len(panels) // 2].set_xlabel(told)
    legend_below(panels[0])
    save_figure(fig, path)


PEERS = (
    "refqnn",
    "refqnn predict",
    "Brevitas",
    "torch float32",
    "onnxruntime",
    "qonnx",
    "Concrete",
    "BLAS limit",
)
MARKERS = "os^Dv<|"


def main() -> None:
    session = Session("clear_speed", __doc__, "two networks, nothing written")
    torch.set_num_threads(1)
    report = session.say

    report("about 2 minutes; milliseconds of one call, in brackets as multiples of refqnn's")
    results, agreement, peaks = [], {}, {}
    for name in list(NETWORKS)[: 2 if session.quick else None]:
        subject = Subject(name)
        agreement[name] = check(subject)
        report(f"{name}: outputs that agree {agreement[name]}")
        for n in BATCHES:
            results.append({"network": name, "batch": n, **measure(subject, n)})
            times = results[-1]["seconds"]
            cells = (f"{p} {1e3 * t:.4g} ({t / times['refqnn']:.3g})" for p, t in times.items())
            report(f"  batch {n}: " + ", ".join(cells))
        peaks[name] = peak_mib(subject)
        report(f"  MiB added by a batch of {BATCHES[-1]}: {peaks[name]}")
    summaries = {key: summary(results, key) for key in ("seconds", "cpu_seconds")}
    for claim, ratio in summaries["seconds"].items():
        cpu = summaries["cpu_seconds"][claim]
        report(f"{claim}: {ratio:.3g} (by processor time {cpu:.3g})")
    if session.quick:
        return
    imports = import_seconds()
    report(f"import: {imports}, ratio {imports['refqnn'] / imports['numpy']:.2f}")
    content = {
        "threads": 1,
        "import_seconds": imports,
        "rounds": ROUNDS,
        "summary": summaries,
        "agreement": agreement,
        "added_mib": peaks,
        "results": results,
    }
    plot(results, session.write(content))


if __name__ == "__main__":
    main()
