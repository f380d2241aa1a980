"""The whole road on one data set: train, convert, prove, compile, encrypt, compare each integer.

    float           a torch MLP of the same sizes, for the accuracy that quantization gives up
    QAT             the Brevitas module, in evaluation mode
    integer         the numpy Network made from it
    simulated       the Concrete circuit, without encryption
    encrypted       the same circuit with real keys, on a few samples

Each stage is compared with the one before it, integer by integer; `Demo.mismatches` counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.accumulator import Certificate, certify, observed
from refqnn.errors import InvalidArgument, mismatch
from refqnn.formats import signed_bits
from refqnn.network import Network

if TYPE_CHECKING:
    from torch import nn

    from refqnn.training import loop

__all__ = ["DATASETS", "Agreement", "Demo", "LayerBits", "Reporter", "run"]

NARROW = ("iris", "breast_cancer", "digits")
DATASETS = ("iris", "breast_cancer", "digits", "moons", "checkerboard")

T = TypeVar("T")
Advance = Callable[[str], None]


class Reporter(Protocol):
    """Where progress goes."""

    def stage(self, title: str, total: int | None) -> AbstractContextManager[Advance]:
        """Open a stage of `total` steps (None: unknown); its value is called after each step."""


@dataclass(frozen=True)
class Agreement:
    """How many of `total` integers of one stage differ from the stage before."""

    stage: str
    differing: int
    total: int


@dataclass(frozen=True)
class LayerBits:
    """Accumulator width of one layer, as a two's complement integer."""

    layer: str
    neurons: int
    certified: int  # for every input
    observed: int  # on the test set
    span: int  # certified, after the best constant is added


