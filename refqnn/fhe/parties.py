"""Client and server apart: what each of them keeps, and the files between them.

    client file     input and output doors of the network (no weights), encryption parameters
    server file     the compiled circuit; it holds the network's weights, but no key
    keys            stay with the client; the evaluation keys alone go to the server

    client                                          server
    codes = client.quantize(X)
    keys = client.evaluation_keys()     ------->    server.load_keys(keys)
    request = client.encrypt(codes[0])  ------->    answer = server.run(request)
    acc = client.decrypt(answer)        <-------

Both use Concrete's runtime alone: neither imports torch nor the circuit compiler.
A server file holds machine code: load it from whom you trust.
"""

from __future__ import annotations

import io
import json
import os
import platform
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

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

from refqnn import __version__
from refqnn.container import write_atomically
from refqnn.errors import CircuitError, FileFormatError, ShapeMismatch, mismatch
from refqnn.network import Network, Node, load
from refqnn.ops import Reshape

__all__ = ["Client", "Server", "save_client", "save_server"]

FORMAT_VERSION = 1
_HEADER, _DOORS, _OUTPUT, _PARAMETERS = "refqnn.json", "doors", "output.npz", "parameters.json"
_LIBRARY = ("sharedlib.so", "program_info.concrete.params.json", "compilation_feedback.json")


