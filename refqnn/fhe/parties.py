"""Client and server apart: what each of them keeps, and the files between them.

    client file     input and output doors of the network (no weights), encryption parameters, the
                    range of each output, and which inputs some neuron reads alone
    server file     the compiled circuit; it holds the network's weights, but no key
    keys            stay with the client; the evaluation keys alone go to the server

Both files follow from one identity, which names the circuit: a digest over all that gives a number
its meaning (doors, encoding, parameters) and over the compiled circuit.  Either side recomputes its
part on loading.  The circuit's part is salted, and the salt is in the server's file alone: nobody
else can confirm a guess about the weights by it.

    client                                          server
    codes = client.quantize(X)
    keys = client.evaluation_keys()     ------->    server.load_keys(keys)
    request = client.encrypt(codes[0])  ------->    answer = server.run(request)
    acc = client.decrypt(answer)        <-------

The same with files, many samples each (see refqnn.fhe.files; `refqnn fhe` on the command line):

    client.save_keys(k); client.save_evaluation_keys(e); client.save_requests(codes, r)
    server.load_evaluation_keys(e); server.answer(r, a)
    acc = client.read_answers(a)

Answers in a file repeat the nonce of their requests; the bytes of a single sample carry none.
Whatever is handed to Concrete is checked first (refqnn.fhe.messages).

Both use Concrete's runtime alone: neither imports torch nor the circuit compiler.
A server file holds machine code: load it from whom you trust.
"""

from __future__ import annotations

import platform
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from concrete.compiler import (
    ClientProgram,
    Keyset,
    Library,
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
    InvalidArgument,
    InvalidType,
    NotCovered,
    ShapeMismatch,
    mismatch,
)
from refqnn.fhe import files
from refqnn.fhe.doors import Encoding
from refqnn.fhe.interrupts import held_back
from refqnn.fhe.memory import kept_between_runs, require_memory
from refqnn.fhe.messages import Parameters
from refqnn.fhe.security import refuse_seeds
from refqnn.formats import as_array, as_truth
from refqnn.network import Network, Node, load
from refqnn.ops import Reshape

__all__ = ["Client", "Halves", "Server", "as_bytes", "as_teller", "save_client", "save_server"]

KEYS = "keys"  # the member of a file of keys
_DOORS, _PARAMETERS = "doors", "parameters.json"
_INPUT = ("input_low", "input_step")
_ARRAYS = ("read_alone", "output_low", "output_step", "output_top")
_PARAMETERS_OF_LIBRARY = "program_info.concrete.params.json"  # the same bytes
LIBRARY = ("sharedlib.so", _PARAMETERS_OF_LIBRARY, "compilation_feedback.json")
_LARGEST = 2**62  # magnitude of an output

OnSample = Callable[[str], object]
Run = Callable[[bytes], bytes]


