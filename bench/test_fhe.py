"""Encrypted inference against clear inference, against its limit, and against the peer's circuits.

    refqnn bench fhe          # 26 minutes on two idle cores; tables and figure
    pytest bench/test_fhe.py --benchmark-enable --benchmark-json=fhe.json

Every network runs as float, integer, simulated and encrypted, and once more in the peer's
construction (bench/fhe_peer.py).  Latencies are of one sample; `extra_info` holds the rest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("concrete.fhe", reason="needs the fhe extra")
torch = pytest.importorskip("torch", reason="needs the train extra")

from fhe_networks import Trained, trained  # noqa: E402
from fhe_peer import compile_peer  # noqa: E402

from refqnn import IntFormat, Linear, Network, Node, Requantize, fhe  # noqa: E402
from refqnn.fhe.estimation import calibrate  # noqa: E402
from refqnn.fhe.memory import key_sizes  # noqa: E402
from refqnn.fhe.tables import Drop  # noqa: E402

# Encrypted samples of each network: the whole test set where that takes seconds.
OURS = {
    "iris": 30,
    "breast_cancer": 114,
    "digits": 40,
    "digits CNN": 10,
    "iris target": 30,
    "breast_cancer target": 40,
    "digits target": 10,
    "digits alone": 360,
    "iris w3a3": 10,
    "breast_cancer w3a3": 10,
    "digits w3a3": 10,
    "iris dense": 5,
    "breast_cancer dense": 3,
    "digits dense": 2,
}
PEER = {name: min(samples, 5) for name, samples in OURS.items()}
TENSOR = 32  # accumulators of the circuit that prices a lookup


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_float(benchmark: Any, name: str) -> None:
    """The float twin in torch, one sample."""
    of = _start(benchmark, name, "float")
    sample = torch.as_tensor(of.X_test[:1])
    with torch.no_grad():
        benchmark(of.float_module, sample)
        outputs = of.float_module(torch.as_tensor(of.X_test)).numpy()
    benchmark.extra_info["accuracy"] = of.accuracy_of(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_integer(benchmark: Any, name: str) -> None:
    """Network.forward, one sample."""
    of = _start(benchmark, name, "integer")
    benchmark(of.network.forward, of.codes[:1])
    benchmark.extra_info["accuracy"] = of.accuracy


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_simulated(benchmark: Any, name: str) -> None:
    """The circuit in clear, one sample."""
    of = _start(benchmark, name, "simulated")
    circuit = _circuit(name)
    few = of.codes[:20]
    benchmark.pedantic(circuit.simulate, args=(of.codes[:1],), rounds=5, warmup_rounds=1)
    np.testing.assert_array_equal(circuit.simulate(few), of.network.forward(few))


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_encrypted(benchmark: Any, name: str) -> None:
    """Encrypt, run, decrypt one sample with real keys."""
    of = _start(benchmark, name, "encrypted")
    circuit = _circuit(name)
    _reset_peak_memory()
    keygen_seconds = circuit.keygen()
    outputs = _each(benchmark, of, OURS[name], lambda x: circuit.execute(x[None])[0])
    expected = of.network.forward(of.codes[: OURS[name]])
    ciphertext = circuit.encrypt(of.codes[0])
    benchmark.extra_info.update(
        accuracy=of.accuracy_of(outputs),
        compared_samples=len(outputs),
        wrong_samples=_wrong(outputs, expected),
        keygen_seconds=keygen_seconds,
        evaluation_key_bytes=circuit.evaluation_key_bytes,
        input_bytes=len(ciphertext.serialize()),
        output_bytes=len(circuit.run(ciphertext).serialize()),
        peak_memory_bytes=_peak_memory(),
        pbs={str(bits): n for bits, n in circuit.pbs.items()},
        complexity=circuit.complexity,
        failure_probability=circuit.global_p_error,
        estimated_seconds=circuit.work * _seconds_per_work(),
        limit_seconds=_limit(_all_looked_up(name)),
        certified_bits=max(layer.span_bits for layer in _all_looked_up(name).layers),
        neurons_of_one_input=sum(circuit.lowered.without_lookup.values()),
        output_bits=circuit.lowered.output_bits,
    )
    assert _wrong(outputs, expected) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PEER)
@pytest.mark.parametrize("form", ["peer", "peer, 2^-128"])
def test_peer(benchmark: Any, name: str, form: str) -> None:
    """The peer's construction of the same network, encrypted: at its own failure probability of
    2^-40 for each lookup, and at ours for each inference."""
    of = _start(benchmark, name, form)
    circuit = compile_peer(of.network, of.inputset[:500], None if form == "peer" else 2.0**-128)
    start = time.perf_counter()
    circuit.keygen()
    keygen_seconds = time.perf_counter() - start
    outputs = _each(benchmark, of, PEER[name], circuit.encrypt_run_decrypt)
    expected = of.network.forward(of.codes[: PEER[name]])
    sizes = key_sizes(circuit.client.specs.serialize())
    benchmark.extra_info.update(
        compared_samples=len(outputs),
        wrong_samples=_wrong(outputs, expected),
        keygen_seconds=keygen_seconds,
        evaluation_key_bytes=sizes.travelling,
        pbs={"all": circuit.programmable_bootstrap_count},
        complexity=float(circuit.complexity),
    )


# --- pieces -------------------------------------------------------------------------------------


def _start(benchmark: Any, name: str, form: str) -> Trained:
    of = trained(name)
    benchmark.group = name
    benchmark.extra_info["form"] = form
    return of


PUBLIC = ("breast_cancer", "digits alone")  # sums of levels alone, which no secret model is


@cache
def _circuit(name: str) -> fhe.Circuit:
    return fhe.compile(trained(name).network, model="public" if name in PUBLIC else "secret")


@cache
def _all_looked_up(name: str) -> fhe.Circuit:
    """Neurons of one input, too; where there are none, the same circuit."""
    circuit = _circuit(name)
    if not circuit.lowered.without_lookup:
        return circuit
    return fhe.compile(trained(name).network, input_levels=False)


def _each(
    benchmark: Any, of: Trained, samples: int, run: Callable[[NDArray[np.int64]], Any]
) -> NDArray[np.int64]:
    """Outputs of the first samples, one a round; the first of all unpacks the keys, untimed."""
    run(of.codes[0])
    remaining = iter(of.codes[:samples])
    outputs = []
    benchmark.pedantic(lambda: outputs.append(run(next(remaining))), rounds=samples, iterations=1)
    return np.stack(outputs)


def _wrong(outputs: NDArray[np.int64], expected: NDArray[np.int64]) -> int:
    return int((outputs != expected).any(axis=1).sum())


def _limit(circuit: fhe.Circuit) -> float | None:
    """Sum over the lookups, one for every neuron, of their price in a full tensor, all cores; None
    for other methods."""
    if any(layer.method != "drop" for layer in circuit.layers):
        return None
    return sum(layer.neurons * _seconds(layer.bits, layer.shift) for layer in circuit.layers)


@cache
def _seconds_per_work() -> float:
    return calibrate(force=True)


@cache
def _seconds(bits: int, shift: int) -> float:
    """One accumulator of `bits` bits behind its lookups, in a tensor of `TENSOR`, all cores."""
    network = _tensor_of_lookups(bits, shift)
    circuit = fhe.compile(network, choose=lambda _, found: _drop(found, shift), input_levels=False)
    (layer,) = circuit.layers
    assert (layer.neurons, layer.bits, layer.shift) == (TENSOR, bits, shift)
    circuit.keygen()
    sample = np.zeros((1, *network.input_shape), dtype=np.int64)
    circuit.execute(sample)
    ciphertext = circuit.encrypt(sample[0])
    times = []
    for _ in range(5):
        start = time.perf_counter()
        circuit.run(ciphertext)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) / TENSOR


def _drop(found: list[Any], shift: int) -> Any:
    return next(form for form in found if isinstance(form, Drop) and form.shift == shift)


def _tensor_of_lookups(bits: int, shift: int) -> Network:
    """`TENSOR` different neurons that span `bits` bits, `shift` of them below every threshold."""
    rng = np.random.default_rng(0)
    inputs, codes = IntFormat(2, signed=False), IntFormat(min(3, bits - shift - 1), signed=False)
    ones = max(1, ((1 << bits) - 1) // inputs.q_max)
    weight = np.zeros((TENSOR, max(2 * ones, 16)), dtype=np.int64)
    thresholds = np.zeros((TENSOR, codes.levels - 1), dtype=np.int64)
    blocks = np.arange(1, ((ones * inputs.q_max) >> shift) + 1)
    for row in range(TENSOR):
        mine = rng.choice(weight.shape[1], ones, replace=False)
        weight[row, mine] = rng.choice([-1, 1], ones)
        lowest = np.minimum(weight[row], 0).sum() * inputs.q_max
        chosen = np.sort(rng.choice(blocks, codes.levels - 1, replace=False))
        thresholds[row] = lowest + (chosen << shift)
    last = np.kron(np.eye(TENSOR // 4, dtype=np.int64), np.ones((1, 4), dtype=np.int64))
    nodes = [
        Node("fc0", Linear(weight)),
        Node("act0", Requantize(thresholds, codes)),
        Node("fc1", Linear(last)),
    ]
    return Network(nodes, input_shape=weight.shape[1:], input_format=inputs)


def _reset_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Bytes of resident memory at most since the reset."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
