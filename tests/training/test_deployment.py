"""An estimator deployed: raw rows in, labels or targets out, wherever its network goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import preprocessing
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import refqnn
from refqnn import exact
from refqnn.doors import Features, Predictions
from refqnn.errors import (
    FileFormatError,
    InvalidArgument,
    InvalidType,
    NotCompiled,
    NotCovered,
    ShapeMismatch,
)
from refqnn.formats import IntFormat
from refqnn.training import (
    FloatNeuralNetClassifier,
    NeuralNetClassifier,
    NeuralNetRegressor,
    deploy,
    estimator_files,
    folded,
)

IRIS = load_iris()
SMALL = {"module__fan_in": 1, "module__hidden_sizes": (6,), "max_epochs": 2}
QUICK = {**SMALL, "verbose": 0, "random_state": 0}
GREATEST = float(np.finfo(np.float32).max)
# Encrypted: two lookups a row, and keys that nobody is to be safe from.
CHEAP = {**QUICK, "module__hidden_sizes": (2,)}
LOOSE = {"global_p_error": 2.0**-30}

pytestmark = pytest.mark.usefixtures("short_epochs")


def odd_rows(n: int = 300, seed: int = 0) -> np.ndarray:
    """Features of 1e9 and 1e-9, a constant one, a large one that varies little, one of integers."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 6))
    z[:, 2] = 0.1
    return z * [1e9, 1e-9, 1.0, 5.0, 1.0, 40.0] + [0.0, 0.0, 0.0, 1e4, -3.0, 7.0]


def fitted(kind: str, **parameters: object) -> tuple:
    """An estimator, and rows that it did not see."""
    X = odd_rows()
    signal = X[:, 0] / 1e9 + X[:, 1] * 1e9
    if kind == "regressor":
        model = NeuralNetRegressor(**{**QUICK, **parameters}).fit(X, 1e5 + 300.0 * signal)
    elif kind == "regressor of two":
        y = np.stack([1e5 + 300.0 * signal, 1e-7 * X[:, 4]], axis=1)
        model = NeuralNetRegressor(**{**QUICK, **parameters}).fit(X, y)
    else:
        names = {
            "text": ["no", "yes", "über"],
            "objects": np.array(["a", "bb", "ccc"], dtype=object),
            "numbers": [5, -2, 300],
            "truth": [False, True, True],
        }[kind]
        y = np.asarray(names)[np.digitize(signal, [-0.5, 0.5])]
        model = NeuralNetClassifier(**{**QUICK, **parameters}).fit(X, y)
    return model, np.vstack([odd_rows(50, seed=1), X[:5] * 1e3, -X[:5]])


KINDS = ["text", "objects", "numbers", "truth", "regressor", "regressor of two"]


def of_the_network(network: refqnn.Network, X: np.ndarray) -> np.ndarray:
    """Answers by the doors of a network alone."""
    return network.output_dequantizer.predict(network.forward(network.quantize_input(X)))


# --- the input door -----------------------------------------------------------------------------


def around(value: np.float32, steps: int = 40) -> np.ndarray:
    """Every float32 within some steps of one, and the same further away."""
    found = [value]
    for side in (-np.inf, np.inf):
        at = value
        for _ in range(steps):
            at = np.nextafter(at, np.float32(side))
            found.append(at)
    found += [value * np.float32(0.999), value * np.float32(1.001)]
    return np.array(found, dtype=np.float32)


