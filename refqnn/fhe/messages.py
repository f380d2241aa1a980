"""What Concrete deserializes, checked before Concrete sees it.

Concrete trusts its input: with a wrong segment size it reads for ever, and a payload in other
pieces is written beyond its buffer.  But for given encryption parameters all its messages have one
form, so any other is refused:

    parameters    what Concrete reads is what it would write, and sizes agree
    ciphertexts   but for the payload, the bytes of a specimen that is made here under a secret key
                  of its own (a few milliseconds: no other key takes part)
    keys          the tree of structs, lists and sizes that follows from the parameters; no pointer
                  is followed twice

A message is Cap'n Proto: the number and sizes of its segments in words of 8 bytes, then these.
"""

from __future__ import annotations

import json
import struct
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from concrete.compiler import ClientProgram, Keyset, ProgramInfo
from concrete.compiler import Value as ClearValue

from refqnn.errors import FileFormatError
from refqnn.fhe.memory import KeySizes, key_sizes

__all__ = ["Parameters"]

_WORD = 8  # bytes
_PAYLOAD = 64  # where a ciphertext's words begin
_SEEDED = 3  # words of a ciphertext whose mask follows from a seed
_MOST_BYTES = 2**29  # of one payload: more come in pieces, which no circuit of ours needs
_MOST_SEGMENTS = 512  # Cap'n Proto's own limit
_MOST_DIMENSIONS, _MOST_LEVELS = 2**17, 2**6  # beyond any security level there is
_PRECISION, _WIDEST = 64, 62  # bits
_KEPT, _BELOW = 32, 20  # bits of a word: at least, and beyond those of the message
_FOREIGN = (ValueError, LookupError, TypeError, AttributeError)  # of JSON that is not what it was

Fields = dict[str, Any]  # of a JSON object
Tree = tuple[bytes, list[Any]]  # the data of a struct, and what its pointers lead to


class Parameters:
    """The encryption parameters of a circuit, and what its messages must look like.

    Attributes:
        content: as Concrete serialized them.
        info: as Concrete reads them.
        argument_shape, result_shape: of the encrypted integers.
        result_bits: width of each of the result's.
    """

    def __init__(self, content: bytes) -> None:
        """Raises: FileFormatError for anything that the compiler would not have written."""
        try:
            fields = json.loads(content)
            self.info = ProgramInfo.deserialize(content)
            if self.info.serialize() != content:
                raise ValueError("not as Concrete writes them")
            (circuit,) = fields["circuits"]
            (self._input,), (self._output,) = circuit["inputs"], circuit["outputs"]
            _require_sizes(fields["keyset"], [self._input, self._output])
        except (*_FOREIGN, RecursionError, RuntimeError) as error:
            raise FileFormatError(f"not the parameters of a circuit of ours ({error})") from error
        self.content, self._fields = content, fields
        self.argument_shape, self.result_shape = (
            tuple(gate["typeInfo"]["lweCiphertext"]["abstractShape"]["dimensions"])
            for gate in (self._input, self._output)
        )
        encoding = self._output["typeInfo"]["lweCiphertext"]["encoding"]["integer"]
        self.result_bits: int = encoding["width"]

    @cached_property
    def key_sizes(self) -> KeySizes:
        """Sizes of the evaluation keys."""
        return key_sizes(self.content)

    def require_request(self, message: bytes) -> None:
        """Raises: FileFormatError unless it can be an argument's ciphertext."""
        _require_like(message, self._request, "request")

    def require_answer(self, message: bytes) -> None:
        """Raises: FileFormatError unless it can be a result's ciphertext."""
        _require_like(message, self._answer, "answer")

    def rounded(self, answer: bytes) -> bytes:
        """An answer with the high bits of its words alone.

        Lookups come out of a transform in floats, so that the low bits of their words are zeros,
        all but a few, and there a word of a sum is that of one lookup times its weight: one answer
        gives the weights away.  What is dropped adds less than 2**-19 to the variance of the noise
        that an output may have.  Without lookups nothing is dropped.
        """
        dropped = _PRECISION - max(_KEPT, self.result_bits + _BELOW)
        if dropped <= 0 or not self._fields["keyset"]["lweBootstrapKeys"]:
            return answer
        changed = bytearray(answer)
        count = prod(self._output["rawInfo"]["shape"]["dimensions"])
        words = np.frombuffer(changed, "<u8", count, _PAYLOAD)
        words += np.uint64(1 << (dropped - 1))
        words &= np.uint64(2**64 - (1 << dropped))
        return bytes(changed)

    def require_evaluation_keys(self, message: bytes) -> None:
        """Raises: FileFormatError unless these can be evaluation keys."""
        if _tree(message) != self._server_tree:
            raise FileFormatError("evaluation keys: not those of this circuit")

    def require_keys(self, message: bytes) -> None:
        """Raises: FileFormatError unless these can be all the keys of a client."""
        secret = [
            _key(struct.pack("<II", key["id"], 0), _secret_tree(key["params"]), size)
            for key in self._fields["keyset"]["lweSecretKeys"]
            for size in [key["params"]["lweDimension"] * _WORD]
        ]
        if _tree(message) != (b"", [self._server_tree, (b"", [secret])]):
            raise FileFormatError("private keys: not those of this circuit")

    @cached_property
    def _request(self) -> tuple[bytes, int]:
        return self._specimen(self._input)

    @cached_property
    def _answer(self) -> tuple[bytes, int]:
        return self._specimen(self._output)

    def _specimen(self, gate: Fields) -> tuple[bytes, int]:
        """A message of this gate, and how many bytes its payload has."""
        keyset = {**self._fields["keyset"], "lweBootstrapKeys": [], "lweKeyswitchKeys": []}
        (circuit,) = self._fields["circuits"]
        fields = {**self._fields, "keyset": keyset, "circuits": [{**circuit, "inputs": [gate]}]}
        shape = gate["typeInfo"]["lweCiphertext"]["abstractShape"]["dimensions"]
        try:
            info = ProgramInfo.deserialize(json.dumps(fields).encode())
            client = ClientProgram.create_encrypted(info, Keyset(info, None, 0, 0, 0, 0, None))
            zeros = ClearValue(np.zeros(shape, dtype=np.int64))
            made = client.get_client_circuit("circuit").prepare_input(zeros, 0).serialize()
        except (ValueError, RuntimeError) as error:
            raise FileFormatError(f"parameters: they serve no ciphertext ({error})") from error
        return bytes(made), _WORD * prod(gate["rawInfo"]["shape"]["dimensions"])

    @cached_property
    def _server_tree(self) -> Tree:
        keyset = self._fields["keyset"]
        bootstrap, switch = keyset["lweBootstrapKeys"], keyset["lweKeyswitchKeys"]
        return b"", [
            [_bootstrap_tree(key) for key in bootstrap],
            [_switch_tree(k) for k in switch],
            [],
        ]


