"""Tensors of a device: which runtime's arithmetic do they follow?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from numpy.typing import ArrayLike

from refqnn.diagnosis import Deviation, Diagnosis, diagnose
from refqnn.diagnosis.dump import Dump, integers, renamed
from refqnn.dumps import add_value, arranged
from refqnn.errors import InvalidArgument, NotCovered
from refqnn.graph import INPUT
from refqnn.network import Network
from refqnn.ops.base import IntArray
from refqnn.rounding import Rounding
from refqnn.tflite.files import Model, Tensor, open_model
from refqnn.tflite.operators import read_model
from refqnn.tflite.profiles import RUNTIMES, Runtime
from refqnn.tflite.reader import Imported, file_order

__all__ = ["diagnose_dump"]


def diagnose_dump(
    model: str | os.PathLike[str] | bytes,
    dump: Dump,
    inputs: ArrayLike | None = None,
    *,
    runtime: Runtime = "tflite_ref",
    input: str | None = None,
    output: str | None = None,
    names: Mapping[str, str] | None = None,
    layout: str | None = None,
    rounding: Rounding | str | None = None,
    catalogue: Sequence[Deviation] | None = None,
    budget_s: float | None = 60.0,
) -> Diagnosis:
    """Which runtime do the tensors of a device follow, layer by layer?

    Args:
        model: a TFLite file, or its bytes.
        dump: tensors of the file, [n, *shape] each, by their names in it or by their numbers: a
            mapping, a .npz file, or a folder of .npy files.  Some layers suffice.  Constants of the
            file and floats are passed over, which the notes say.  Also `Network.trace` of the same
            file, with sums that are no tensors of it.
        inputs: codes or floats [n, ...]; the same as the dump's, where it holds the input too.
        runtime: the one that the dump is held against.
        input, output: as for `from_tflite`.
        layout: of the dump, such as "NCHW"; None: that of the file, or ours for a trace of ours.
        names, rounding, catalogue, budget_s: as for `refqnn.diagnose`; the names are the file's.

    Returns: as `refqnn.diagnose`, with all runtimes in `Diagnosis.profiles`.  A tensor is computed
        from those that the dump holds before it, so each layer may follow another runtime.

    Raises: as `from_tflite` of this runtime, and `refqnn.diagnose`.  Another runtime that does not
        cover the model is named in the notes.
    """
    opened = open_model(model).between(input, output)
    imported = read_model(opened, runtime)
    covered = {name: _covered(opened, name) for name in RUNTIMES}
    profiles = {str(name): v for name, v in covered.items() if isinstance(v, Network)}
    notes = {str(n): f"no profile: {v}" for n, v in covered.items() if isinstance(v, NotCovered)}
    values: dict[str, IntArray] = {}
    given = renamed(dump, names)
    ours = {name for _, name, _ in given if _is_ours(opened, imported.network, name)}
    if layout is None and ours - {INPUT}:
        layout = "NCHW"  # a trace of ours
    for theirs, name, array in given:
        if name in ours:
            codes = _in_batches(imported.network, name, integers(array, theirs), None)
            add_value(values, name, codes, theirs)
            continue
        tensor = opened.tensor(name, "name in dump")
        if tensor.index not in imported.nodes:
            notes[theirs] = f"not compared: {'floats' if tensor.data is None else 'a constant'}"
            continue
        value, codes = _arranged(imported, tensor, integers(array, theirs), layout)
        add_value(values, value, codes, theirs)
    found = diagnose(
        imported.network,
        values,
        inputs,
        rounding=rounding,
        catalogue=catalogue,
        profiles=profiles,
        budget_s=budget_s,
    )
    return replace(found, notes={**notes, **found.notes})


def _covered(model: Model, runtime: Runtime) -> Network | NotCovered:
    """The network, or why there is none."""
    try:
        return read_model(model, runtime).network
    except NotCovered as error:
        return error


def _is_ours(model: Model, network: Network, name: str) -> bool:
    """Is it the name of a value of the network, and of no tensor of the file?"""
    try:
        model.tensor(name, "name")
    except InvalidArgument:
        return name in network.shapes
    return False


def _in_batches(network: Network, name: str, values: IntArray, layout: str | None) -> IntArray:
    n = max(1, values.size // prod(network.shapes[name]))
    return arranged(network, {name: values}, n, layout)[name]


def _arranged(
    imported: Imported, tensor: Tensor, values: IntArray, layout: str | None
) -> tuple[str, IntArray]:
    """The value that holds a tensor, and the dump's integers in our order."""
    name, network = imported.nodes[tensor.index], imported.network
    found = _in_batches(network, name, values, layout or "NHWC")
    return (INPUT, file_order(found)) if tensor.index == imported.entry else (name, found)