@pytest.mark.parametrize("power_of_two", [True, False])
def test_the_door_is_the_estimators_own_arithmetic(power_of_two: bool) -> None:
    """On every float32 near every threshold, in float64 from the documented formula."""
    model, _ = fitted("text", power_of_two_scaling=power_of_two, n_a_bits=4)
    door = model.network_.input_quantizer
    inner = refqnn.from_brevitas(model.module_, np.zeros((2, 6), np.float32)).input_quantizer
    for column, thresholds in enumerate(door.thresholds):
        finite = thresholds[np.isfinite(thresholds)]
        values = np.concatenate(
            [around(t) for t in finite] + [np.float32([0, GREATEST, -GREATEST])]
        )
        values = values[np.isfinite(values)]
        X = np.zeros((len(values), 6))
        X[:, column] = values
        z = (X - model.input_mean_) / model.input_scale_
        expected = inner.quantize(np.clip(z, -1e6, 1e6).astype(np.float32))
        codes = model.quantize_input(X)
        assert np.array_equal(codes, expected)
        assert len(np.unique(expected[:, column])) == len(np.unique(finite)) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_gives_the_integers_of_raw_rows(kind: str) -> None:
    model, X = fitted(kind)
    outputs = model.infer(X).numpy().astype(np.float64)
    acc = model.network_.forward(model.network_.quantize_input(X))
    if kind.startswith("regressor"):
        outputs = outputs * model.target_scale_ + model.target_mean_
    assert np.array_equal(outputs, model.network_.dequantize_output(acc))
    assert np.array_equal(outputs, model.network_.predict(X))


def test_rows_of_float64_are_rounded_once_and_everywhere() -> None:
    """Values between two float32 numbers, on both sides of every threshold."""
    model, _ = fitted("regressor")
    network = model.network_
    t = network.input_quantizer.thresholds[0].astype(np.float64)
    beside = np.concatenate([t * (1 + s * 2.0**-k) for s in (-1, 1) for k in (24, 25, 26, 40)])
    X = np.tile(model.input_mean_, (len(beside), 1))
    X[:, 0] = beside
    assert np.array_equal(model.quantize_input(X), network.quantize_input(X.astype(np.float32)))
    assert np.array_equal(model.predict(X), of_the_network(network, X))
    assert np.array_equal(exact.quantize(network.input_quantizer, X), model.quantize_input(X))
    huge = np.where(X > 0, 1e300, -1e300)
    assert np.array_equal(model.predict(huge), of_the_network(network, huge))


def test_values_that_float32_does_not_tell_apart_are_said() -> None:
    X = IRIS.data.copy()
    X[:, 2] += 1e9
    with pytest.warns(UserWarning, match=r"X\[:, 2\]: got values within .* around 1e\+09") as said:
        NeuralNetClassifier(**QUICK).fit(X, IRIS.target)
    assert [w.filename for w in said] == [__file__]
    X[:, 2] *= 1e30
    with pytest.raises(InvalidArgument, match=r"3\.4e38"):
        NeuralNetClassifier(**QUICK).fit(X, IRIS.target)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_answers_travel_in_the_file_of_the_network_and_of_the_estimator(
    kind: str, tmp_path: Path
) -> None:
    model, X = fitted(kind)
    expected = model.predict(X)
    model.network_.save(tmp_path / "network")
    model.save(tmp_path / "estimator")
    for name in ("network", "estimator"):
        network = refqnn.load(tmp_path / name)
        assert network.digest == model.network_.digest
        answers = of_the_network(network, X)
        assert answers.shape == expected.shape
        assert answers.tolist() == expected.tolist()
    loaded = type(model).load(tmp_path / "estimator")
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "estimator").read_bytes()
    assert loaded.predict(X).tolist() == expected.tolist()
    if not kind.startswith("regressor"):
        codes = model.quantize_input(X)
        probabilities = model.network_.output_dequantizer.predict_proba(network.forward(codes))
        assert np.array_equal(probabilities, model.predict_proba(X))


def test_a_file_of_the_first_release_gets_its_doors(tmp_path: Path) -> None:
    """It held the network with the doors of the module: standardised features in, logits out."""
    for kind in ("text", "regressor of two"):
        model, X = fitted(kind)
        network = model.network_
        model.network_ = refqnn.from_brevitas(model.module_, np.zeros((2, 6), np.float32))
        model.save(tmp_path / "old")
        loaded = type(model).load(tmp_path / "old")
        assert loaded.network_.digest == network.digest
        model.network_ = network
        assert loaded.predict(X).tolist() == model.predict(X).tolist()


