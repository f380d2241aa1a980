"""The files of encrypted inference: a zip of one JSON header and what it speaks of.

    kind              written by                  holds
    client            Circuit.save_client         doors, encryption parameters; no weight, no key
    server            Circuit.save_server         the compiled circuit; no key
    private keys      Client.save_keys            everything; its owner alone may read it
    evaluation keys   Client.save_evaluation_keys what computes on ciphertexts and cannot decrypt
    requests          Client.save_requests        one ciphertext a sample, in order
    answers           Server.answer               the same

Each header names the kind, the version of the format, the version of Concrete and the circuit; keys
and ciphertexts also name the keys, and answers repeat the nonce of their requests and are as many.
Whatever does not belong together is refused, not computed, and so are members, or bytes around
them, that nobody asked for.  A file of private keys is never overwritten.
Members are stored as they are (ciphertexts do not compress), and zip keeps a checksum of each.
Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from refqnn import __version__
from refqnn.container import HEADER, MALFORMED, PRIVATE, as_path, refuse_keys, write_atomically
from refqnn.errors import FileFormatError, mismatch
from refqnn.foreign import refuse_foreign

__all__ = ["PRIVATE", "Reader", "identity", "reading", "write"]

FORMAT_VERSION = 3
_MAX_HEADER = 2**16
_END = 22  # bytes that end an archive without a comment
Header = dict[str, Any]

# What to do about a header that does not fit, by field.
_REMEDIES = {
    "version": "make the file again with this release of refqnn",
    "concrete-python": "make the file again with the version installed here, or install its own",
    "circuit": "use files of one `refqnn fhe compile`",
    "keys": "use files of one `refqnn fhe client keygen`",
    "nonce": "these are the answers to other requests",
    "samples": "not every request has its answer",
}


def identity(*parts: bytes) -> str:
    """A name that equal parts share and other parts do not: 32 hexadecimal digits."""
    sums = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(sums).hexdigest()[:32]


def write(
    path: str | Path,
    kind: str,
    header: Header,
    members: Iterable[tuple[str, bytes]],
    *,
    private: bool = False,
) -> None:
    """Write one file; members are written as they come, so that they need not fit in memory.

    Raises: InvalidArgument where private keys would be overwritten.

    They gather in a file without a name first: making them may take hours, and a process that ends
    in between, however it ends, leaves nothing.
    """
    refuse_keys(as_path(path))
    content = {**_versions(kind), "refqnn": __version__, **header}
    with tempfile.TemporaryFile(dir=Path(path).resolve().parent) as gathered:
        with zipfile.ZipFile(gathered, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(HEADER, json.dumps(content, indent=1))
            for name, data in members:
                archive.writestr(name, data)
        gathered.seek(0)
        write_atomically(path, lambda file: shutil.copyfileobj(gathered, file), private=private)


class Reader:
    """An open file: its header, its members by name.

    Attributes:
        header: checked against the expected kind and the versions in use.
    """

    def __init__(self, path: str | Path, kind: str, archive: zipfile.ZipFile) -> None:
        self._path, self._kind, self._archive = path, kind, archive
        self.header: Header = self._checked_header()

    def __getitem__(self, name: str) -> bytes:
        """Raises: FileFormatError for a member that is absent or damaged."""
        try:
            info = self._archive.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED:
                raise FileFormatError(f"{self._path}: {name} is compressed, expected stored")
            return self._archive.read(info)
        except FileFormatError:
            raise
        except MALFORMED as error:
            raise _damaged(self._path, self._kind, error) from error

    def field(self, name: str, kind: type[int] | type[str]) -> Any:
        """A value of the header.  Raises: FileFormatError unless it is of this kind."""
        value = self.header.get(name)
        if type(value) is not kind:
            got = mismatch(name, repr(value), f"a value of type {kind.__name__}")
            raise FileFormatError(f"{self._path}: {got}")
        return value

    def samples(self) -> int:
        """How many samples there are.  Raises: FileFormatError unless just these are there."""
        n: int = self.field("samples", int)
        if n < 0 or not self._holds(map(str, range(min(n, len(self._archive.filelist))))):
            raise FileFormatError(f"{self._path}: its members are not {n} samples")
        return n

    def only(self, *names: str) -> None:
        """Raises: FileFormatError unless just these members are there."""
        if not self._holds(names):
            raise FileFormatError(f"{self._path}: its members are not those of {self._kind}")

    def _holds(self, names: Iterable[str]) -> bool:
        return sorted(self._archive.namelist()) == sorted((HEADER, *names))

    def require(self, **expected: str | int) -> None:
        """Raises: FileFormatError unless the header has these values."""
        for name, value in expected.items():
            self._require(self.header, name, value)

    def _checked_header(self) -> Header:
        try:
            if self._archive.getinfo(HEADER).file_size > _MAX_HEADER:
                raise FileFormatError(f"{self._path}: its header is too long")
            header = json.loads(self[HEADER])
        except MALFORMED as error:
            if isinstance(error, FileFormatError):
                raise
            raise _damaged(self._path, self._kind, error) from error
        if not isinstance(header, dict):
            raise FileFormatError(f"{self._path}: its header is no JSON object")
        for name, value in _versions(self._kind).items():
            self._require(header, name, value)
        return header

    def _require(self, header: Header, name: str, expected: object) -> None:
        if header.get(name) != expected:
            remedy = f"; {_REMEDIES[name]}" if name in _REMEDIES else ""
            text = mismatch(name, repr(header.get(name)), f"{expected!r}{remedy}")
            raise FileFormatError(f"{self._path}: {text}")


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[Reader]:
    """Open a file of this kind.  Raises: FileFormatError for a damaged or foreign one; OSError."""
    with open(as_path(path), "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except MALFORMED as error:
            raise _damaged(path, kind, error) from error
        with archive:
            reader = Reader(path, kind, archive)
            _require_nothing_around(path, file, archive)
            yield reader


def _require_nothing_around(path: str | Path, file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Raises: FileFormatError for bytes before the first member or after the archive's end."""
    file.seek(-_END, os.SEEK_END)
    first = min(info.header_offset for info in archive.filelist)
    if first or not file.read().startswith(b"PK\x05\x06"):
        raise FileFormatError(f"{path}: there are bytes before its members, or after them")


def _versions(kind: str) -> Header:
    """What a file must agree with: circuits and keys of another Concrete do not fit."""
    return {
        "format": f"refqnn {kind}",
        "version": FORMAT_VERSION,
        "concrete-python": version("concrete-python"),
    }


def _damaged(path: str | Path, kind: str, error: BaseException) -> FileFormatError:
    refuse_foreign(path, f"a refqnn file of {kind}", (kind,))
    return FileFormatError(f"{path}: not a whole refqnn file of {kind} ({error})")
