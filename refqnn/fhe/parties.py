"""Client and server apart: what each of them keeps, and the files between them.

    client file     input and output doors of the network (no weights), encryption parameters, and
                    which inputs some neuron reads alone
    server file     the compiled circuit; it holds the network's weights, but no key
    keys            stay with the client; the evaluation keys alone go to the server

    client                                          server
    codes = client.quantize(X)
    keys = client.evaluation_keys()     ------->    server.load_keys(keys)
    request = client.encrypt(codes[0])  ------->    answer = server.run(request)
    acc = client.decrypt(answer)        <-------

The same with files, many samples each (see refqnn.fhe.files; `refqnn fhe` on the command line):

    client.save_keys(k); client.save_evaluation_keys(e); client.save_requests(codes, r)
    server.load_evaluation_keys(e); server.answer(r, a)
    acc = client.read_answers(a)

Both use Concrete's runtime alone: neither imports torch nor the circuit compiler.
A server file holds machine code: load it from whom you trust.
"""

from __future__ import annotations

import platform
import secrets
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from concrete.compiler import (
    ClientProgram,
    Keyset,
    Library,
    ProgramInfo,
    ServerKeyset,
    ServerProgram,
    TransportValue,
)
from concrete.compiler import Value as ClearValue
from numpy.typing import ArrayLike, NDArray

from refqnn.container import array_to_npy, npy_to_array
from refqnn.doors import Predictions
from refqnn.errors import (
    CircuitError,
    FileFormatError,
    NotCovered,
    RefqnnError,
    ShapeMismatch,
    mismatch,
)
from refqnn.fhe import files
from refqnn.fhe.doors import Encoding
from refqnn.fhe.interrupts import held_back
from refqnn.fhe.memory import KeySizes, kept_between_runs, key_sizes, require_memory
from refqnn.network import Network, Node, load
from refqnn.ops import Reshape

__all__ = ["Client", "Server", "save_client", "save_server"]

KEYS = "keys"  # the member of a file of keys
_DOORS, _PARAMETERS = "doors", "parameters.json"
_ALONE, _LOW, _STEP = "read_alone.npy", "output_low.npy", "output_step.npy"
_LIBRARY = ("sharedlib.so", "program_info.concrete.params.json", "compilation_feedback.json")

OnSample = Callable[[str], None]
Run = Callable[[bytes], bytes]


