"""Client and server under the names that code written for Concrete ML calls.

A folder holds ``client.zip`` and ``server.zip``; they are the files of `refqnn.fhe.Client` and
`refqnn.fhe.Server`, which do the work.  Neither side needs torch, nor the training data.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.container import as_path
from refqnn.doors import Predictions
from refqnn.errors import (
    CircuitError,
    InvalidArgument,
    InvalidType,
    NotCompiled,
    ShapeMismatch,
    mismatch,
)
from refqnn.fhe.parties import Client, Server, as_bytes
from refqnn.formats import as_array, as_truth

if TYPE_CHECKING:
    from concrete.compiler import ServerKeyset

    from refqnn.training.estimators import NeuralNetClassifier, NeuralNetRegressor

__all__ = ["FHEModelClient", "FHEModelDev", "FHEModelServer"]

CLIENT, SERVER, KEYS = "client.zip", "server.zip", "keys"
HELD = 4  # clients whose keys a server has in memory


class FHEModelDev:
    """Writes both halves of a compiled estimator into a folder.

    Args:
        path_dir: made if it is not there.
        model: fitted and compiled.
    """

    def __init__(
        self, path_dir: str | Path, model: NeuralNetClassifier | NeuralNetRegressor | None = None
    ) -> None:
        self.path_dir, self.model = as_path(path_dir, "path_dir"), model

    def save(self, mode: str = "inference", via_mlir: bool = False) -> None:
        """Write client.zip and server.zip.

        Raises: NotCompiled before `compile`; InvalidArgument where the folder holds one of them,
            for another mode, or for via_mlir: a server file is machine code of this kind of
            machine.
        """
        if not isinstance(mode, str) or mode != "inference":
            raise InvalidArgument(mismatch("mode", repr(mode), "'inference': training is in clear"))
        if as_truth(via_mlir, "via_mlir"):
            raise InvalidArgument(mismatch("via_mlir", True, "False: save on the server's machine"))
        if self.model is None:
            raise NotCompiled(mismatch("model", None, "a compiled estimator"))
        if not hasattr(type(self.model), "fhe_circuit"):
            got = type(self.model).__name__
            raise InvalidType(
                mismatch("model", got, "an estimator of ours; deploy takes a pipeline")
            )
        there = [name for name in (CLIENT, SERVER) if (self.path_dir / name).exists()]
        if there:
            raise InvalidArgument(mismatch("path_dir", f"{there} in it", "a folder without them"))
        self.model.fhe_circuit  # noqa: B018 - raises NotCompiled before a folder is made
        self.path_dir.mkdir(parents=True, exist_ok=True)
        self.model.save_client(self.path_dir / CLIENT)
        self.model.save_server(self.path_dir / SERVER)


class FHEModelClient:
    """Quantizes, encrypts, decrypts and dequantizes one row at a time.

    Args:
        path_dir: holds client.zip.
        key_dir: where private keys are kept; None: in memory alone.
    """

    def __init__(self, path_dir: str | Path, key_dir: str | Path | None = None) -> None:
        self.path_dir = as_path(path_dir, "path_dir")
        self.key_dir = None if key_dir is None else as_path(key_dir, "key_dir")
        self.load()

    def load(self) -> None:
        """Read client.zip, and the private keys if key_dir holds them."""
        self.client = Client.load(self.path_dir / CLIENT)
        if self.key_dir is not None and (self.key_dir / KEYS).exists():
            self.client.load_keys(self.key_dir / KEYS)

    def generate_private_and_evaluation_keys(self, force: bool = False) -> None:
        """Make keys unless there are some.  Raises: as `Client.save_keys`; it overwrites none."""
        self.client.keygen(force=force)
        if self.key_dir is not None and (force or not (self.key_dir / KEYS).exists()):
            self.key_dir.mkdir(parents=True, exist_ok=True)
            self.client.save_keys(self.key_dir / KEYS)

    def get_serialized_evaluation_keys(self, include_tfhers_key: bool = False) -> bytes:
        """For the server; they decrypt nothing.  Makes keys unless there are some.

        Raises: InvalidArgument for include_tfhers_key.
        """
        if as_truth(include_tfhers_key, "include_tfhers_key"):
            expected = "False: ciphertexts of TFHE-rs are not taken"
            raise InvalidArgument(mismatch("include_tfhers_key", True, expected))
        self.generate_private_and_evaluation_keys()
        return self.client.evaluation_keys()

    def quantize_encrypt_serialize(self, x: ArrayLike) -> bytes:
        """A request for one row of raw features, [features] or [1, features].

        Raises: as `Client.quantize`; ShapeMismatch for several rows.
        """
        rows = x if hasattr(x, "columns") else np.atleast_2d(as_array(x, "x", "a row of numbers"))
        codes = self.client.quantize(rows)
        if len(codes) != 1:
            raise ShapeMismatch(mismatch("x", f"{len(codes)} rows", "one row, a request each"))
        return self.client.encrypt(codes[0])

    def deserialize_decrypt(
        self, serialized_encrypted_quantized_result: bytes
    ) -> NDArray[np.int64]:
        """The integers of an answer, [1, outputs]."""
        return self.client.decrypt(serialized_encrypted_quantized_result)[None]

    def deserialize_decrypt_dequantize(
        self, serialized_encrypted_quantized_result: bytes
    ) -> NDArray[Any]:
        """Of an answer: probabilities [1, classes], or targets [1] or [1, outputs].

        `client.predictions` has the labels.
        """
        acc = self.deserialize_decrypt(serialized_encrypted_quantized_result)
        door: Predictions = self.client.predictions
        return door.predict(acc) if door.labels is None else door.predict_proba(acc)


class FHEModelServer:
    """Computes on requests.

    Args:
        path_dir: holds server.zip: machine code, so know its maker.
    """

    def __init__(self, path_dir: str | Path) -> None:
        self.path_dir = as_path(path_dir, "path_dir")
        self.load()

    def load(self) -> None:
        """Read server.zip."""
        self._held: OrderedDict[bytes, ServerKeyset] = OrderedDict()
        self.server = Server.load(self.path_dir / SERVER)

    def run(
        self, serialized_encrypted_quantized_data: bytes, serialized_evaluation_keys: bytes
    ) -> bytes:
        """The answer to a request.  The keys that came last are read and unpacked once.

        Raises: InvalidType unless both are bytes; as `Server.read_keys` and `Server.run`.
        """
        keys = self._keys(serialized_evaluation_keys)
        return self.server.run(serialized_encrypted_quantized_data, keys)

    def _keys(self, evaluation_keys: bytes) -> ServerKeyset:
        message = as_bytes(evaluation_keys, "serialized_evaluation_keys")
        digest = hashlib.sha256(message).digest()
        keys = self._held.pop(digest, None) or self._read(message)
        self._held[digest] = keys
        if len(self._held) > HELD:
            self._held.popitem(last=False)
        return keys

    def _read(self, evaluation_keys: bytes) -> ServerKeyset:
        try:
            return self.server.read_keys(evaluation_keys)
        except CircuitError:  # no memory: the keys of other clients have it
            self._held.clear()
            return self.server.read_keys(evaluation_keys)