class Client:
    """Holds the secret key: quantizes, encrypts, decrypts, dequantizes.  Knows no weight.

    Made by `Client.load` from a file that `Circuit.save_client` wrote.

    Attributes:
        doors: a network without weights that has the input and output formats.
        circuit: names the circuit; the server's file and all keys and ciphertexts have the same.
    """

    def __init__(
        self, doors: Network, encoding: Encoding, circuit: str, parameters: Parameters
    ) -> None:
        self.doors, self.circuit = doors, circuit
        self._encoding, self._parameters = encoding, parameters
        self._keys: tuple[Keyset, str] | None = None  # and their name
        self._asked: files.Header | None = None  # what answers to the last requests repeat

    @classmethod
    def load(cls, path: str | Path) -> Client:
        """Raises: FileFormatError for a damaged, foreign or newer file."""
        with files.reading(path, "client") as file, _in(path):
            file.only(_DOORS, _PARAMETERS, *(f"{name}.npy" for name in _ARRAYS))
            with tempfile.TemporaryDirectory() as folder:
                saved_doors = Path(folder, _DOORS)
                saved_doors.write_bytes(file[_DOORS])
                doors = load(saved_doors)
            low, step = (file.field(name, int) for name in _INPUT)
            arrays = [npy_to_array(file[f"{name}.npy"]) for name in _ARRAYS]
            encoding = Encoding(doors.input_format, low, step, *arrays)
            parameters = Parameters(file[_PARAMETERS])
            _require_sound(encoding, doors, parameters)
            client_part = _client_part(doors, encoding, parameters.content)
            circuit = _identity(client_part, file.field("program", str))
            file.require(circuit=circuit)
        return cls(doors, encoding, circuit, parameters)

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

    def keygen(self, force: bool = False, seed: None = None, encryption_seed: None = None) -> None:
        """Make keys unless there are some; as `Circuit.keygen`.

        Raises: InvalidArgument for a seed; CircuitError when the keys would not fit into the memory
            that is left.
        """
        refuse_seeds(seed=seed, encryption_seed=encryption_seed)
        if as_truth(force, "force") or self._keys is None:
            sizes = self._parameters.key_sizes
            require_memory(2 * sizes.travelling, "the keys")  # once more while they are written
            system_randomness = (0, 0, 0, 0)  # no seed given
            with held_back(), _read_by_concrete("keygen"):
                keyset = Keyset(self._parameters.info, None, *system_randomness, None)
                self._keys = keyset, secrets.token_hex(16)

    def save_keys(self, path: str | Path) -> None:
        """Write all keys, the secret one too, to a file that its owner alone may read.

        Raises: InvalidArgument where there are private keys already.
        """
        keyset, name = self._made_keys()
        members = [(KEYS, bytes(keyset.serialize()))]
        files.write(path, files.PRIVATE, self._header(name), members, private=True)

    def load_keys(self, path: str | Path) -> None:
        """Read keys that `save_keys` wrote.  Raises: FileFormatError for another circuit's."""
        with files.reading(path, files.PRIVATE) as file, _in(path):
            file.require(circuit=self.circuit)
            file.only(KEYS)
            name, keys = file.field("keys", str), file[KEYS]
            self._parameters.require_keys(keys)
            with _read_by_concrete("private keys"):
                self._keys = Keyset.deserialize(keys), name

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
        array = as_array(codes, "codes", "integers")
        if array.shape == (1, *self.doors.input_shape):  # a table of one row
            array = array[0]
        if array.shape != self.doors.input_shape:
            expected = f"one sample of shape {self.doors.input_shape}"
            raise ShapeMismatch(mismatch("codes", f"shape {array.shape}", expected))
        return self._encrypted(self.doors.check_codes(array[None])[0])

    def decrypt(self, answer: bytes) -> NDArray[np.int64]:
        """The output [*output_shape] of one sample.

        Raises: CircuitError without keys, and for integers that the circuit cannot give (an answer
            under other keys); FileFormatError for other bytes than an answer's.
        """
        if self._keys is None:
            raise CircuitError("decrypt: this client has no keys; call load_keys first")
        message = as_bytes(answer, "answer")
        self._parameters.require_answer(message)
        circuit = self._circuit()
        with held_back(), _read_by_concrete("answer"):
            value = circuit.process_output(TransportValue.deserialize(message), 0)
            result = np.asarray(value.to_py_val())
        self._encoding.require(result)
        return self._encoding.outputs(result)

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
        checked, tell = self.doors.check_codes(codes), as_teller(on_sample)
        _, name = self._made_keys()

        def members() -> Iterator[tuple[str, bytes]]:
            for i, sample in enumerate(checked):
                yield str(i), self._encrypted(sample)
                tell(f"sample {i}")

        asked = {"nonce": secrets.token_hex(16), "samples": len(checked)}
        files.write(path, "requests", {**self._header(name), **asked}, members())
        self._asked = asked

    def read_answers(
        self,
        path: str | Path,
        on_sample: OnSample | None = None,
        *,
        requests: str | Path | None = None,
    ) -> NDArray[Any]:
        """The outputs [n, *output_shape] that the server's answers hold, in the requests' order.

        Args:
            requests: the file that is answered; by default what this client saved last.

        Raises: CircuitError without keys, or for integers that the circuit cannot give;
            FileFormatError for answers under other keys or to other requests; InvalidArgument when
            it is not known what is answered.
        """
        if self._keys is None:
            raise CircuitError("read_answers: this client has no keys; call load_keys first")
        (_, name), tell = self._keys, as_teller(on_sample)
        expected = {**self._header(name), **self._answered(requests)}
        outputs = []
        with files.reading(path, "answers") as file, _in(path):
            file.require(**expected)
            for i in range(file.samples()):
                outputs.append(self.decrypt(file[str(i)]))
                tell(f"sample {i}")
        return np.reshape(outputs, (-1, *self._encoding.output_low.shape)).astype(np.int64)

    def _answered(self, requests: str | Path | None) -> files.Header:
        if requests is not None:
            with files.reading(requests, "requests") as file:
                return {"nonce": file.field("nonce", str), "samples": file.samples()}
        if self._asked is None:
            raise InvalidArgument("requests: got None, expected the file that was answered")
        return self._asked

    def _encrypted(self, checked: NDArray[np.int64]) -> bytes:
        (argument,) = self._encoding.arguments(checked[None])
        self.keygen()
        circuit = self._circuit()
        with held_back():
            return bytes(circuit.prepare_input(ClearValue(argument), 0).serialize())

    def _circuit(self) -> Any:
        keyset, _ = self._made_keys()
        info = self._parameters.info
        return ClientProgram.create_encrypted(info, keyset).get_client_circuit("circuit")


