"""Real keys, real ciphertexts: the decrypted integers equal Network.forward."""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import fhe_networks as nets
import numpy as np
import pytest
from concrete import fhe as concrete_fhe
from fhe_networks import U2, U3

from refqnn import IntFormat, Linear, Network, Node, PowerOfTwoQuantizer, Requantize, fhe
from refqnn.errors import CircuitError, FileFormatError, OutOfRange
from refqnn.fhe import memory
from refqnn.fhe.interrupts import held_back


@pytest.fixture(scope="module")
def dense() -> fhe.Circuit:
    """A dense network with signed float doors and bits to remove; keys made once."""
    base = nets.mlp(2, sizes=(4, 8, 3), largest=1, codes=U2, shift=1)
    quantizer = PowerOfTwoQuantizer(-1, U2, rounding="half_even")
    network = Network(base.nodes, input_shape=(4,), input_quantizer=quantizer)
    circuit = fhe.compile(network)
    circuit.keygen()
    return circuit


def test_dense(dense: fhe.Circuit) -> None:
    network = dense.network
    codes = np.concatenate([nets.witnesses(network)[[0, 8]], nets.samples(network, 2)[-2:]])
    said: list[str] = []
    got = dense.execute(codes, on_sample=said.append)
    np.testing.assert_array_equal(got, network.forward(codes))
    assert len(said) == len(codes)


def test_step_by_step(dense: fhe.Circuit) -> None:
    codes = np.array([3, 0, 1, 2])
    result = dense.decrypt(dense.run(dense.encrypt(codes)))
    np.testing.assert_array_equal(result, dense.network.forward(codes[None])[0])
    with pytest.raises(OutOfRange):
        dense.encrypt([0, 0, 0, 4])


@pytest.mark.skipif(memory._mallopt is None, reason="of glibc")
@pytest.mark.parametrize("of", ["circuit", pytest.param("server", marks=pytest.mark.slow)])
def test_memory_is_kept_between_runs(dense: fhe.Circuit, of: str, tmp_path: Path) -> None:
    ciphertext = dense.encrypt(nets.samples(dense.network, 1)[0])
    run = partial(dense.run, ciphertext)
    if of == "server":
        dense.save_server(tmp_path / "server")
        server = fhe.Server.load(tmp_path / "server")
        server.load_keys(dense._concrete.client.evaluation_keys.serialize())
        run = partial(server.run, ciphertext.serialize())
    for _ in range(2):
        run()
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages
    assert 10 * pages * resource.getpagesize() < dense.key_sizes.bootstrap


def test_convolution() -> None:
    circuit = nets.encrypted_cnn()
    network = circuit.network
    codes = nets.samples(network, 1)[-2:]
    np.testing.assert_array_equal(circuit.execute(codes), network.forward(codes))


def test_arbitrary_thresholds() -> None:
    base = nets.mlp(4, sizes=(4, 4, 2))
    thresholds = [[-20, -3, 5], [-11, 0, 9], [-8, -7, 20], [1, 14, 23]]
    fc0, _, fc1 = base.nodes
    act = Node("act0", Requantize(thresholds, U2))
    network = Network([fc0, act, fc1], input_shape=(4,), input_format=U3)
    circuit = fhe.compile(network, **nets.LOOSE)
    assert {"carry", "split"} & {layer.method for layer in circuit.layers}
    codes = nets.witnesses(network)[:2]
    np.testing.assert_array_equal(circuit.execute(codes), network.forward(codes))


def test_the_usual_way_fails_silently_where_ours_does_not() -> None:
    """Widths from samples: wrong integers for inputs beyond them, and no error."""
    network = Network(
        [
            Node("fc0", Linear([[1, 1, 1, 1]])),
            Node("act0", Requantize.from_shift(0, IntFormat(4, signed=False))),
            Node("fc1", Linear([[1]])),
        ],
        input_shape=(4,),
        input_format=U2,
    )
    witness = np.array([[3, 3, 3, 3]])
    expected = network.forward(witness)

    def usual(x: concrete_fhe.tracing.Tracer) -> concrete_fhe.tracing.Tracer:
        return concrete_fhe.univariate(lambda acc: np.clip(acc, 0, 15))(x @ np.ones((4, 1), int))

    few = [np.array([i % 2, 1, 0, 1]) for i in range(4)]
    sampled = concrete_fhe.Compiler(usual, {"x": "encrypted"}).compile(few)
    with held_back():
        assert sampled.simulate(witness[0]).tolist() != expected[0].tolist()
    np.testing.assert_array_equal(fhe.compile(network).simulate(witness), expected)