def _require_sizes(keyset: Fields, gates: list[Fields]) -> None:
    """Raises: ValueError unless keys and ciphertexts have the sizes of the keys they name."""
    sizes = [key["params"]["lweDimension"] for key in keyset["lweSecretKeys"]]
    sound = [key["id"] for key in keyset["lweSecretKeys"]] == list(range(len(sizes)))
    sound &= max(sizes) <= _MOST_DIMENSIONS and not keyset["packingKeyswitchKeys"]
    for key in keyset["lweBootstrapKeys"]:
        p = key["params"]
        sound &= sizes[key["inputId"]] == p["inputLweDimension"] and p["levelCount"] <= _MOST_LEVELS
        sound &= sizes[key["outputId"]] == p["glweDimension"] * p["polynomialSize"] > 0
    for key in keyset["lweKeyswitchKeys"]:
        p = key["params"]
        ends = sizes[key["inputId"]], sizes[key["outputId"]]
        sound &= ends == (p["inputLweDimension"], p["outputLweDimension"])
        sound &= p["levelCount"] <= _MOST_LEVELS
    for gate in gates:
        raw, of = gate["rawInfo"]["shape"]["dimensions"], gate["typeInfo"]["lweCiphertext"]
        words = _SEEDED if of["compression"] == "seed" else of["encryption"]["lweDimension"] + 1
        sound &= sizes[of["encryption"]["keyId"]] == of["encryption"]["lweDimension"]
        sound &= raw == of["concreteShape"]["dimensions"]
        sound &= raw == [*of["abstractShape"]["dimensions"], words]
        sound &= gate["rawInfo"]["integerPrecision"] == of["integerPrecision"] == _PRECISION
        sound &= prod(raw) * _WORD <= _MOST_BYTES and of["encoding"]["integer"]["width"] <= _WIDEST
    if not sound:
        raise ValueError("sizes of keys and ciphertexts that do not belong together")


def _require_like(message: bytes, specimen: tuple[bytes, int], what: str) -> None:
    expected, payload = specimen
    end = _PAYLOAD + payload
    same_length = len(message) == len(expected)
    if (
        not same_length
        or message[:_PAYLOAD] + message[end:] != expected[:_PAYLOAD] + expected[end:]
    ):
        raise FileFormatError(f"{what}: not a ciphertext of this circuit")


# --- the trees of keys ------------------------------------------------------------------------