class Client:
    """Holds the secret key: quantizes, encrypts, decrypts, dequantizes.  Knows no weight.

    Made by `Client.load` from a file that `Circuit.save_client` wrote.

    Attributes:
        doors: a network without weights that has the input and output formats.
        digest: of the network that the circuit computes.
        circuit: names the circuit; the server's file and all keys and ciphertexts have the same.
    """

    def __init__(
        self,
        doors: Network,
        encoding: Encoding,
        digest: str,
        circuit: str,
        parameters: ProgramInfo,
    ) -> None:
        self.doors = doors
        self.digest, self.circuit = digest, circuit
        self._encoding = encoding
        self._parameters = parameters
        self._keys: tuple[Keyset, str] | None = None  # and their name

    @classmethod
    def load(cls, path: str | Path) -> Client:
        """Raises: FileFormatError for a damaged, foreign or newer file."""
        with files.reading(path, "client") as file, tempfile.TemporaryDirectory() as folder:
            digest, circuit = (file.field(name, str) for name in ("digest", "circuit"))
            input_low, input_step = (file.field(name, int) for name in ("input_low", "input_step"))
            saved_doors = Path(folder, _DOORS)
            saved_doors.write_bytes(file[_DOORS])
            doors = load(saved_doors)
            alone, low, step = (npy_to_array(file[name]) for name in (_ALONE, _LOW, _STEP))
            if alone.dtype != np.int64 or not np.isin(alone, range(prod(doors.input_shape))).all():
                raise FileFormatError(f"{path}: {_ALONE} is no list of inputs")
            parameters = _whole(ProgramInfo.deserialize, file[_PARAMETERS], path)
            encoding = Encoding(doors.input_format, input_low, input_step, alone, low, step)
            return cls(doors, encoding, digest, circuit, parameters)

    @property
    def read_alone(self) -> NDArray[np.int64]:
        """Flat indices of the inputs whose levels are sent besides the codes, because some neuron
        reads them alone (refqnn.fhe.doors)."""
        return self._encoding.read_alone

    # --- doors ------------------------------------------------------------------------------

    def quantize(self, X: ArrayLike) -> NDArray[np.int64]:
        """Codes [n, *input_shape] of float samples; as `Network.quantize_input`."""
        return self.doors.quantize_input(X)

    def dequantize(self, acc: ArrayLike) -> NDArray[Any]:
        """Floats of decrypted integers [n, *output_shape]; as `Network.dequantize_output`."""
        return self.doors.dequantize_output(acc)

    @property
    def predictions(self) -> Predictions:
        """What decrypted integers [n, outputs] say.  Raises: NotCovered without an estimator."""
        door = self.doors.output_dequantizer
        if not isinstance(door, Predictions):
            raise NotCovered("predictions: this circuit was not made from an estimator")
        return door

    def predict(self, X: ArrayLike, run: Run) -> NDArray[Any]:
        """Labels or targets of raw rows, those of the estimator's `predict`.

        Each row is encrypted here, computed on by `run` and decrypted here.  With files, it is
        ``client.predictions.predict(client.read_answers(path))``.

        Args:
            X: rows of raw features [n, features], or a data frame.
            run: from a request to its answer: `Server.run`, or a call that reaches one elsewhere.

        Raises: NotCovered where the circuit was not made from an estimator.
        """
        return self.predictions.predict(self._computed(X, run))

    def predict_proba(self, X: ArrayLike, run: Run) -> NDArray[np.float64]:
        """Probabilities [n, classes] of raw rows; as `predict`.  Raises: NotCovered for targets."""
        return self.predictions.predict_proba(self._computed(X, run))

    def _computed(self, X: ArrayLike, run: Run) -> NDArray[np.int64]:
        return np.stack([self.decrypt(run(self.encrypt(codes))) for codes in self.quantize(X)])

    # --- keys -------------------------------------------------------------------------------

    def keygen(self, *, force: bool = False) -> None:
        """Make keys unless there are some.

        Raises: CircuitError when the keys would not fit into the memory that is left.
        """
        if self._keys is None or force:
            sizes = key_sizes(self._parameters.serialize())
            require_memory(2 * sizes.travelling, "the keys")  # once more while they are written
            system_randomness = (0, 0, 0, 0)  # no seed given
            with held_back():
                keyset = Keyset(self._parameters, None, *system_randomness, None)
                self._keys = keyset, secrets.token_hex(16)

    def save_keys(self, path: str | Path) -> None:
        """Write all keys, the secret one too, to a file that its owner alone may read."""
        keyset, name = self._made_keys()
        members = [(KEYS, bytes(keyset.serialize()))]
        files.write(path, "private keys", self._header(name), members, private=True)

    def load_keys(self, path: str | Path) -> None:
        """Read keys that `save_keys` wrote.  Raises: FileFormatError for another circuit's."""
        with files.reading(path, "private keys") as file:
            file.require(circuit=self.circuit)
            name = file.field("keys", str)
            self._keys = _whole(Keyset.deserialize, file[KEYS], path), name

    def evaluation_keys(self) -> bytes:
        """What the server needs to compute on ciphertexts; it cannot decrypt with them."""
        keyset, _ = self._made_keys()
        return bytes(keyset.get_server_keys().serialize())

    def save_evaluation_keys(self, path: str | Path) -> None:
        """Write `evaluation_keys` to a file for the server."""
        _, name = self._made_keys()
        members = [(KEYS, self.evaluation_keys())]
        files.write(path, "evaluation keys", self._header(name), members)

    def _made_keys(self) -> tuple[Keyset, str]:
        self.keygen()
        assert self._keys is not None
        return self._keys

    def _header(self, keys: str) -> dict[str, Any]:
        return {"circuit": self.circuit, "keys": keys}

    # --- ciphertexts --------------------------------------------------------------------------

    def encrypt(self, codes: ArrayLike) -> bytes:
        """The ciphertext of one sample [*input_shape].  Makes keys if there are none.

        Raises: InvalidType, ShapeMismatch; OutOfRange for codes outside the declared format, before
            anything is encrypted.
        """
        array = np.asarray(codes)
        if array.shape != self.doors.input_shape:
            expected = f"one sample of shape {self.doors.input_shape}"
            raise ShapeMismatch(mismatch("codes", f"shape {array.shape}", expected))
        return self._encrypted(self.doors.check_codes(array[None])[0])

    def decrypt(self, answer: bytes) -> NDArray[np.int64]:
        """The output [*output_shape] of one sample.  Raises: CircuitError without keys."""
        if self._keys is None:
            raise CircuitError("decrypt: this client has no keys; call load_keys first")
        circuit = self._circuit()
        with held_back():
            value = circuit.process_output(TransportValue.deserialize(bytes(answer)), 0)
        return self._encoding.outputs(np.asarray(value.to_py_val()))

    def save_requests(
        self, codes: ArrayLike, path: str | Path, on_sample: OnSample | None = None
    ) -> None:
        """Encrypt codes [n, *input_shape] into a file for the server.

        Makes keys if there are none.

        Args:
            on_sample: called with a short text after each sample.

        Raises: as `Network.forward` for codes outside the declared format, before anything is
            encrypted.
        """
        checked = self.doors.check_codes(codes)
        _, name = self._made_keys()

        def members() -> Iterator[tuple[str, bytes]]:
            for i, sample in enumerate(checked):
                yield str(i), self._encrypted(sample)
                if on_sample is not None:
                    on_sample(f"sample {i}")

        files.write(path, "requests", {**self._header(name), "samples": len(checked)}, members())

    def read_answers(self, path: str | Path, on_sample: OnSample | None = None) -> NDArray[Any]:
        """The outputs [n, *output_shape] that the server's answers hold, in the requests' order.

        Raises: CircuitError without keys, FileFormatError for answers under other keys.
        """
        if self._keys is None:
            raise CircuitError("read_answers: this client has no keys; call load_keys first")
        _, name = self._keys
        outputs = []
        with files.reading(path, "answers") as file:
            file.require(**self._header(name))
            for i in range(file.field("samples", int)):
                outputs.append(_whole(self.decrypt, file[str(i)], path))
                if on_sample is not None:
                    on_sample(f"sample {i}")
        return np.stack(outputs)

    def _encrypted(self, checked: NDArray[np.int64]) -> bytes:
        (argument,) = self._encoding.arguments(checked[None])
        self.keygen()
        circuit = self._circuit()
        with held_back():
            return bytes(circuit.prepare_input(ClearValue(argument), 0).serialize())

    def _circuit(self) -> Any:
        keyset, _ = self._made_keys()
        client = ClientProgram.create_encrypted(self._parameters, keyset)
        return client.get_client_circuit(self._parameters.function_list()[0])