class Server:
    """Computes on ciphertexts with evaluation keys.  Made by `Server.load`.

    Attributes:
        digest: of the network that the circuit computes.
        circuit: names the circuit; the client's file and all keys and ciphertexts have the same.
    """

    def __init__(
        self,
        digest: str,
        circuit: str,
        parameters: Parameters,
        folder: tempfile.TemporaryDirectory[str],
    ) -> None:
        self.digest, self.circuit = digest, circuit
        self._parameters = parameters
        self._folder = folder  # removed when the server is
        self._program = ServerProgram(Library(folder.name), False)
        self._keys: ServerKeyset | None = None
        self._keys_name = ""  # of keys from a file

    @classmethod
    def load(cls, path: str | Path) -> Server:
        """Raises: FileFormatError; CircuitError for a circuit of another kind of machine."""
        folder = tempfile.TemporaryDirectory()
        with files.reading(path, "server") as file, _in(path):
            machine = file.field("machine", str)
            if machine != platform.machine():
                expected = f"{platform.machine()}: compile and save it on such a machine"
                raise CircuitError(mismatch("machine of the file", machine, expected))
            digest, salt, client = (file.field(n, str) for n in ("digest", "salt", "client"))
            file.only(*LIBRARY)
            library = {name: file[name] for name in LIBRARY}
            circuit = _identity(client, _program(salt, digest, library))
            file.require(circuit=circuit)
            parameters = Parameters(library[_PARAMETERS_OF_LIBRARY])
            for name, content in library.items():
                Path(folder.name, name).write_bytes(content)
            with _read_by_concrete("library"):
                return cls(digest, circuit, parameters, folder)

    def load_keys(self, evaluation_keys: bytes) -> None:
        """Use these keys from now on; `Client.evaluation_keys` made them.

        Raises: as `read_keys`.
        """
        self._keys, self._keys_name = self.read_keys(evaluation_keys), ""

    def read_keys(self, evaluation_keys: bytes) -> ServerKeyset:
        """These keys as `run` takes them, for a server of many clients.

        Raises: CircuitError when the keys would not fit into the memory that is left,
            FileFormatError for other bytes than this circuit's keys.
        """
        require_memory(self.memory_bytes, "the evaluation keys")
        message = as_bytes(evaluation_keys, "evaluation_keys")
        self._parameters.require_evaluation_keys(message)
        with _read_by_concrete("evaluation keys"):
            return ServerKeyset.deserialize(message)

    def load_evaluation_keys(self, path: str | Path) -> None:
        """As `load_keys`, from a file.  Raises: also FileFormatError for another circuit's keys."""
        with files.reading(path, "evaluation keys") as file, _in(path):
            file.require(circuit=self.circuit)
            file.only(KEYS)
            name = file.field("keys", str)
            self.load_keys(file[KEYS])
            self._keys_name = name

    @property
    def memory_bytes(self) -> int:
        """Memory that the keys take at their peak, while the first run unpacks them."""
        return self._parameters.key_sizes.resident

    def run(self, request: bytes, keys: ServerKeyset | None = None) -> bytes:
        """The encrypted answer to an encrypted sample.

        Args:
            request: of `Client.encrypt`.
            keys: of `read_keys`; None: those that were loaded.

        Raises: CircuitError without keys, FileFormatError for other bytes than a request's.
        """
        keys = self._keys if keys is None else keys
        if keys is None:
            raise CircuitError("run: this server has no evaluation keys; call load_keys first")
        if not isinstance(keys, ServerKeyset):
            raise InvalidType(mismatch("keys", type(keys).__name__, "what read_keys returns"))
        message = as_bytes(request, "request")
        self._parameters.require_request(message)
        circuit = self._program.get_server_circuit("circuit")
        kept = kept_between_runs(self._parameters.key_sizes.bootstrap)
        with held_back(), kept, _read_by_concrete("request"):
            (answer,) = circuit.call([TransportValue.deserialize(message)], keys)
            return self._parameters.rounded(bytes(answer.serialize()))

    def answer(
        self, requests: str | Path, answers: str | Path, on_sample: OnSample | None = None
    ) -> int:
        """Run a file of requests into a file of answers; returns how many there were.

        Raises: CircuitError without keys, FileFormatError for requests under other keys.
        """
        if self._keys is None:
            raise CircuitError("answer: no evaluation keys; call load_evaluation_keys first")
        tell = as_teller(on_sample)
        with files.reading(requests, "requests") as file, _in(requests):
            file.require(circuit=self.circuit, keys=self._keys_name)
            header = answer_header(file)

            def members() -> Iterator[tuple[str, bytes]]:
                for i in range(header["samples"]):
                    yield str(i), self.run(file[str(i)])
                    tell(f"sample {i}")

            files.write(answers, "answers", header, members())
        return int(header["samples"])


