"""What our saved files have in common: an uncompressed zip of one JSON text and what it names.

    WHAT.json           the content; names every other member and its sha256
    WHAT.sha256         sha256 of WHAT.json, hexadecimal
    ...                 the members

Nothing in a file is executed or unpickled.  Members are stored, not compressed, so a file cannot
unfold into more memory than its own size.  Equal contents give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from refqnn.errors import FileFormatError, RefqnnError

__all__ = ["Container", "write_atomically"]

T = TypeVar("T")
Content = dict[str, Any]
Members = dict[str, bytes]

_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip has no earlier time; equal contents give equal bytes
_MAX_JSON = 2**26

# What wrong content may raise on its way through zipfile, json, numpy and our constructors.
_MALFORMED: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
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
        except _MALFORMED as error:
            raise FileFormatError(f"{name}: malformed {self.what} file ({error!r})") from error

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
        if self._json not in infos or self._sum not in infos:
            raise FileFormatError(f"not a {self.what} file of ours: no {self._json}")
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
            raise FileFormatError("a member is compressed, expected stored members")
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


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write` on a temporary file in the same folder, then rename it to `path`."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=target.name + ".", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
