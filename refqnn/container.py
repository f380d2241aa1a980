"""What our saved files have in common: an uncompressed zip of one JSON text and what it names.

    WHAT.json           the content; names every other member and its sha256
    WHAT.sha256         sha256 of WHAT.json, hexadecimal
    ...                 the members

Nothing in a file is executed, evaluated or unpickled.  Members are stored, not compressed, and an
array's shape is held against its bytes, so a file cannot unfold into more memory than its own size.
Equal contents give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, InvalidArgument, InvalidType, RefqnnError, mismatch
from refqnn.formats import as_integers, is_integer
from refqnn.limits import MAX_VALUES

__all__ = [
    "HEADER",
    "MALFORMED",
    "PRIVATE",
    "Container",
    "array_to_npy",
    "as_path",
    "checksum",
    "decode_integers",
    "encode_integers",
    "npy_to_array",
    "opened",
    "pair_of",
    "read_file",
    "read_json",
    "refuse_keys",
    "sealed",
    "write_atomically",
    "write_json",
]

T = TypeVar("T")
Content = dict[str, Any]
Members = dict[str, bytes]

_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip has no earlier time; equal contents give equal bytes
_MAX_JSON = 2**26

# What wrong content may raise on its way through zipfile, json, numpy and our constructors.
MALFORMED: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    *(zipfile.BadZipFile, zlib.error, EOFError),
)

# The head of a .npy file as numpy.save writes it.  Matched, because numpy.load evaluates it.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00.."
    rb"\{'descr': '(?P<dtype>[<|](?:[iu][1248]|f[248]|b1|U\d{1,9}))', "
    rb"'fortran_order': (?P<fortran>False|True), "
    rb"'shape': \((?P<shape>|\d{1,10},|\d{1,10}(?:, \d{1,10}){1,31})\), \} *\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Container:
    """One kind of file.

    Args:
        what: "network" or "estimator"; names the JSON text and appears in messages.
        version: of the format; other versions are refused.
        listing: the key of the content under which the members and their sha256 stand.
    """

    what: str
    version: int
    listing: str

    def text(self, content: Content, members: Members) -> bytes:
        """The JSON text: format, version, the content, and the sha256 of every member."""
        head = {"format": f"refqnn {self.what}", "version": self.version}
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
        whole = {**head, **content, self.listing: sums}
        return json.dumps(whole, indent=1, sort_keys=True).encode()

    def pack(self, content: Content, members: Members) -> bytes:
        """The whole file."""
        text = self.text(content, members)
        checksum = hashlib.sha256(text).hexdigest().encode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, data in ((self._json, text), (self._sum, checksum), *members.items()):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        return buffer.getvalue()

    def unpack(self, data: bytes, name: str | Path, decode: Callable[[Content, Members], T]) -> T:
        """What `decode` makes of the content and the members of a file.

        Raises: FileFormatError for a truncated, altered or foreign file or one of another version,
            and for whatever `decode` chokes on; messages begin with `name`.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return decode(*self._verified(archive))
        except FileFormatError as error:
            raise FileFormatError(f"{name}: {error}") from None
        except RefqnnError as error:
            raise FileFormatError(f"{name}: {error}") from error
        except (zipfile.BadZipFile, EOFError) as error:
            raise FileFormatError(f"{name}: not a complete {self.what} file ({error})") from error
        except MALFORMED as error:
            raise FileFormatError(f"{name}: malformed {self.what} file ({error!r})") from error

    def describes(self, data: bytes) -> bool:
        """Is it a file of this kind, by the names of its members?"""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return self._json in archive.namelist()
        except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, OSError, struct.error):
            return False

    @property
    def _json(self) -> str:
        return f"{self.what}.json"

    @property
    def _sum(self) -> str:
        return f"{self.what}.sha256"

    def _verified(self, archive: zipfile.ZipFile) -> tuple[Content, Members]:
        infos = {info.filename: info for info in archive.infolist()}
        if len(infos) != len(archive.infolist()):
            raise FileFormatError("two members have the same name")
        for name in (self._json, self._sum):
            if name not in infos:
                raise FileFormatError(f"no {self.what} file of ours: {name} is missing")
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
            raise FileFormatError("a member is compressed, expected stored members")
        assert archive.fp is not None
        if sum(info.file_size for info in infos.values()) > archive.fp.seek(0, io.SEEK_END):
            raise FileFormatError("the members are larger than the file")
        if infos[self._json].file_size > _MAX_JSON:
            raise FileFormatError(f"{self._json} is larger than {_MAX_JSON} bytes")
        text = archive.read(self._json)
        if hashlib.sha256(text).hexdigest().encode() != archive.read(self._sum):
            raise FileFormatError(f"{self._json} does not match its checksum: it was altered")
        content = json.loads(text)
        if content["format"] != f"refqnn {self.what}":
            expected = f"{f'refqnn {self.what}'!r}"
            raise FileFormatError(f"got a file of {content['format']!r}, expected {expected}")
        if content["version"] != self.version:
            raise FileFormatError(
                f"format version {content['version']}, expected {self.version}: "
                "another release of refqnn wrote it"
            )
        sums = content[self.listing]
        if set(sums) | {self._json, self._sum} != set(infos):
            raise FileFormatError(f"the members of the file are not those that {self._json} names")
        members = {name: archive.read(name) for name in sums}
        for name, member in members.items():
            if hashlib.sha256(member).hexdigest() != sums[name]:
                raise FileFormatError(f"{name} does not match its checksum: it was altered")
        return content, members