# --- client and server ------------------------------------------------------------------------

CLIENT = """
import sys
sys.modules["torch"] = None  # any import of it fails
from pathlib import Path
import numpy as np
from refqnn.fhe import Client

folder, step = Path(sys.argv[1]), sys.argv[2]
client = Client.load(folder / "client")
if step == "ask":
    client.save_keys(folder / "keys")
    (folder / "evaluation").write_bytes(client.evaluation_keys())
    codes = client.quantize(np.load(folder / "X.npy"))
    for i, sample in enumerate(codes):
        (folder / f"request{i}").write_bytes(client.encrypt(sample))
else:
    client.load_keys(folder / "keys")
    acc = [client.decrypt((folder / f"answer{i}").read_bytes()) for i in range(2)]
    np.save(folder / "acc.npy", np.stack(acc))
"""

SERVER = """
import sys
from pathlib import Path
from refqnn.fhe import Server

folder = Path(sys.argv[1])
server = Server.load(folder / "server")
server.load_keys((folder / "evaluation").read_bytes())
for i in range(2):
    answer = server.run((folder / f"request{i}").read_bytes())
    (folder / f"answer{i}").write_bytes(answer)
"""


def run_process(program: str, *arguments: object) -> None:
    command = [sys.executable, "-c", program, *(str(a) for a in arguments)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow  # tests/training/test_deployment.py has the same for estimators
def test_two_processes(dense: fhe.Circuit, tmp_path: Path) -> None:
    X = np.array([[0.0, 0.6, 1.5, 9.0], [-3.0, 1.0, 0.25, 0.75]])
    client, server = tmp_path / "home", tmp_path / "cloud"
    client.mkdir()
    server.mkdir()
    np.save(client / "X.npy", X)
    dense.save_client(client / "client")
    dense.save_server(server / "server")

    run_process(CLIENT, client, "ask")
    for name in ("evaluation", "request0", "request1"):
        (client / name).rename(server / name)
    run_process(SERVER, server)
    for name in ("answer0", "answer1"):
        (server / name).rename(client / name)
    run_process(CLIENT, client, "read")

    expected = dense.network.forward(dense.network.quantize_input(X))
    np.testing.assert_array_equal(np.load(client / "acc.npy"), expected)
    assert (client / "keys").stat().st_mode & 0o077 == 0
    assert not (server / "keys").exists()


def test_files_are_checked(dense: fhe.Circuit, tmp_path: Path) -> None:
    dense.save_client(tmp_path / "client")
    with pytest.raises(FileFormatError, match="format"):
        fhe.Server.load(tmp_path / "client")
    whole = (tmp_path / "client").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError):
        fhe.Client.load(tmp_path / "half")
    dense.save_server(tmp_path / "server")
    with pytest.raises(CircuitError, match="keys"):
        fhe.Server.load(tmp_path / "server").run(b"")


def test_the_client_file_holds_no_weights(dense: fhe.Circuit, tmp_path: Path) -> None:
    dense.save_client(tmp_path / "client")
    client = fhe.Client.load(tmp_path / "client")
    assert [node.op.kind for node in client.doors.nodes] == ["Reshape"]
    dense.save_server(tmp_path / "server")
    assert client.circuit == fhe.Server.load(tmp_path / "server").circuit


# --- many samples -----------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_keep_the_order(dense: fhe.Circuit) -> None:
    codes = nets.samples(dense.network, 6)[-6:]
    got = dense.execute(codes, n_jobs=2)
    np.testing.assert_array_equal(got, dense.network.forward(codes))


@pytest.mark.slow
def test_dask(dense: fhe.Circuit) -> None:
    distributed = pytest.importorskip("distributed")
    joblib = pytest.importorskip("joblib")
    codes = nets.samples(dense.network, 6)[-6:]
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        got = dense.execute(codes, n_jobs=2)
    np.testing.assert_array_equal(got, dense.network.forward(codes))


@pytest.mark.slow
def test_hundreds_of_encrypted_samples(dense: fhe.Circuit) -> None:
    codes = nets.samples(dense.network, 200)
    np.testing.assert_array_equal(dense.execute(codes), dense.network.forward(codes))