# --- files ------------------------------------------------------------------------------------


def answer_header(requests: files.Reader) -> files.Header:
    """The header of the answers to these requests.  Raises: FileFormatError."""
    names = {name: requests.field(name, str) for name in ("circuit", "keys", "nonce")}
    return {**names, "samples": requests.samples()}


@dataclass(frozen=True)
class Halves:
    """What a client's and a server's file say.

    Attributes:
        parameters: serialized encryption parameters of the circuit.
        library: what was compiled, by name of file.
        salt: drawn for this circuit.
    """

    network: Network
    encoding: Encoding
    parameters: bytes
    library: dict[str, bytes]
    salt: str

    @property
    def doors(self) -> Network:
        """A network without weights that quantizes and dequantizes as this one."""
        nodes = [Node("doors", Reshape(self.network.input_shape))]
        names = ("input_shape", "input_format", "input_quantizer", "output_dequantizer")
        return Network(nodes, **{name: getattr(self.network, name) for name in names})

    @property
    def names(self) -> dict[str, str]:
        """Of the client's part, of the program, and of the circuit, which follows from both."""
        client = _client_part(self.doors, self.encoding, self.parameters)
        program = _program(self.salt, self.network.digest, self.library)
        return {"client": client, "program": program, "circuit": _identity(client, program)}