def _bootstrap_tree(key: Fields) -> Tree:
    p = key["params"]
    body = p["inputLweDimension"] * p["levelCount"] * (p["glweDimension"] + 1) * p["polynomialSize"]
    fields = (p["levelCount"], p["baseLog"], p["glweDimension"], p["polynomialSize"], p["variance"])
    data = struct.pack("<IIIIdIIII", *fields, p["integerPrecision"], 0, p["inputLweDimension"], 0)
    return _switching(key, data, body, p["glweDimension"] + 1)


def _switch_tree(key: Fields) -> Tree:
    p = key["params"]
    dimensions = p["inputLweDimension"], p["outputLweDimension"]
    fields = (p["levelCount"], p["baseLog"], p["variance"], p["integerPrecision"], 0)
    data = struct.pack("<IIdIIII", *fields, *dimensions)
    return _switching(key, data, dimensions[0] * p["levelCount"], dimensions[1] + 1)


def _switching(key: Fields, data: bytes, bodies: int, whole: int) -> Tree:
    """A key of `bodies` words and a seed, or of `whole` times as many."""
    seeded = key["compression"] == "seed"
    ids = struct.pack("<IIII", key["id"], key["inputId"], key["outputId"], seeded)
    modulus: Tree = (bytes(_WORD), [(b"", [])])
    return _key(ids, (data, [modulus]), _WORD * (bodies + 2 if seeded else bodies * whole))


def _secret_tree(p: Fields) -> Tree:
    return struct.pack("<IIII", p["lweDimension"], p["integerPrecision"], 0, 0), []


def _key(ids: bytes, parameters: Tree, payload: int) -> Tree:
    return b"", [(ids, [parameters]), (b"", [[payload]])]


def _tree(message: bytes) -> Any:
    """The structs of a message; of a list of bytes, the length.  Raises: FileFormatError."""
    try:
        return _Message(message).root()
    except (struct.error, ValueError, RecursionError) as error:
        raise FileFormatError(f"keys: not a message of Concrete ({error})") from error


class _Message:
    def __init__(self, message: bytes) -> None:
        count = struct.unpack_from("<I", message)[0] + 1
        if count > _MOST_SEGMENTS:
            raise ValueError(f"{count} segments")
        sizes = struct.unpack_from(f"<{count}I", message, 4)
        start = (4 + 4 * count + _WORD - 1) // _WORD * _WORD
        if len(message) != start + _WORD * sum(sizes):
            raise ValueError(f"{len(message)} bytes for segments of {sizes} words")
        ends = np.cumsum([start, *(_WORD * size for size in sizes)]).tolist()
        self._message, self._segments = message, list(pairwise(ends))
        self._left = sum(sizes)  # words that have not been visited

    def root(self) -> Any:
        return self._at(0, 0)

    def _at(self, segment: int, place: int) -> Any:
        """What the pointer at this word of the segment leads to."""
        (pointer,) = struct.unpack("<Q", self._words(segment, place, 1))
        kind, offset = pointer & 3, (pointer & 0xFFFFFFFF) >> 2
        if kind == 2:  # to a pointer in another segment
            return self._at(pointer >> 32, (pointer & 0xFFFFFFFF) >> 3)
        start = place + 1 + (offset - 2**30 if offset >= 2**29 else offset)
        if kind == 0:
            return self._struct(segment, start, pointer >> 32 & 0xFFFF, pointer >> 48)
        if kind != 1:
            raise ValueError("a capability")
        size, count = pointer >> 32 & 7, pointer >> 35
        if size == 2:  # bytes
            self._claim(segment, start, (count + _WORD - 1) // _WORD)
            return count
        if size == 6:  # pointers
            return [self._at(segment, start + i) for i in range(count)]
        if size != 7:  # not structs
            raise ValueError(f"a list of elements of size {size}")
        (tag,) = struct.unpack("<Q", self._words(segment, start, 1))
        data, pointers = tag >> 32 & 0xFFFF, tag >> 48
        step = data + pointers
        items = (tag & 0xFFFFFFFF) >> 2
        if items * step != count:
            raise ValueError("a list of another length")
        starts = (start + 1 + i * step for i in range(items if step else 0))
        return [self._struct(segment, at, data, pointers) for at in starts]

    def _struct(self, segment: int, start: int, data: int, pointers: int) -> Tree:
        content = self._words(segment, start, data) if data else b""
        return content, [self._at(segment, start + data + i) for i in range(pointers)]

    def _words(self, segment: int, start: int, count: int) -> bytes:
        at = self._claim(segment, start, count)
        return self._message[at : at + _WORD * count]

    def _claim(self, segment: int, start: int, count: int) -> int:
        """Where these words are; no more in all than the message has."""
        begin, end = self._segments[segment] if segment < len(self._segments) else (0, 0)
        self._left -= count
        if self._left < 0 or start < 0 or begin + _WORD * (start + count) > end:
            raise ValueError("a pointer beyond its segment")
        return begin + _WORD * start