class Client:
    """Holds the secret key: quantizes, encrypts, decrypts, dequantizes.  Knows no weight.

    Made by `Client.load` from a file that `Circuit.save_client` wrote.

    Attributes:
        doors: a network without weights that has the input and output formats.
        digest: of the network that the circuit computes.
    """

    def __init__(
        self,
        doors: Network,
        header: dict[str, Any],
        output_low: NDArray[np.int64],
        output_step: NDArray[np.int64],
        parameters: ProgramInfo,
    ) -> None:
        self.doors = doors
        self.digest: str = header["digest"]
        self._input_low, self._input_step = int(header["input_low"]), int(header["input_step"])
        self._output_low, self._output_step = output_low, output_step
        self._parameters = parameters
        self._keys: Keyset | None = None

    @classmethod
    def load(cls, path: str | Path) -> Client:
        """Raises: FileFormatError for a damaged, foreign or newer file."""
        header, members = _read(path, "client", (_DOORS, _OUTPUT, _PARAMETERS))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, _DOORS)
            file.write_bytes(members[_DOORS])
            doors = load(file)
        with np.load(io.BytesIO(members[_OUTPUT]), allow_pickle=False) as output:
            low, step = output["low"], output["step"]
        return cls(doors, header, low, step, ProgramInfo.deserialize(members[_PARAMETERS]))

    # --- doors ------------------------------------------------------------------------------

    def quantize(self, X: ArrayLike) -> NDArray[np.int64]:
        """Codes [n, *input_shape] of float samples; as `Network.quantize_input`."""
        return self.doors.quantize_input(X)

    def dequantize(self, acc: ArrayLike) -> NDArray[Any]:
        """Floats of decrypted integers [n, *output_shape]; as `Network.dequantize_output`."""
        return self.doors.dequantize_output(acc)

    # --- keys -------------------------------------------------------------------------------

    def keygen(self, *, force: bool = False) -> None:
        """Make keys unless there are some."""
        if self._keys is None or force:
            system_randomness = (0, 0, 0, 0)  # no seed given
            self._keys = Keyset(self._parameters, None, *system_randomness, None)

    def save_keys(self, path: str | Path) -> None:
        """Write all keys, the secret one too, to a file that its owner alone may read."""
        self.keygen()
        assert self._keys is not None
        keys = self._keys.serialize()
        target = Path(path)
        # mkstemp lets nobody else read the file, and it keeps its mode when it is renamed.
        handle, temporary = tempfile.mkstemp(prefix=target.name + ".", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(keys)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def load_keys(self, path: str | Path) -> None:
        """Read keys that `save_keys` wrote for this circuit."""
        self._keys = Keyset.deserialize(Path(path).read_bytes())

    def evaluation_keys(self) -> bytes:
        """What the server needs to compute on ciphertexts; it cannot decrypt with them."""
        self.keygen()
        assert self._keys is not None
        return bytes(self._keys.get_server_keys().serialize())

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
        checked = self.doors.check_codes(array[None])[0]
        argument = (checked - self._input_low) // self._input_step
        self.keygen()
        return bytes(self._circuit().prepare_input(ClearValue(argument), 0).serialize())

    def decrypt(self, answer: bytes) -> NDArray[np.int64]:
        """The output [*output_shape] of one sample.  Raises: CircuitError without keys."""
        if self._keys is None:
            raise CircuitError("decrypt: this client has no keys; call load_keys first")
        value = self._circuit().process_output(TransportValue.deserialize(bytes(answer)), 0)
        t = np.asarray(value.to_py_val()).astype(np.int64)
        outputs: NDArray[np.int64] = self._output_low + self._output_step * t
        return outputs

    def _circuit(self) -> Any:
        client = ClientProgram.create_encrypted(self._parameters, self._keys)
        return client.get_client_circuit(self._parameters.function_list()[0])


class Server:
    """Computes on ciphertexts with evaluation keys.  Made by `Server.load`.

    Attributes:
        digest: of the network that the circuit computes.
    """

    def __init__(self, digest: str, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.digest = digest
        self._folder = folder  # removed when the server is
        self._library = Library(folder.name)
        self._program = ServerProgram(self._library, False)
        self._keys: ServerKeyset | None = None

    @classmethod
    def load(cls, path: str | Path) -> Server:
        """Raises: FileFormatError; CircuitError for a circuit of another kind of machine."""
        header, members = _read(path, "server", _LIBRARY)
        if header["machine"] != platform.machine():
            expected = f"{platform.machine()}: compile and save it on such a machine"
            raise CircuitError(mismatch("machine of the file", header["machine"], expected))
        folder = tempfile.TemporaryDirectory()
        for name, content in members.items():
            Path(folder.name, name).write_bytes(content)
        return cls(header["digest"], folder)

    def load_keys(self, evaluation_keys: bytes) -> None:
        """Use these keys from now on; `Client.evaluation_keys` made them."""
        self._keys = ServerKeyset.deserialize(bytes(evaluation_keys))

    def run(self, request: bytes) -> bytes:
        """The encrypted answer to an encrypted sample.  Raises: CircuitError without keys."""
        if self._keys is None:
            raise CircuitError("run: this server has no evaluation keys; call load_keys first")
        name = self._library.get_program_info().function_list()[0]
        circuit = self._program.get_server_circuit(name)
        (answer,) = circuit.call([TransportValue.deserialize(bytes(request))], self._keys)
        return bytes(answer.serialize())


# --- files ------------------------------------------------------------------------------------


def save_client(network: Network, lowered: Any, parameters: bytes, path: str | Path) -> None:
    """Write what `Client.load` reads.

    Args:
        lowered: the `Lowered` form of the network.
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
    output = io.BytesIO()
    np.savez(output, low=lowered.output_low, step=lowered.output_step)
    header = {
        "digest": network.digest,
        "input_low": lowered.input_low,
        "input_step": lowered.input_step,
    }
    members = {_DOORS: saved_doors, _OUTPUT: output.getvalue(), _PARAMETERS: parameters}
    _write(path, "client", header, members)


def save_server(network: Network, library: str | Path, path: str | Path) -> None:
    """Write what `Server.load` reads.

    Args:
        library: the folder into which the circuit was compiled.
    """
    members = {name: Path(library, name).read_bytes() for name in _LIBRARY}
    header = {"digest": network.digest, "machine": platform.machine()}
    _write(path, "server", header, members)


def _write(path: str | Path, role: str, header: dict[str, Any], members: dict[str, bytes]) -> None:
    content = {**_versions(role), "refqnn": __version__, **header}

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_HEADER, json.dumps(content, indent=1))
            for name, data in members.items():
                archive.writestr(name, data)

    write_atomically(path, write)


def _versions(role: str) -> dict[str, Any]:
    """What a file must agree with: circuits and keys of another Concrete do not fit."""
    return {
        "format": f"refqnn {role}",
        "version": FORMAT_VERSION,
        "concrete-python": version("concrete-python"),
    }


def _read(
    path: str | Path, role: str, names: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read(_HEADER))
            for name, expected in _versions(role).items():
                if header.get(name) != expected:
                    got = mismatch(name, repr(header.get(name)), repr(expected))
                    raise FileFormatError(f"{path}: {got}")
            return header, {name: archive.read(name) for name in names}
    except FileFormatError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, AttributeError) as error:
        raise FileFormatError(f"{path}: not a whole refqnn {role} file ({error})") from error