def test_a_float_estimator_has_no_network(tmp_path: Path) -> None:
    twin = FloatNeuralNetClassifier(max_epochs=1, verbose=0).fit(IRIS.data, IRIS.target)
    estimator_files.save(twin, tmp_path / "twin")
    with pytest.raises(FileFormatError, match="network"):
        refqnn.load(tmp_path / "twin")


# --- the doors by themselves --------------------------------------------------------------------


def test_columns_must_be_those_of_fit() -> None:
    frame = pd.DataFrame(IRIS.data, columns=list("dacb"))
    model = NeuralNetClassifier(**QUICK).fit(frame, IRIS.target)
    door = model.network_.input_quantizer
    assert door.names == tuple("dacb")
    assert np.array_equal(door.quantize(frame), model.quantize_input(frame))
    assert np.array_equal(door.quantize(IRIS.data), model.quantize_input(frame))
    mixed = frame.astype({"a": "Float64", "c": object})
    assert np.array_equal(door.quantize(mixed), model.quantize_input(mixed))
    with pytest.raises(InvalidArgument, match="columns of x"):
        door.quantize(frame[list("abcd")])
    with pytest.raises(InvalidType, match="table of numbers"):
        door.quantize([["a", "b", "c", "d"]])


def test_doors_refuse_what_makes_no_sense() -> None:
    one_bit = IntFormat(1, signed=False)
    with pytest.raises(ShapeMismatch, match="names"):
        Features([[0.0], [1.0]], one_bit, axis=1, names=("a",))
    with pytest.raises(InvalidType, match="names"):
        Features([[0.0]], one_bit, axis=1, names=(3,))
    for labels in ([["a"]], [object()], "a", np.array(["2020"], "M8[Y]")):
        with pytest.raises(InvalidType, match="labels"):
            Predictions(1.0, labels=labels)
    with pytest.raises(InvalidArgument, match="one positive number"):
        Predictions([1.0, 2.0], labels=["a", "b"])
    with pytest.raises(InvalidArgument, match="one positive number"):
        Predictions(-1.0, labels=["a", "b"])
    with pytest.raises(ShapeMismatch, match="acc"):
        Predictions(1.0, labels=["a", "b"]).predict([[1, 2, 3]])
    with pytest.raises(NotCovered, match="targets"):
        Predictions(1.0).predict_proba([[1]])


# --- two processes ------------------------------------------------------------------------------

SERVER = """
from refqnn.fhe import Server
server = Server.load("server")
server.load_evaluation_keys("evaluation")
server.answer("requests", "answers")
"""

CLIENT = """
import subprocess, sys, pandas as pd
from refqnn.fhe import Client
client = Client.load("client")
client.save_evaluation_keys("evaluation")
client.save_requests(client.quantize(pd.read_pickle("rows")), "requests")
subprocess.run([sys.executable, "server.py"], check=True)
acc = client.read_answers("answers")
print(repr(client.predictions.predict(acc).tolist()))
if client.predictions.labels is not None:
    print(repr(client.predictions.predict_proba(acc).tolist()))
assert "torch" not in sys.modules and "sklearn" not in sys.modules
"""


