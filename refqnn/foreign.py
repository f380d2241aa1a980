"""Which kind of file is this?  What holds no network is named, with the road to take."""

from __future__ import annotations

import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path

from refqnn.container import HEADER, MALFORMED
from refqnn.errors import FileFormatError

__all__ = ["is_ours", "is_tflite", "refuse_foreign"]

_WORDS = {
    "torch": "weights or a module of PyTorch; build the module, load them into it, and convert it "
    "with refqnn.from_brevitas(module, example)",
    "keras": "a model of Keras; export it as ONNX, with its quantizers, and read that file",
    "tflite": "a TFLite model; refqnn.from_tflite reads it",
    "npy": "an array of numpy; samples go where a command asks for X.npy",
    "npz": "arrays of numpy (.npz); a dump is compared by `refqnn diff NETWORK --against FILE`",
    "image": "an image; samples are arrays of numpy, saved by numpy.save",
    "empty": "an empty file",
    "network": "a network file of ours",
    "estimator": "the file of an estimator of ours",
    "certificate": "a certificate; it is checked by `refqnn certify NETWORK --verify FILE`",
    "server": "the server's file of a circuit; it is run by `refqnn fhe server run`",
    "client": "the client's file of a circuit; see `refqnn fhe client`",
}
_ZIP, _TFLITE = b"PK\x03\x04", b"TFL3"
_STARTS = (  # (offset, bytes, kind)
    (0, b"\x89HDF", "keras"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"\x80\x02", "torch"),
    (4, _TFLITE, "tflite"),
    *((0, start, "image") for start in (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")),
)
_MEMBERS = (  # (end of the name of a member of a zip, kind)
    *((f"{kind}.json", kind) for kind in ("network", "estimator")),
    ("/data.pkl", "torch"),
    ("model.weights.h5", "keras"),
    (".npy", "npz"),
)


def is_ours(head: bytes) -> bool:
    """Do the first 8 bytes of a file say that `Network.save` may have written it?"""
    return head.startswith(_ZIP)


def is_tflite(source: str | os.PathLike[str] | bytes) -> bool:
    """Do the first 8 bytes of a file, or these bytes, say that it is a TFLite model?"""
    if isinstance(source, bytes):
        return source[4:8] == _TFLITE
    with open(source, "rb") as file:
        return is_tflite(file.read(8))


def refuse_foreign(
    path: str | Path,
    expected: str = "a network file of ours",
    accepted: tuple[str, ...] = ("network", "estimator"),
) -> None:
    """Raises: FileFormatError when a file is of a kind that is known, and none of the accepted."""
    kind = None
    with suppress(*MALFORMED), open(path, "rb") as file:
        head = file.read(4096)
        kind = next((k for at, start, k in _STARTS if head[at:].startswith(start)), None)
        if not head:
            kind = "empty"
        elif head.startswith(b"PK"):
            kind = _in_zip(path)
        elif head.lstrip().startswith(b"{") and b"refqnn certificate" in head:
            kind = "certificate"
    if kind is not None and kind not in accepted:
        what = _WORDS.get(kind, f"a file of encrypted inference, {kind!r}; see `refqnn fhe`")
        raise FileFormatError(f"{path}: not {expected}, but {what}")


def _in_zip(path: str | Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if HEADER in names and archive.getinfo(HEADER).file_size < 2**16:
            return str(json.loads(archive.read(HEADER)).get("format")).removeprefix("refqnn ")
    return next((kind for end, kind in _MEMBERS for name in names if name.endswith(end)), None)
