"""Estimator files: never more than numbers, and only fitted attributes."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, mended, mutated_bytes

pytest.importorskip("torch")
pytest.importorskip("brevitas")

from refqnn.errors import FileFormatError
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

    def door(data: bytes) -> None:
        path.write_bytes(data)
        files.load(path)

    fuzz("estimator file, checksums mended", slow, make, door)


def altered(tmp_path: Path, change) -> Path:
    import hashlib
    import json

    from fuzzing import members_of, zipped

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
    ],
)
def test_estimator_files_that_want_more(change, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        files.load(altered(tmp_path, change))
