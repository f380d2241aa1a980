"""Traces as files, and what other programs leave of theirs.

    trace.npz           one array a value, under its name, [n, *shape]
    folder/NAME.npy     the same, a file each
    folder/NAME.txt     a line a sample, integers with spaces between them
    folder/NAME.h       C: TRACE_NAME_SAMPLES, TRACE_NAME_SIZE and trace_NAME[SAMPLES][SIZE]

In the names of files what is no letter, digit or one of `_.-~` stands as %XX, as in addresses; in C
it is an underscore.  A dump is read from the first three.  It may hold some values only, flat, and
with their axes in the order of a *layout*: the letters N (samples), C (channels), H and W (rows and
columns).  A value of fewer axes takes the letters that it has: C alone, or C and W.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.container import array_to_npy, as_path, write_atomically
from refqnn.display import shortened
from refqnn.errors import (
    FileFormatError,
    InvalidArgument,
    NotCovered,
    OutOfRange,
    ShapeMismatch,
    mismatch,
)
from refqnn.foreign import refuse_foreign
from refqnn.formats import as_integers
from refqnn.graph import INPUT, inputs_of
from refqnn.ops.base import IntArray, Shape
from refqnn.ops.structure import Role

if TYPE_CHECKING:
    from refqnn.network import Network

__all__ = ["FORMS", "add_value", "arranged", "read_dump", "write_trace"]

Trace = Mapping[str, IntArray]

_AXES = {1: "NC", 2: "NCW", 3: "NCHW"}
_LONGEST = 255  # characters of the name of a file
_C_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")


# --- writing ----------------------------------------------------------------------------------


def write_trace(trace: Trace, path: str | Path, form: str = "npz") -> None:
    """Write the values of `Network.trace`.

    Args:
        path: of the file (npz), or of a folder, which is made.
        form: one of `FORMS`.

    Raises: InvalidArgument for another form, and for a name that it cannot hold; OutOfRange where
        C has no type for a value; OSError.

    >>> from refqnn import IntFormat, Linear, Network, Node
    >>> fc = Node("fc", Linear([[1, -2]]))
    >>> net = Network([fc], input_shape=(2,), input_format=IntFormat(3, signed=False))
    >>> path = getfixture("tmp_path") / "trace.npz"
    >>> write_trace(net.trace([[7, 0], [1, 3]]), path)
    >>> read_dump(path)["fc"].tolist()
    [[7], [-5]]
    """
    if form not in FORMS:
        raise InvalidArgument(mismatch("form", repr(form), f"one of {', '.join(FORMS)}"))
    if form == "npz":
        return write_atomically(path, lambda file: _write_npz(trace, file))
    ending, written = _FILES[form]
    folder = as_path(path)
    files = {name: f"{quote(name, safe='')}{ending}" for name in trace}
    for name, file in files.items():
        if len(file) > _LONGEST:
            got = f"{len(file)} characters of {shortened(name)}"
            expected = f"at most {_LONGEST}, as files have them; the form npz takes any"
            raise InvalidArgument(mismatch("name of a file", got, expected))
    folder.mkdir(parents=True, exist_ok=True)
    for name, identifier in zip(trace, _identifiers(trace)):
        data = written(identifier, as_integers(trace[name], name))
        write_atomically(folder / files[name], _writer(data))


def _writer(data: bytes) -> Callable[[IO[bytes]], object]:
    return lambda file: file.write(data)


def _write_npz(trace: Trace, file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, values in trace.items():
            if "\0" in name:  # where the names in an archive end
                expected = "one without NUL characters; the forms of a folder take any"
                raise InvalidArgument(mismatch("name", repr(name), expected))
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(name, values))


def _npy(name: str, values: IntArray) -> bytes:
    if values.dtype == object:
        expected = "at most 64 bits; the form txt takes any"
        raise OutOfRange(mismatch(f"values of {name!r}", "integers beyond int64", expected))
    return array_to_npy(values)


def _txt(identifier: str, values: IntArray) -> bytes:
    rows = values.reshape(len(values), -1).tolist()
    return "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()


def _header(identifier: str, values: IntArray) -> bytes:
    rows = values.reshape(len(values), -1).tolist()
    wide = "LL" if (kind := _c_type(identifier, values)) == "int64" else ""
    lines = (f"  {{{', '.join(f'{value}{wide}' for value in row)}}}," for row in rows)
    macro = f"TRACE_{identifier.upper()}"
    return "\n".join(
        (
            f"/* {len(rows)} samples of shape {' x '.join(map(str, values.shape[1:]))} */",
            f"#ifndef {macro}_SAMPLES",
            f"#define {macro}_SAMPLES {len(rows)}",
            f"#define {macro}_SIZE {len(rows[0])}",
            "#include <stdint.h>",
            f"static const {kind}_t trace_{identifier}[{len(rows)}][{len(rows[0])}] = {{",
            *lines,
            "};",
            "#endif",
            "",
        )
    ).encode()


def _c_type(identifier: str, values: IntArray) -> str:
    """The narrowest type of C that holds the values.  Raises: OutOfRange."""
    lo, hi = values.min(), values.max()
    for name in _C_TYPES:
        if np.iinfo(name).min <= lo and hi <= np.iinfo(name).max:
            return name
    raise OutOfRange(mismatch(f"values of {identifier}", f"[{lo}, {hi}]", "at most 64 bits"))


def _identifiers(names: Mapping[str, object]) -> list[str]:
    """A name of C for each name, no two of them alike."""
    taken: list[str] = []
    for name in names:
        plain = identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
        while identifier.upper() in map(str.upper, taken):
            identifier = f"{plain}_{len(taken)}"
        taken.append(identifier)
    return taken


_FILES: dict[str, tuple[str, Callable[[str, IntArray], bytes]]] = {
    "npy": (".npy", _npy),
    "txt": (".txt", _txt),
    "c-header": (".h", _header),
}
FORMS = ("npz", *_FILES)


# --- reading ----------------------------------------------------------------------------------


def read_dump(path: str | Path) -> dict[str, NDArray[Any]]:
    """Arrays by name: of an .npz file, or of a folder of .npy and .txt files.

    Raises: FileFormatError for other content and for a folder without such files; OSError as open
        does.
    """
    path = as_path(path)
    if not path.is_dir():
        return _read_npz(path)
    readers = {".npy": _read_npy, ".txt": _read_txt}
    files = [file for file in sorted(path.iterdir()) if file.suffix in readers]
    if not files:
        raise FileFormatError(f"{path}: got no file that ends in .npy or .txt, expected a dump")
    dump: dict[str, NDArray[Any]] = {}
    for file in files:
        name = unquote(file.stem)
        if name in dump:
            raise FileFormatError(f"{path}: two files hold {name!r}")
        dump[name] = readers[file.suffix](file)
    return dump


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    arrays = _numpy(path)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise FileFormatError(f"{path}: got one array, expected an .npz file or a folder")
    with arrays:
        try:
            # By the names of the members: numpy's own take "x.npy" for the array "x".
            members = arrays.zip.namelist() if arrays.zip is not None else []
            return {name.removesuffix(".npy"): arrays[name] for name in members}
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FileFormatError(f"{path}: not arrays of numbers ({error})") from error


def _read_npy(path: Path) -> NDArray[Any]:
    array = _numpy(path)
    if not isinstance(array, np.ndarray):
        raise FileFormatError(f"{path}: several arrays, expected one")
    return array


def _numpy(path: Path) -> object:
    refuse_foreign(path, "arrays of numbers", ("npy", "npz"))
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path}: not arrays of numbers ({error})") from error


def _read_txt(path: Path) -> NDArray[Any]:
    try:
        rows = [list(map(int, line.split())) for line in path.read_text().splitlines() if line]
    except ValueError as error:
        raise FileFormatError(f"{path}: not integers with spaces between them ({error})") from error
    if len({len(row) for row in rows}) != 1:
        raise FileFormatError(f"{path}: got lines of different lengths, expected one a sample")
    return as_integers(rows, str(path))


# --- arranging --------------------------------------------------------------------------------


def arranged(
    network: Network, dump: Mapping[str, ArrayLike], n: int, layout: str | None = None
) -> dict[str, IntArray]:
    """The values of a dump as `Network.trace` has them, [n, *shape].

    Args:
        dump: by the names of values, or of a file's tensors that hold them (`Network.tensors`).
        n: how many samples there are.
        layout: of the dump, such as "NHWC"; None: ours, "NCHW".

    Flat values take the shape of their node, in the layout's order; behind a Flatten they are moved
    as the values in front of it.

    Raises: InvalidArgument for a name that the network does not have, or for no layout;
        ShapeMismatch that names the value.

    >>> from refqnn import Flatten, IntFormat, Network, Node
    >>> net = Network([Node("f", Flatten())], input_shape=(2, 1, 2),
    ...               input_format=IntFormat(3, signed=False))
    >>> arranged(net, {"input": [1, 5, 2, 6]}, 1, "NHWC")["input"].tolist()
    [[[[1, 2]], [[5, 6]]]]
    """
    order = "NCHW" if layout is None else str(layout).upper()
    if sorted(order) != sorted("NCHW"):
        raise InvalidArgument(
            mismatch("layout", repr(layout), "the letters N, C, H, W in an order")
        )
    known = [*network.shapes, *network.tensors]
    unknown = [name for name in dump if name not in known]
    if unknown:
        raise InvalidArgument(mismatch("dump", f"names {unknown}", f"names out of {known}"))
    found: dict[str, IntArray] = {}
    for theirs, values in dump.items():
        name = network.value_of(theirs)
        given = as_integers(values, theirs)
        ours = _in_our_order(given, theirs, (n, *_spread(network, name)), order)
        add_value(found, name, ours.reshape(n, *network.shapes[name]), theirs)
    return found


def add_value(values: dict[str, IntArray], name: str, array: IntArray, theirs: str) -> None:
    """Keep an array of a dump.  Raises: InvalidArgument where another has this name and differs."""
    if not np.array_equal(values.setdefault(name, array), array):
        got, expected = f"others than another tensor of {name!r}", "the same: both are that value"
        raise InvalidArgument(mismatch(f"values of {theirs!r}", got, expected))


def _spread(network: Network, name: str) -> Shape:
    """The shape of a value before it was flattened."""
    while name != INPUT and network[name].op.role is Role.RELABEL:
        (source,) = inputs_of(network[name])
        before, after = network.shapes[source], network.shapes[name]
        if len(after) > 1 or not _kept(network, name, before):
            break
        name = source
    return network.shapes[name]


def _kept(network: Network, name: str, before: Shape) -> bool:
    """Does a node leave the order of values as it is?"""
    try:
        sources = network[name].op.sources(before)
    except NotCovered:
        return False
    return np.array_equal(np.ravel(sources), np.arange(prod(before)))


def _in_our_order(values: IntArray, name: str, shape: Shape, order: str) -> NDArray[np.generic]:
    ours = _AXES.get(len(shape) - 1)
    theirs = ours and "".join(letter for letter in order if letter in ours)
    if ours is None or theirs is None or theirs == ours:
        return values.reshape(_checked(values, name, shape))
    there = tuple(shape[ours.index(letter)] for letter in theirs)
    moved = values.reshape(_checked(values, name, there))
    return moved.transpose([theirs.index(letter) for letter in ours])


def _checked(values: IntArray, name: str, there: Shape) -> Shape:
    """The shape that the values have there.  Raises: ShapeMismatch."""
    flat = values.shape in ((prod(there),), (there[0], prod(there[1:])))
    if not flat and values.shape not in (there, *([there[1:]] if there[0] == 1 else [])):
        expected = f"shape {there}, or its {prod(there)} values flat"
        raise ShapeMismatch(mismatch(f"dump[{name!r}]", f"shape {values.shape}", expected))
    return there