@pytest.mark.parametrize("kind", ["regressor", pytest.param("objects", marks=pytest.mark.slow)])
def test_client_and_server_in_two_processes(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("concrete.fhe")
    model, rows = fitted(kind)
    frame = pd.DataFrame(rows[::25])
    frame.to_pickle(tmp_path / "rows")
    model.compile(**LOOSE)
    model.save_client(tmp_path / "client")
    model.save_server(tmp_path / "server")

    (tmp_path / "server.py").write_text(SERVER)
    command = [sys.executable, "-c", CLIENT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers, *probabilities = done.stdout.splitlines()
    assert answers == repr(model.predict(frame).tolist())
    if probabilities:
        assert probabilities == [repr(model.predict_proba(frame).tolist())]


def test_a_client_predicts_through_a_server(tmp_path: Path) -> None:
    fhe = pytest.importorskip("refqnn.fhe")
    model, rows = fitted("text")
    model.compile(**LOOSE)
    model.save_client(tmp_path / "client")
    model.save_server(tmp_path / "server")
    client = fhe.Client.load(tmp_path / "client")
    server = fhe.Server.load(tmp_path / "server")
    server.load_keys(client.evaluation_keys())
    few = rows[::20]
    assert client.predict(few, server.run).tolist() == model.predict(few).tolist()
    assert np.array_equal(client.predict_proba(few, server.run), model.predict_proba(few))


# --- a pipeline, whole -------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("StandardScaler",), ("RobustScaler", "MinMaxScaler")])
@pytest.mark.parametrize("kind", ["text", "regressor"])
def test_a_pipeline_is_one_network_of_raw_rows(names: tuple[str, ...], kind: str) -> None:
    scalers = [getattr(preprocessing, name)() for name in names]
    X = odd_rows().astype(np.float32)
    signal = X[:, 0] / 1e9 + X[:, 1] * 1e9
    make = NeuralNetRegressor if kind == "regressor" else NeuralNetClassifier
    y = signal * 300 + 1e5 if kind == "regressor" else np.where(signal > 0, "yes", "no")
    pipeline = make_pipeline(*scalers, "passthrough", make(**QUICK)).fit(X.astype(np.float64), y)
    network = folded(pipeline)
    rows = np.vstack([odd_rows(200, seed=1), X * 1e3, -X]).astype(np.float32)
    # Around every threshold of the door, where a fold that rounds otherwise would show.
    edges = network.input_quantizer.thresholds
    edges = np.where(np.isfinite(edges), edges, 0)
    near = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)], 1).T
    rows = np.vstack([rows, near.astype(np.float32)])
    integers = network.forward(network.quantize_input(rows))
    said = network.output_dequantizer.predict(integers)
    assert np.array_equal(said, pipeline.predict(rows.astype(np.float64)))


def test_what_a_pipeline_cannot_fold_is_named() -> None:
    X, y = IRIS.data, IRIS.target
    mixed = make_pipeline(preprocessing.StandardScaler(), PCA(2), NeuralNetClassifier(**QUICK))
    with pytest.raises(NotCovered, match=r"pca \(PCA\)"):
        folded(mixed.fit(X, y))
    compares = NeuralNetClassifier(target="encrypted", budget_s=0.1, module__hidden_sizes=(2,))
    with pytest.raises(NotCovered, match="target='encrypted'"):
        folded(make_pipeline(preprocessing.StandardScaler(), compares).fit(X, y))
    with pytest.raises(InvalidType, match="LogisticRegression"):
        folded(make_pipeline(LogisticRegression()).fit(X, y))
    with pytest.raises(InvalidType, match="Pipeline"):
        folded(NeuralNetClassifier(**QUICK))
    with pytest.raises(NotFittedError):
        folded(make_pipeline(preprocessing.StandardScaler(), NeuralNetClassifier(**QUICK)))


def test_a_pipeline_deploys_whole(tmp_path: Path) -> None:
    fhe = pytest.importorskip("refqnn.fhe")
    frame = pd.DataFrame(IRIS.data * 1e3, columns=list("abcd"))
    y = np.array(["setosa", "versicolor", "virginica"])[IRIS.target]
    last = NeuralNetClassifier(**CHEAP)
    pipeline = make_pipeline(preprocessing.StandardScaler().set_output(transform="pandas"), last)
    deploy(pipeline.fit(frame, y), tmp_path / "c", tmp_path / "s", **LOOSE)
    client, server = fhe.Client.load(tmp_path / "c"), fhe.Server.load(tmp_path / "s")
    client.keygen()
    server.load_keys(client.evaluation_keys())
    assert client.predict(frame[:1], server.run).tolist() == pipeline.predict(frame[:1]).tolist()
    with pytest.raises(InvalidArgument, match="columns"):
        client.predict(frame[["b", "a", "c", "d"]][:1], server.run)