# --- arrays -----------------------------------------------------------------------------------


def array_to_npy(array: NDArray[Any]) -> bytes:
    """The bytes of a .npy file: little endian, equal for equal arrays."""
    buffer = io.BytesIO()
    little_endian = array.astype(array.dtype.newbyteorder("<"))
    np.save(buffer, little_endian, allow_pickle=False)
    return buffer.getvalue()


def npy_to_array(data: bytes) -> NDArray[Any]:
    """The numbers, truth values or text in the bytes of a .npy file.

    Raises: FileFormatError for any other content, objects (pickles) among them, and for a shape
        that does not agree with the number of bytes, before memory is taken.
    """
    head = _NPY.match(data)
    if head is None or head.end() != 10 + int.from_bytes(data[8:10], "little"):
        expected = "numbers, truth values or text as numpy.save writes them, no pickle"
        raise FileFormatError(mismatch("array", repr(data[:80]), expected))
    dtype = np.dtype(head["dtype"].decode())
    shape = tuple(int(d) for d in head["shape"].decode().split(",") if d)
    filled = prod(shape) * dtype.itemsize == len(data) - head.end()
    if not filled or dtype.itemsize == 0:
        got = f"shape {shape} of {dtype} in {len(data) - head.end()} bytes"
        raise FileFormatError(mismatch("array", got, "a shape that these bytes fill"))
    if dtype.kind == "b" and max(data[head.end() :], default=0) > 1:
        raise FileFormatError("array: a truth value is neither 0 nor 1")
    if dtype.kind == "U" and (np.frombuffer(data, "<u4", offset=head.end()) > sys.maxunicode).any():
        raise FileFormatError("array: a character is no Unicode")
    array = np.frombuffer(data, dtype, offset=head.end())
    return array.reshape(shape, order="F" if head["fortran"] == b"True" else "C").copy(order="K")


# --- files ------------------------------------------------------------------------------------


def read_file(path: str | Path) -> bytes:
    """The content of a regular file: a device or a pipe may never end.

    Raises: FileFormatError; OSError as open does.
    """
    path = as_path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FileFormatError(mismatch(str(path), "a device or a pipe", "a regular file"))
    return path.read_bytes()


def read_json(path: str | Path, decode: Callable[[Any], T]) -> T:
    """What `decode` makes of the JSON value in a file.

    Raises: FileFormatError that begins with the path; OSError as open does.
    """
    data = read_file(path)
    try:
        return decode(json.loads(data))
    except RecursionError:
        raise FileFormatError(f"{path}: not a JSON file of ours (too deeply nested)") from None
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except ValueError as error:
        raise FileFormatError(f"{path}: not a JSON file ({error})") from None


def write_json(path: str | Path, content: Content) -> None:
    """Write it as one line, atomically."""
    text = json.dumps(content, separators=(",", ":")) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def sealed(what: str, version: int, content: Content) -> Content:
    """Content for a JSON file: what it is in front, a checksum behind; `opened` takes it apart."""
    whole = {"format": f"refqnn {what}", "version": version, **content}
    return {**whole, "sha256": checksum(whole)}


