"""Which kind of file is this?  What holds no network is named, with the road to take."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from refqnn.container import HEADER, MALFORMED
from refqnn.errors import FileFormatError

__all__ = ["is_ours", "is_tflite", "refuse_foreign"]

_ZIP, _TFLITE = b"PK\x03\x04", b"TFL3"
_TORCH = (
    "weights or a module of PyTorch; build the module, load them into it, and convert it with "
    "refqnn.from_brevitas(module, example)"
)
_KERAS = "a model of Keras; export it as ONNX, with its quantizers, and read that file"
_STARTS = (  # (offset, bytes, what it is)
    (0, b"\x89HDF", _KERAS),
    (0, b"\x93NUMPY", "an array of numpy; samples go where a command asks for X.npy"),
    (0, b"\x80\x02", _TORCH),
    (4, _TFLITE, "a TFLite model; refqnn.from_tflite reads it"),
)
_MEMBERS = (  # (end of the name of a member of a zip, what the file is)
    ("/data.pkl", _TORCH),
    ("model.weights.h5", _KERAS),
    (".npy", "arrays of numpy (.npz); a dump is compared by `refqnn diff NETWORK --against FILE`"),
)
_OURS = {  # "format" in the header of our other files
    "refqnn server": "the server's file of a circuit; it is run by `refqnn fhe server run`",
    "refqnn client": "the client's file of a circuit; see `refqnn fhe client`",
    "refqnn certificate": "a certificate; it is checked by `refqnn certify NETWORK --verify FILE`",
}


def is_ours(head: bytes) -> bool:
    """Do the first 8 bytes of a file say that `Network.save` may have written it?"""
    return head.startswith(_ZIP)


def is_tflite(head: bytes) -> bool:
    """Do they say that it is a TFLite model?"""
    return head[4:8] == _TFLITE


def refuse_foreign(path: str | Path) -> None:
    """Raises: FileFormatError when a file is of a kind that is known, and no network of ours."""
    what = None
    with suppress(*MALFORMED), open(path, "rb") as file:
        head = file.read(4096)
        what = next((w for at, start, w in _STARTS if head[at:].startswith(start)), None)
        if head.startswith(b"PK"):
            what = _in_zip(path)
        elif head.lstrip().startswith(b"{") and b"refqnn certificate" in head:
            what = _OURS["refqnn certificate"]
    if what is not None:
        raise FileFormatError(f"{path}: not a network file of ours, but {what}")


def _in_zip(path: str | Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names: Sequence[str] = archive.namelist()
        if "network.json" in names or "estimator.json" in names:
            return None
        if HEADER in names and archive.getinfo(HEADER).file_size < 2**16:
            kind = str(json.loads(archive.read(HEADER)).get("format"))
            return _OURS.get(kind, f"a file of encrypted inference, {kind!r}; see `refqnn fhe`")
    found = (what for end, what in _MEMBERS for name in names if name.endswith(end))
    return next(found, None) if not any(name.startswith("arrays/") for name in names) else None
