"""Accumulators and their certificates as JSON.

An accumulator for all nodes that sum, or one for each that is named:

    {"stages": [{"width": 16, "group": 2, "overflow": "saturate"}, {"width": 32}], "bias": "first"}
    {"layers": {"fc1": {"stages": [{"width": 12}]}}}

Keys are the arguments of `Stage` and `Accumulator`, with the same defaults.  A certificate holds
the certificate of the exact values, the accumulator of each node, and what is said of each stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refqnn.accumulator.arguments import index_of
from refqnn.accumulator.bounds import Proof
from refqnn.accumulator.staged_report import StageReport, StageSum, Verdict
from refqnn.container import (
    MALFORMED,
    decode_integers,
    encode_integers,
    opened,
    pair_of,
    read_json,
    sealed,
)
from refqnn.emulate import Accumulator, Accumulators, Stage, accumulator_of
from refqnn.errors import FileFormatError, mismatch
from refqnn.foreign import refuse_foreign
from refqnn.formats import is_integer

if TYPE_CHECKING:
    from refqnn.accumulator.certificate import Certificate

__all__ = ["WHAT", "decode", "encode", "read_accumulators"]

WHAT = "certificate of stages"
FORMAT_VERSION = 1
_KEYS = ("certificate", "accumulators", "stages")
_PROOFS = {proof.label: proof for proof in Proof}
_FOUND = ("neuron", "group", "witness", "value", "exact", "result")


def read_accumulators(path: str | Path) -> Accumulators:
    """The accumulators in a JSON file; see the module.

    Raises: FileFormatError that names what is wrong; OSError as open does.
    """

    def decoded(content: Any) -> Accumulators:
        try:
            if isinstance(content, dict) and set(content) == {"layers"}:
                return {name: _accumulator(item) for name, item in content["layers"].items()}
            return _accumulator(content)
        except MALFORMED as error:
            raise FileFormatError(f"no accumulator ({error})") from error

    refuse_foreign(path, "a JSON file of an accumulator", ())
    return read_json(path, decoded)


def encode(
    certificate: Certificate, accumulators: Accumulators, stages: Sequence[StageReport]
) -> dict[str, Any]:
    """See `StagedCertificate.to_json`."""
    layers = dict.fromkeys(report.layer for report in stages)
    named = {name: accumulator_of(accumulators, name) for name in layers}
    content = {
        "certificate": certificate.to_json(),
        "accumulators": {n: None if a is None else _plain(a) for n, a in named.items()},
        "stages": [_encode(report) for report in stages],
    }
    return sealed(WHAT, FORMAT_VERSION, content)


def decode(content: Any) -> tuple[Certificate, Accumulators, tuple[StageReport, ...]]:
    """The fields of `StagedCertificate`; see its `from_json`."""
    from refqnn.accumulator import Certificate  # which makes those of stages

    try:
        content = opened(content, WHAT, FORMAT_VERSION, _KEYS)
        certificate = Certificate.from_json(content["certificate"])
        accumulators = {n: _accumulator(item) for n, item in content["accumulators"].items()}
        reports = [_decode(item, accumulators, certificate) for item in content["stages"]]
        got = [(report.layer, report.number) for report in reports]
        expected = [(n, i) for n, a in accumulators.items() for i in range(len(a.stages))]
        if sorted(got) != sorted(expected):
            raise FileFormatError(mismatch("stages", got, f"one report for each of {expected}"))
        return certificate, accumulators, tuple(reports)
    except FileFormatError:
        raise
    except MALFORMED as error:
        raise FileFormatError(f"malformed {WHAT} ({error!r})") from error


def _plain(accumulator: Accumulator) -> dict[str, Any]:
    return {**asdict(accumulator), "stages": [asdict(stage) for stage in accumulator.stages]}


def _accumulator(item: Any) -> Accumulator:
    return Accumulator(**{**item, "stages": [Stage(**stage) for stage in item["stages"]]})


def _encode(report: StageReport) -> dict[str, Any]:
    found = report.found
    return {
        "layer": report.layer,
        "number": report.number,
        "range": list(report.range),
        "verdict": report.verdict.value,
        "proof": report.proof.label,
        "found": None
        if found is None
        else {**vars(found), "witness": encode_integers(found.witness)},
        "widest": report.widest,
    }


def _decode(
    item: Any, accumulators: dict[str, Accumulator], certificate: Certificate
) -> StageReport:
    layer, number, found = item["layer"], item["number"], item["found"]
    shape, range_, verdict = certificate[layer].lo.shape, pair_of(item["range"]), item["verdict"]
    shown = found is not None and found["exact"] != found["result"]
    needed = {"harmful": True, "overflows": False}
    if verdict in needed and (found is None or shown != needed[verdict]):
        raise FileFormatError(f"{layer!r} stage {number}: {verdict!r} without an input that is so")
    if range_ is None:
        raise FileFormatError(f"{layer!r} stage {number}: no range")
    return StageReport(
        layer,
        number,
        accumulators[layer].stages[number],
        range_,
        Verdict(verdict),
        _PROOFS[item["proof"]],
        None if found is None else _sum(found, shape, certificate),
        None if item["widest"] is None else index_of(item["widest"], shape, "widest"),
    )


def _sum(item: Any, shape: tuple[int, ...], certificate: Certificate) -> StageSum:
    if set(item) != set(_FOUND):
        raise FileFormatError(mismatch("found", sorted(item), f"{sorted(_FOUND)}"))
    witness = decode_integers(item["witness"])
    if witness.dtype == object or witness.shape != certificate.domain.hull.shape:
        raise FileFormatError("witness: expected an input of the domain")
    numbers = [item[key] for key in ("group", "value", "exact")]
    if not all(map(is_integer, numbers)) or not (
        item["result"] is None or is_integer(item["result"])
    ):
        raise FileFormatError("found: expected integers")
    return StageSum(
        index_of(item["neuron"], shape, "neuron"),
        *(item["group"], np.array(witness), item["value"], item["exact"], item["result"]),
    )
