"""Estimator files: never more than numbers, and only fitted attributes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, members_of, mended, mutated_bytes, zipped

pytest.importorskip("torch")
pytest.importorskip("brevitas")

from refqnn import IntFormat, Network, Node, SymmetricQuantizer, storage
from refqnn.errors import FileFormatError
from refqnn.quantizers import Dequantizer
from refqnn.training import NeuralNetClassifier
from refqnn.training import estimator_files as files

SPEEDS = [False, pytest.param(True, marks=pytest.mark.slow)]


@functools.cache
def saved() -> bytes:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3)).astype(np.float32)
    estimator = NeuralNetClassifier(
        module__n_layers=2, max_epochs=1, verbose=0, random_state=0
    ).fit(X, (X[:, 0] > 0).astype(np.int64))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "estimator")
        estimator.save(path)
        return path.read_bytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("slow", SPEEDS)
def test_estimator_files(slow: bool, tmp_path: Path) -> None:
    path = tmp_path / "estimator"
    X = np.eye(3, dtype=np.float32)
    path.write_bytes(saved())
    expected = files.load(path).predict(X)

    def door(data: bytes) -> None:
        path.write_bytes(data)
        assert np.array_equal(files.load(path).predict(X), expected)

    fuzz("estimator file", slow, lambda rng: mutated_bytes(saved(), rng), door)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("slow", SPEEDS)
def test_estimator_files_with_mended_checksums(slow: bool, tmp_path: Path) -> None:
    path = tmp_path / "estimator"

    def make(rng: random.Random) -> bytes:
        return mended(saved(), "estimator", "members", rng)

    X = np.random.default_rng(1).normal(size=(5, 3))

    def door(data: bytes) -> None:
        path.write_bytes(data)
        model = files.load(path)
        model.predict(X), model.predict_proba(X), model.infer(X), repr(model), model.history

    fuzz("estimator file, checksums mended", slow, make, door)


FITTED = {"classes_", "history_", "input_mean_", "input_scale_", "n_features_in_"}


def test_the_file_holds_these_attributes() -> None:
    content = json.loads(members_of(saved())["estimator.json"])
    assert set(content["fitted"]) == FITTED


def altered(tmp_path: Path, change) -> Path:
    members = members_of(saved())
    content = json.loads(members["estimator.json"])
    change(content)
    text = json.dumps(content).encode()
    sums = hashlib.sha256(text).hexdigest().encode()
    path = tmp_path / "estimator"
    path.write_bytes(zipped({**members, "estimator.json": text, "estimator.sha256": sums}))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["fitted"].update({"__class__": {"torch": ["nn", "Linear"]}}),
        lambda c: c["fitted"].update({"__dict__": {"dict": {}}}),
        lambda c: c["fitted"].update({"_private_": 1}),
        lambda c: c["fitted"].update({"x__": 1}),
        lambda c: c["parameters"].update(criterion={"torch": ["optim", "os"]}),
        lambda c: c["module"]["arguments"]["dict"].update(hidden_sizes=[2**16, 2**16]),
        lambda c: c["module"]["arguments"]["dict"].update(input_dim=2**40),
        lambda c: c["fitted"].update(n_features_in_="os.system"),
        lambda c: c["fitted"].update(n_features_in_=True),
        lambda c: c["fitted"].update(n_features_in_=4),
        lambda c: c["fitted"].update(_own=["predict"], predict=1),
        lambda c: c["fitted"].update(predict=1),
        lambda c: c["fitted"].update(feature_names_in_={"objects": ["a", "b", 3]}),
        lambda c: c["fitted"].update(feature_names_in_={"objects": ["a", "b"]}),
        lambda c: c["fitted"].update(input_scale_=c["fitted"]["classes_"]),
        lambda c: c["fitted"].update(input_mean_=[0.0, 0.0, 0.0]),
        lambda c: c["fitted"].update(classes_=c["fitted"]["input_mean_"]),
        lambda c: c["fitted"].update(classes_={"objects": [0, None]}),
        lambda c: c["fitted"].update(classes_={"objects": [0, 7]}),
        lambda c: c["fitted"].update(history_=3),
        *(lambda c, name=name: c["fitted"].pop(name) for name in sorted(FITTED)),
        lambda c: c.update({"class": "NeuralNetRegressor"}),
        lambda c: c.update({"class": "FloatNeuralNetClassifier"}),
    ],
)
def test_estimator_files_that_want_more(change, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        files.load(altered(tmp_path, change))


def test_a_network_of_another_estimator_is_refused(tmp_path: Path) -> None:
    """Every checksum right, each half whole: they do not belong together."""
    path = tmp_path / "estimator"
    path.write_bytes(saved())
    network = files.load(path).network_
    door, outer = network.input_quantizer, network.output_dequantizer

    def replaced(nodes: list[Node] = network.nodes, **changed: object) -> Network:
        doors = {"input_quantizer": door, "output_dequantizer": outer, **changed}
        return Network(nodes, input_shape=(3,), **doors)

    wrong = [
        replaced(output_dequantizer=dataclasses.replace(outer, labels=[0, 2])),
        replaced(output_dequantizer=None),
        replaced(output_dequantizer=Dequantizer(1.0)),
        replaced(input_quantizer=None, input_format=door.format),
        replaced(input_quantizer=SymmetricQuantizer(1.0, IntFormat(32, signed=True))),
        replaced(network.nodes[:1]),
    ]
    for other in wrong:
        members = {**members_of(saved()), storage.NETWORK: storage.to_bytes(other)}
        content = json.loads(members["estimator.json"])
        sums = {name: members[name] for name in content["members"]}
        del content["members"]
        path.write_bytes(storage.ESTIMATOR.pack(content, sums))
        with pytest.raises(FileFormatError):
            files.load(path)