def opened(sealed: Any, what: str, version: int, keys: Iterable[str]) -> Content:
    """The content of such a file, which has these keys and no others.

    Raises: FileFormatError for another kind or version, other keys, and altered content; one of
        `MALFORMED` for what is no object of JSON.
    """
    if sealed["format"] != f"refqnn {what}":
        expected = f"{f'refqnn {what}'!r}"
        raise FileFormatError(f"got a file of {sealed['format']!r}, expected {expected}")
    if sealed["version"] != version or type(sealed["version"]) is not int:
        raise FileFormatError(f"format version {sealed['version']}, expected {version}")
    whole = {"format", "version", *keys, "sha256"}
    if set(sealed) != whole:
        raise FileFormatError(mismatch("keys", sorted(sealed), f"{sorted(whole)}"))
    body = {key: value for key, value in sealed.items() if key != "sha256"}
    if checksum(body) != sealed["sha256"]:
        raise FileFormatError("the content does not match its checksum: it was altered")
    return body


def checksum(content: Content) -> str:
    """sha256 of the content as JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


HEADER = "refqnn.json"  # of the files of encrypted inference: what they are
PRIVATE = "private keys"


def as_path(path: object, argument: str = "path") -> Path:
    """Raises: InvalidType, InvalidArgument for what names no file; a number would open one."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise InvalidType(mismatch(argument, repr(path), "a path"))
    if "\0" in os.fspath(path):
        raise InvalidArgument(mismatch(argument, repr(path), "a path without null characters"))
    return Path(path)


def refuse_keys(path: str | Path) -> None:
    """Raises: InvalidArgument when this is a file of private keys: nothing may take its place."""
    header: object = None
    with suppress(*MALFORMED), zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read(HEADER))
    if isinstance(header, dict) and header.get("format") == f"refqnn {PRIVATE}":
        expected = "another file: what these keys encrypted would be lost"
        raise InvalidArgument(mismatch("path", f"{path}, which holds private keys", expected))


def write_atomically(
    path: str | Path, write: Callable[[IO[bytes]], object], *, private: bool = False
) -> None:
    """Call `write` on a new file in the same folder, then rename it to `path`.

    Whatever interrupts it, `path` holds the old content or the new one, and nothing is left beside
    it.  A device or a pipe (/dev/stdout) is written to as it is.

    Args:
        private: the file is readable and writable by its owner alone, from its first byte on.

    Raises: OSError that names `path`; InvalidArgument where private keys would be overwritten.
    """
    target = as_path(path)
    refuse_keys(target)
    mode = 0o600 if private else 0o666  # less the umask

    def create(name: str, flags: int) -> int:
        return os.open(name, flags, mode)

    if target.exists() and not target.is_file():
        with open(target, "wb") as file:
            write(file)
        return
    target = target.resolve()  # a link stays a link
    temporary = target.with_name(f".refqnn-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb", opener=create) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


# --- integers in JSON -----------------------------------------------------------------------


def encode_integers(array: NDArray[np.int64]) -> dict[str, Any]:
    """Shape and values in row-major order; one value where all are equal."""
    values = array.reshape(-1)
    constant = array.size > 0 and bool((values == values[0]).all())
    return {
        "shape": list(array.shape),
        "values": int(values[0]) if constant else [int(v) for v in values.tolist()],
    }


def decode_integers(item: Any) -> NDArray[np.int64]:
    """What `encode_integers` made.  Raises: FileFormatError, or one of `MALFORMED`."""
    values, shape = item["values"], tuple(item["shape"])
    if not all(is_integer(d) and d >= 0 for d in shape) or prod(shape) > MAX_VALUES:
        raise FileFormatError(mismatch("shape", shape, f"at most {MAX_VALUES} values"))
    if isinstance(values, list):
        if not all(is_integer(v) for v in values):
            raise FileFormatError(mismatch("values", "no flat list of integers", "one"))
        return as_integers(np.array(values, dtype=object).reshape(shape), "values")
    # A view of one value: a shape alone takes no memory.
    return np.broadcast_to(as_integers(np.array(values, dtype=object), "values"), shape)


def pair_of(values: Any) -> tuple[int, int] | None:
    """Two integers, lo <= hi, out of a file.  Raises: FileFormatError."""
    if values is None:
        return None
    lo, hi = values
    if not (is_integer(lo) and is_integer(hi) and lo <= hi):
        raise FileFormatError(mismatch("range", repr(values), "two integers, lo <= hi"))
    return lo, hi