def test_the_calls_of_concrete_ml(tmp_path: Path) -> None:
    fhe = pytest.importorskip("refqnn.fhe")
    X, y = IRIS.data, IRIS.target
    model = NeuralNetClassifier(**CHEAP).fit(X, y)
    with pytest.raises(NotCompiled):
        fhe.FHEModelDev(tmp_path / "folder", model).save()
    assert not (tmp_path / "folder").exists()
    with pytest.raises(InvalidType, match="model: got StandardScaler"):
        fhe.FHEModelDev(tmp_path / "folder", preprocessing.StandardScaler()).save()
    model.compile(X, **LOOSE)
    fhe.FHEModelDev(tmp_path / "folder", model).save()
    with pytest.raises(InvalidArgument, match=r"client\.zip"):
        fhe.FHEModelDev(tmp_path / "folder", model).save()

    client = fhe.FHEModelClient(tmp_path / "folder", key_dir=tmp_path / "keys")
    keys = client.get_serialized_evaluation_keys()
    request = client.quantize_encrypt_serialize(X[[0]])
    answer = fhe.FHEModelServer(tmp_path / "folder").run(request, keys)
    assert all(type(message) is bytes for message in (keys, request, answer))
    assert np.array_equal(
        client.deserialize_decrypt_dequantize(answer), model.predict_proba(X[[0]])
    )
    with pytest.raises(ShapeMismatch, match="2 rows"):
        client.quantize_encrypt_serialize(X[:2])
    with pytest.raises(InvalidArgument, match="include_tfhers_key"):
        client.get_serialized_evaluation_keys(include_tfhers_key=True)
    again = fhe.FHEModelClient(tmp_path / "folder", key_dir=tmp_path / "keys")
    assert again.get_serialized_evaluation_keys() == keys
    for party in (client.client, model.fhe_circuit):
        with pytest.raises(InvalidArgument, match="seed"):
            party.keygen(seed=1)


def test_a_server_reads_the_keys_of_each_client_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fhe = pytest.importorskip("refqnn.fhe")
    from refqnn.fhe import deployment

    monkeypatch.setattr(deployment, "HELD", 2)
    model = NeuralNetClassifier(**CHEAP).fit(IRIS.data, IRIS.target)
    model.compile(**LOOSE)
    fhe.FHEModelDev(tmp_path, model).save()
    server = fhe.FHEModelServer(tmp_path)
    read: list[bytes] = []
    kept = server.server.read_keys
    monkeypatch.setattr(server.server, "read_keys", lambda keys: read.append(keys) or kept(keys))

    clients = [fhe.FHEModelClient(tmp_path) for _ in range(3)]
    keys = [client.get_serialized_evaluation_keys() for client in clients]
    for number in (0, 1, 0, 0, 2, 0, 1):  # 2 takes the place of 1, which was asked for longest ago
        request = clients[number].quantize_encrypt_serialize(IRIS.data[number])
        answer = server.run(request, bytes(bytearray(keys[number])))  # equal bytes, another object
        probabilities = clients[number].deserialize_decrypt_dequantize(answer)
        assert np.array_equal(probabilities, model.predict_proba(IRIS.data[[number]]))
    assert read == [keys[0], keys[1], keys[2], keys[1]]
    for wrong in (keys[0][:-1], b"", None, "keys"):
        with pytest.raises((FileFormatError, InvalidType)):
            server.run(request, wrong)