def save_client(halves: Halves, path: str | Path) -> None:
    """Write what `Client.load` reads."""
    encoding = halves.encoding
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, _DOORS)
        halves.doors.save(file)
        saved_doors = file.read_bytes()
    header = {name: halves.names[name] for name in ("circuit", "program")}
    header |= {name: getattr(encoding, name) for name in _INPUT}
    members = {
        _DOORS: saved_doors,
        **{f"{name}.npy": array_to_npy(getattr(encoding, name)) for name in _ARRAYS},
        _PARAMETERS: halves.parameters,
    }
    files.write(path, "client", header, members.items())


def save_server(halves: Halves, path: str | Path) -> None:
    """Write what `Server.load` reads."""
    header = {
        "digest": halves.network.digest,
        "salt": halves.salt,
        **{name: halves.names[name] for name in ("circuit", "client")},
        "machine": platform.machine(),
    }
    files.write(path, "server", header, halves.library.items())


def _client_part(doors: Network, encoding: Encoding, parameters: bytes) -> str:
    """Equal for clients that mean the same by their numbers and may share keys."""
    said = [doors.digest, *(str(getattr(encoding, name)) for name in _INPUT)]
    arrays = (array_to_npy(getattr(encoding, name)) for name in _ARRAYS)
    return files.identity(" ".join(said).encode(), parameters, *arrays)


def _program(salt: str, digest: str, library: dict[str, bytes]) -> str:
    return files.identity(salt.encode(), digest.encode(), *(library[name] for name in LIBRARY))


def _identity(client_part: str, program: str) -> str:
    return files.identity(client_part.encode(), program.encode())


def _require_sound(encoding: Encoding, doors: Network, parameters: Parameters) -> None:
    """Raises: FileFormatError for an encoding that the circuit of these parameters cannot have."""
    fmt, size = doors.input_format, prod(doors.input_shape)
    alone, low, step, top = (getattr(encoding, name) for name in _ARRAYS)
    if any(array.dtype != np.int64 for array in (alone, low, step, top)) or alone.ndim != 1:
        raise FileFormatError("arrays: not those of a circuit of ours")
    argument = doors.input_shape
    if len(alone):
        argument = (size + len(alone) * (fmt.levels - 1),)
    of_parts = (top.size // low.size, 1) if low.ndim == 1 and low.size else (1,)
    sound = {
        "input_low": encoding.input_low == fmt.q_min,
        "input_step": encoding.input_step in (1, fmt.step),
        "read_alone": np.isin(alone, range(size)).all(),
        "argument": parameters.argument_shape == argument,
        "output_low": low.size > 0 and top.size % max(1, low.size) == 0,
        "output_step": step.shape in ((1,), low.shape, of_parts) and (step >= 1).all(),
        "output_top": top.shape == parameters.result_shape,
        "output_top's values": ((top >= 0) & (top < 1 << parameters.result_bits)).all(),
    }
    for name, holds in sound.items():
        if not holds:
            raise FileFormatError(f"{name}: not that of a circuit of ours")
    largest = max(abs(int(low.min())), abs(int(low.max())))
    if largest + int(step.max()) * int(top.max()) * (top.size // low.size) > _LARGEST:
        raise FileFormatError("output_low, output_step: outputs beyond 62 bits")


def as_teller(on_sample: OnSample | None) -> OnSample:
    """Raises: InvalidType."""
    if on_sample is not None and not callable(on_sample):
        raise InvalidType(mismatch("on_sample", repr(on_sample), "a function of a text, or None"))
    return str if on_sample is None else on_sample


def as_bytes(message: bytes, argument: str) -> bytes:
    """Raises: InvalidType."""
    if not isinstance(message, (bytes, bytearray, memoryview)):
        raise InvalidType(mismatch(argument, type(message).__name__, "bytes"))
    return bytes(message)


@contextmanager
def _in(file: str | Path) -> Iterator[None]:
    """An error about the content of a file names the file."""
    try:
        yield
    except FileFormatError as error:
        if str(error).startswith(str(file)):
            raise
        raise FileFormatError(f"{file}: {error}") from error


@contextmanager
def _read_by_concrete(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise FileFormatError(f"{what}: Concrete cannot read it ({error})") from error