@dataclass(frozen=True)
class Demo:
    """What one run measured.  Times in seconds, sizes in bytes."""

    dataset: str
    seed: int
    test_samples: int
    encrypted_samples: int
    accuracy: dict[str, float]
    mismatches: list[Agreement]
    bits: list[LayerBits]
    pbs: dict[int, int]
    seconds: dict[str, float]
    encrypted_seconds_per_sample: float
    clear_samples_per_second: float
    clear_form: str  # what a sample costs there: "numpy", or one look at "a table of all inputs"
    evaluation_key_bytes: int

    @property
    def exact(self) -> bool:
        """No integer differs anywhere."""
        return all(stage.differing == 0 for stage in self.mismatches)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dump."""
        return {**asdict(self), "exact": self.exact}


@dataclass(frozen=True)
class Run:
    """A finished run: what it measured, and the objects for a closer look or a plot."""

    demo: Demo
    network: Network
    certificate: Certificate
    X_test: NDArray[np.float32]
    y_test: NDArray[np.int64]


def run(
    dataset: str,
    report: Reporter,
    *,
    seed: int = 0,
    encrypted_samples: int | None = None,
    quick: bool = False,
) -> Run:
    """Walk the whole road on one data set.

    Args:
        dataset: one of `DATASETS`.
        report: receives progress.
        seed: of the split, the initial weights and the shuffling.
        encrypted_samples: how many test samples run encrypted, at least 1; by default 5, or 1 when
            quick.
        quick: the narrow network, a third of the epochs: every stage runs, accuracy is not the aim.

    Raises: InvalidArgument; MissingExtra without the `train` and `fhe` extras.
    """
    if dataset not in DATASETS:
        raise InvalidArgument(mismatch("dataset", repr(dataset), f"one of {', '.join(DATASETS)}"))
    if encrypted_samples is None:
        encrypted_samples = 1 if quick else 5
    if encrypted_samples < 1:
        raise InvalidArgument(mismatch("encrypted_samples", encrypted_samples, "at least 1"))
    from refqnn import datasets, fhe
    from refqnn.brevitas import from_brevitas, verify_against
    from refqnn.training import loop

    data = datasets.load(dataset, seed)
    config = _quick(dataset) if quick else loop.demo_config(dataset)
    seconds: dict[str, float] = {}

    def timed(title: str, work: Callable[[Advance], T], total: int | None = None) -> T:
        start = time.perf_counter()
        with report.stage(title, total) as advance:
            result = work(advance)
        seconds[title] = time.perf_counter() - start
        return result

    def train(module: nn.Module, epochs: int, advance: Advance) -> None:
        def on_epoch(epoch: int, loss: float, accuracy: float) -> None:
            advance(f"loss {loss:.3f}  train accuracy {accuracy:.3f}")

        settings: dict[str, Any] = {**config.training, "epochs": epochs}
        loop.fit(module, data.X_train, data.y_train, seed=seed, on_epoch=on_epoch, **settings)

    with _one_thread():
        twin = loop.build_float(config, data.n_features, data.n_outputs, seed)
        module = loop.build(config, data.n_features, data.n_outputs, seed)
        epochs, float_epochs = config.epochs, config.float_epochs
        timed("train float twin", lambda a: train(twin, float_epochs, a), float_epochs)
        timed("train quantized (QAT)", lambda a: train(module, epochs, a), epochs)

    X, y = data.X_test, data.y_test
    network: Network = timed("convert", lambda _: from_brevitas(module, data.X_train[:2]))
    certificate: Certificate = timed("certify accumulators", lambda _: certify(network))
    comparison = timed("compare with Brevitas", lambda _: verify_against(module, network, X))

    codes = network.quantize_input(X)
    acc = network.forward(codes)
    circuit = timed("compile circuit", lambda _: fhe.compile(network, certificate=certificate))
    simulated = timed("simulate test set", lambda _: circuit.simulate(codes))
    timed("generate keys", lambda _: circuit.keygen())
    few = min(encrypted_samples, len(codes))
    marks = [time.perf_counter()]

    def execute(advance: Advance) -> NDArray[np.int64]:
        def on_sample(detail: str) -> None:
            marks.append(time.perf_counter())
            advance(detail)

        marks[0] = time.perf_counter()
        outputs: NDArray[np.int64] = circuit.execute(codes[:few], on_sample=on_sample)
        return outputs

    encrypted = timed("encrypted inference", execute, few)

    def accuracy(outputs: ArrayLike) -> float:
        return _accuracy(np.asarray(outputs), y)

    demo = Demo(
        dataset=dataset,
        seed=seed,
        test_samples=len(X),
        encrypted_samples=few,
        accuracy={
            "float": accuracy(loop.predict(twin, X)),
            "QAT": accuracy(loop.predict(module, X)),
            "integer": accuracy(network.dequantize_output(acc)),
            "simulated": accuracy(network.dequantize_output(simulated)),
            "encrypted": accuracy(network.dequantize_output(encrypted)),
        },
        mismatches=[
            *(
                Agreement(f"QAT = integer at {layer.name}", layer.codes - layer.equal, layer.codes)
                for layer in comparison.layers
            ),
            _agreement("integer = simulated", acc, simulated),
            _agreement("simulated = encrypted", simulated[:few], encrypted),
        ],
        bits=_bits(network, certificate, codes),
        pbs=dict(circuit.pbs),
        seconds=seconds,
        # The median: the first sample also unpacks the evaluation keys.
        encrypted_seconds_per_sample=float(np.median(np.diff(marks))),
        clear_samples_per_second=_throughput(network, codes),
        clear_form="a table of all inputs" if network.is_a_table else "numpy",
        evaluation_key_bytes=circuit.evaluation_key_bytes,
    )
    return Run(demo, network, certificate, X, y)


def _quick(dataset: str) -> loop.DemoConfig:
    """The settings of a quick run."""
    from refqnn.training import loop

    config = loop.demo_config(dataset, narrow=dataset in NARROW)
    return replace(
        config, epochs=max(1, config.epochs // 3), float_epochs=max(1, config.float_epochs // 3)
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small train faster on one core, and the same on every machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _accuracy(outputs: NDArray[Any], y: NDArray[np.int64]) -> float:
    """Share of right classes; `outputs` may stop early (encrypted samples)."""
    return float((outputs.argmax(axis=1) == y[: len(outputs)]).mean())


def _agreement(stage: str, expected: NDArray[Any], got: NDArray[Any]) -> Agreement:
    return Agreement(stage, int((expected != got).sum()), int(expected.size))


def _bits(network: Network, certificate: Certificate, codes: NDArray[np.int64]) -> list[LayerBits]:
    seen = observed(network, codes)
    return [
        LayerBits(
            layer=row.layer,
            neurons=row.neurons,
            certified=row.signed_bits,
            observed=signed_bits(*seen[row.layer].ends),
            span=row.span_bits,
        )
        for row in certificate.table()
    ]


def _throughput(network: Network, codes: NDArray[np.int64], samples: int = 10_000) -> float:
    """Samples per second of `Network.forward` on one large batch, the best of three."""
    batch = np.resize(codes, (samples, *network.input_shape))
    network.forward(batch)  # prepares tables
    times = []
    for _ in range(3):
        start = time.perf_counter()
        network.forward(batch)
        times.append(time.perf_counter() - start)
    return samples / min(times)