class Server:
    """Computes on ciphertexts with evaluation keys.  Made by `Server.load`.

    Attributes:
        digest: of the network that the circuit computes.
        circuit: names the circuit; the client's file and all keys and ciphertexts have the same.
    """

    def __init__(self, digest: str, circuit: str, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.digest, self.circuit = digest, circuit
        self._folder = folder  # removed when the server is
        self._library = Library(folder.name)
        self._program = ServerProgram(self._library, False)
        self._keys: ServerKeyset | None = None
        self._keys_name = ""  # of keys from a file

    @classmethod
    def load(cls, path: str | Path) -> Server:
        """Raises: FileFormatError; CircuitError for a circuit of another kind of machine."""
        folder = tempfile.TemporaryDirectory()
        with files.reading(path, "server") as file:
            machine = file.field("machine", str)
            if machine != platform.machine():
                expected = f"{platform.machine()}: compile and save it on such a machine"
                raise CircuitError(mismatch("machine of the file", machine, expected))
            digest, circuit = (file.field(name, str) for name in ("digest", "circuit"))
            for name in _LIBRARY:
                Path(folder.name, name).write_bytes(file[name])
        return cls(digest, circuit, folder)

    def load_keys(self, evaluation_keys: bytes) -> None:
        """Use these keys from now on; `Client.evaluation_keys` made them.

        Raises: CircuitError when the keys would not fit into the memory that is left.
        """
        require_memory(self.memory_bytes, "the evaluation keys")
        self._keys, self._keys_name = ServerKeyset.deserialize(bytes(evaluation_keys)), ""

    def load_evaluation_keys(self, path: str | Path) -> None:
        """As `load_keys`, from a file.  Raises: also FileFormatError for another circuit's keys."""
        with files.reading(path, "evaluation keys") as file:
            file.require(circuit=self.circuit)
            _whole(self.load_keys, file[KEYS], path)
            self._keys_name = file.field("keys", str)

    @cached_property
    def _key_sizes(self) -> KeySizes:
        return key_sizes(self._library.get_program_info().serialize())

    @property
    def memory_bytes(self) -> int:
        """Memory that the keys take at their peak, while the first run unpacks them."""
        return self._key_sizes.resident

    def run(self, request: bytes) -> bytes:
        """The encrypted answer to an encrypted sample.  Raises: CircuitError without keys."""
        if self._keys is None:
            raise CircuitError("run: this server has no evaluation keys; call load_keys first")
        name = self._library.get_program_info().function_list()[0]
        circuit = self._program.get_server_circuit(name)
        with held_back(), kept_between_runs(self._key_sizes.bootstrap):
            (answer,) = circuit.call([TransportValue.deserialize(bytes(request))], self._keys)
        return bytes(answer.serialize())

    def answer(
        self, requests: str | Path, answers: str | Path, on_sample: OnSample | None = None
    ) -> int:
        """Run a file of requests into a file of answers; returns how many there were.

        Raises: CircuitError without keys, FileFormatError for requests under other keys.
        """
        if self._keys is None:
            raise CircuitError("answer: no evaluation keys; call load_evaluation_keys first")
        with files.reading(requests, "requests") as file:
            file.require(circuit=self.circuit, keys=self._keys_name)
            n = file.field("samples", int)

            def members() -> Iterator[tuple[str, bytes]]:
                for i in range(n):
                    yield str(i), _whole(self.run, file[str(i)], requests)
                    if on_sample is not None:
                        on_sample(f"sample {i}")

            header = {name: file.header[name] for name in ("circuit", "keys", "samples")}
            files.write(answers, "answers", header, members())
        return int(n)


# --- files ------------------------------------------------------------------------------------


def save_client(network: Network, encoding: Encoding, parameters: bytes, path: str | Path) -> None:
    """Write what `Client.load` reads.

    Args:
        encoding: of the circuit that computes the network.
        parameters: serialized encryption parameters of the circuit.
    """
    doors = Network(
        [Node("doors", Reshape(network.input_shape))],
        input_shape=network.input_shape,
        input_format=network.input_format,
        input_quantizer=network.input_quantizer,
        output_dequantizer=network.output_dequantizer,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, _DOORS)
        doors.save(file)
        saved_doors = file.read_bytes()
    header = {
        "digest": network.digest,
        "circuit": _circuit(network, encoding, parameters),
        "input_low": encoding.input_low,
        "input_step": encoding.input_step,
    }
    members = {
        _DOORS: saved_doors,
        _ALONE: array_to_npy(encoding.read_alone),
        _LOW: array_to_npy(encoding.output_low),
        _STEP: array_to_npy(encoding.output_step),
        _PARAMETERS: parameters,
    }
    files.write(path, "client", header, members.items())


def save_server(
    network: Network, encoding: Encoding, parameters: bytes, library: str | Path, path: str | Path
) -> None:
    """Write what `Server.load` reads.

    Args:
        encoding, parameters: as for `save_client`.
        library: the folder into which the circuit was compiled.
    """
    header = {
        "digest": network.digest,
        "circuit": _circuit(network, encoding, parameters),
        "machine": platform.machine(),
    }
    members = {name: Path(library, name).read_bytes() for name in _LIBRARY}
    files.write(path, "server", header, members.items())


def _circuit(network: Network, encoding: Encoding, parameters: bytes) -> str:
    """Equal for circuits that may share keys and ciphertexts and mean the same by them."""
    doors = f"{network.digest} {encoding.input_low} {encoding.input_step}"
    arrays = (encoding.read_alone, encoding.output_low, encoding.output_step)
    return files.identity(doors.encode(), parameters, *map(array_to_npy, arrays))


def _whole(use: Callable[[bytes], Any], content: bytes, path: str | Path) -> Any:
    """What `use` makes of a member of a file; what Concrete cannot read is a damaged file."""
    try:
        return use(content)
    except RefqnnError:
        raise
    except (RuntimeError, ValueError) as error:
        raise FileFormatError(f"{path}: Concrete cannot read it ({error})") from error
