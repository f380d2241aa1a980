"""Write the vector files: every answer by two routes, every flag by measurement."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np

from refqnn.conformance.encoding import canonical, encode_fields
from refqnn.conformance.making.cases import Case, all_cases
from refqnn.conformance.making.networks import cases_of
from refqnn.conformance.making.oracle import FUNCTIONS as ORACLE
from refqnn.conformance.mutants import MUTANTS, mutants_of
from refqnn.conformance.notes import NOTES
from refqnn.conformance.operations import ERROR_CODES, OPERATIONS, Values
from refqnn.conformance.reference import FUNCTIONS as REFERENCE
from refqnn.conformance.runner import is_judged, passes
from refqnn.conformance.schemas import schemas
from refqnn.conformance.specification import specification_text
from refqnn.conformance.suite import (
    FORMAT,
    FORMAT_VERSION,
    SEMANTICS_VERSION,
    SUITE_VERSION,
    Rejected,
    Vector,
    as_result,
    compare,
    vectors_path,
)
from refqnn.container import write_atomically
from refqnn.errors import CertificateError, FileFormatError, InvalidArgument, mismatch
from refqnn.network import Network

__all__ = ["COMMAND", "files", "generate", "kills", "score", "solved", "stale", "write_vectors"]

COMMAND = "refqnn vectors generate"

_NETWORKS = ("network", "predict")  # only vectors of whole networks ask the mutants of these

_REFUSED = {  # a random question may be one that must be refused
    "check_codes": ("out_of_range",),
    "gather": ("out_of_range", "shape_mismatch"),
    "lookup": ("out_of_range",),
}


def solved(case: Case) -> Vector:
    """The vector of a question: the answer of two routes that agree, and measured flags.

    Raises: CertificateError when the routes disagree, or when bad data is not refused as it should;
        the error of the reference for a question that makes no sense.
    """
    return _measured(case)[0]


def _measured(case: Case) -> tuple[Vector, set[str]]:
    """See `solved`; and the ids of the mutants that the vector kills."""
    vector = _answered(case)
    killed = set(kills(vector))
    flags = tuple(f for f in NOTES if any(m.flag == f and m.id in killed for m in MUTANTS))
    return Vector(**{**vector.__dict__, "flags": flags}), killed


def _answered(case: Case) -> Vector:
    operation = OPERATIONS[case.operation]
    outputs: Values = {}
    intermediates: Values = {}
    error = case.error
    try:
        results = REFERENCE[case.operation](**case.arguments)
    except Rejected as refusal:
        if error is None and refusal.code in _REFUSED.get(case.operation, ()):
            error = refusal.code
        if error is None:
            raise
        if refusal.code != error:
            raise CertificateError(f"{case.id}: refused as {refusal.code}") from refusal
    else:
        if error is not None:
            raise CertificateError(f"{case.id}: accepted, expected {error}")
        outputs = {name: as_result(results[name]) for name in operation.outputs}
        rest = {n: v for n, v in results.items() if n not in outputs and v is not None}
        repeated = case.arguments["network"]["output"] if case.operation == "network" else None
        intermediates = {n: as_result(v) for n, v in rest.items() if n != repeated}
    vector = Vector(
        id=case.id,
        operation=case.operation,
        file=case.file,
        group="",
        comment=case.comment,
        flags=(),
        profiles=case.profiles,
        arguments=case.arguments,
        outputs=outputs,
        intermediates=intermediates,
        error=error,
    )
    try:
        second = {n: _nested(v) for n, v in ORACLE[case.operation](**case.arguments).items()}
        found = compare(vector, second) if error is None else "accepted"
    except Rejected as refusal:
        found = None if refusal.code == error else refusal.code
    if found is not None:
        raise CertificateError(f"{case.id}: the two routes disagree: {found}")
    return vector


def _nested(value: object) -> object:
    """Nested lists of the oracle as arrays, Python integers kept where int64 is too small."""
    if not isinstance(value, list):
        return value
    array = np.array(value, dtype=object)
    is_float = any(isinstance(v, float) for v in array.flat)
    return array.astype(np.float64) if is_float else array


def kills(vector: Vector) -> list[str]:
    """The ids of the mutants that this vector tells from a right implementation."""
    if not is_judged(vector):
        return []
    return [m.id for m in mutants_of(vector.operation) if not passes(m.function, vector)]


@lru_cache(maxsize=1)
def _all_measured() -> tuple[tuple[Vector, set[str]], ...]:
    cases = all_cases()
    duplicate = [i for i, n in Counter(case.id for case in cases).items() if n > 1]
    if duplicate:
        raise FileFormatError(f"ids used twice: {duplicate}")
    return tuple(_measured(case) for case in cases)


@lru_cache(maxsize=1)
def files() -> dict[str, bytes]:
    """Every generated file by name: vectors, schemas, two texts and MANIFEST.json.

    Raises: CertificateError, see `solved`.
    """
    by_file: dict[str, list[Vector]] = {}
    for vector, _ in _all_measured():
        by_file.setdefault(vector.file, []).append(vector)
    texts = {name: canonical(_content(vectors)) for name, vectors in by_file.items()}
    texts |= {f"schema/{name}": canonical(schema) for name, schema in schemas().items()}
    texts["OPERATIONS.md"] = _operations_text()
    texts["SPECIFICATION.md"] = specification_text()
    result = {name: text.encode() for name, text in texts.items()}
    result["MANIFEST.json"] = canonical(_manifest(by_file, result)).encode()
    return result


def write_vectors(network: Network, name: str, folder: Path) -> int:
    """Write vectors of one network into a folder that holds none, as `load_vectors` reads them.

    Args:
        name: of letters, digits and underscores: ids and files are called after it.

    Returns: how many.

    Raises: InvalidArgument for a name or a folder that is not so; NotCovered for a kind of node
        that is no operation of the suite; OSError.
    """
    if not re.fullmatch(r"\w+", name):
        raise InvalidArgument(mismatch("name", repr(name), "letters, digits and underscores"))
    vectors = [_answered(Case(*case)) for case in cases_of(network, name)]
    texts = {v.file: canonical(_content([v])).encode() for v in vectors}
    manifest = _manifest({v.file: [v] for v in vectors}, texts)
    texts["MANIFEST.json"] = canonical(manifest).encode()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "MANIFEST.json").exists():
        raise InvalidArgument(mismatch("folder", f"{folder}, with vectors", "one without"))
    for file, text in texts.items():
        write_atomically(folder / file, lambda out, text=text: out.write(text))  # type: ignore[misc]
    return len(vectors)


def _content(vectors: list[Vector]) -> Values:
    operation = OPERATIONS[vectors[0].operation]
    flags = [flag for flag in NOTES if any(flag in v.flags for v in vectors)]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "semantics_version": SEMANTICS_VERSION,
        "operation": operation.name,
        "schema": f"schema/{operation.name}.json",
        "header": [operation.definition, "Generated; do not edit."],
        "notes": {flag: _note(flag) for flag in flags},
        "number_of_tests": len(vectors),
        "groups": _groups(vectors),
    }


def _note(flag: str) -> Values:
    note = NOTES[flag]
    return {
        "bug_type": note.bug_type,
        "description": note.description,
        "effect": note.effect,
        "links": list(note.links),
    }


def _groups(vectors: list[Vector]) -> list[Values]:
    """Neighbours that share parameters and profiles; a group has the id of its first test."""
    operation = OPERATIONS[vectors[0].operation]

    def shared(vector: Vector) -> str:
        values = {n: vector.arguments[n] for n in operation.parameters}
        return json.dumps([vector.profiles, encode_fields(values, operation.parameters)])

    groups = []
    for key, members in groupby(vectors, shared):
        profiles, parameters = json.loads(key)
        tests = [_test(vector) for vector in members]
        groups.append(
            {
                "id": tests[0]["id"],
                "profiles": profiles,
                "parameters": parameters,
                "tests": tests,
            }
        )
    return groups


def _test(vector: Vector) -> Values:
    operation = OPERATIONS[vector.operation]
    inputs = {n: vector.arguments[n] for n in operation.inputs}
    test: Values = {
        "id": vector.id,
        "comment": vector.comment,
        "flags": list(vector.flags),
        "inputs": encode_fields(inputs, operation.inputs),
    }
    if vector.error is not None:
        return test | {"result": "invalid", "error": vector.error}
    test |= {"result": "valid", "outputs": encode_fields(vector.outputs, operation.outputs)}
    if vector.intermediates:
        test["intermediates"] = encode_fields(vector.intermediates, operation.intermediates)
    return test


def _manifest(by_file: dict[str, list[Vector]], texts: dict[str, bytes]) -> Values:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "semantics_version": SEMANTICS_VERSION,
        "suite_version": SUITE_VERSION,
        "number_of_files": len(by_file),
        "number_of_tests": sum(map(len, by_file.values())),
        "files": {
            name: {
                "operation": vectors[0].operation,
                "profiles": sorted({p for v in vectors for p in v.profiles}),
                "number_of_tests": len(vectors),
                "invalid": sum(v.error is not None for v in vectors),
                "sha256": hashlib.sha256(texts[name]).hexdigest(),
            }
            for name, vectors in by_file.items()
        },
    }


@lru_cache(maxsize=1)
def score() -> dict[str, tuple[int, int, int]]:
    """(killed, to be killed, argued equivalent) by operation and by flag, from the vectors on hand.

    Keys are operation names and "flag:<name>".
    """
    killed = set().union(*(mutants for _, mutants in _all_measured()))
    table: dict[str, tuple[int, int, int]] = {}
    for key, chosen in (
        *((name, [m for m in MUTANTS if m.operation == name]) for name in OPERATIONS),
        *((f"flag:{flag}", [m for m in MUTANTS if m.flag == flag]) for flag in NOTES),
    ):
        wanted = [m for m in chosen if not m.equivalent]
        alive = sum(m.id in killed for m in wanted)
        table[key] = (alive, len(wanted), len(chosen) - len(wanted))
    return table


def _operations_text() -> str:
    lines = [
        "# Operations",
        "",
        f"Generated by `{COMMAND}`. Shapes are in brackets; `n` counts samples.",
    ]
    scores = score()
    single = [name for name in OPERATIONS if name not in _NETWORKS]
    killed, wanted = (sum(scores[n][i] for n in single) for i in (0, 1))
    killed_apart, wanted_apart = (sum(scores[n][i] for n in _NETWORKS) for i in (0, 1))
    lines += [
        "",
        f"Mutants killed by vectors of single operations: {killed} of {wanted}; by whole networks "
        f"alone: {killed_apart} of {wanted_apart}.",
    ]
    for operation in OPERATIONS.values():
        lines += ["", f"## {operation.name}", "", operation.definition, ""]
        lines += ["| name | role | kind | meaning |", "| --- | --- | --- | --- |"]
        for role, fields in (
            ("parameter", operation.parameters),
            ("input", operation.inputs),
            ("output", operation.outputs),
            ("intermediate", operation.intermediates),
        ):
            for name, field in fields.items():
                kind = " or ".join(field.choices) if field.choices else field.kind
                kind += " or null" if field.optional else ""
                lines.append(f"| {name} | {role} | {kind} | {field.doc} |")
        killed, wanted, _ = scores[operation.name]
        node = " Also a node of networks." if operation.node else ""
        lines += ["", f"Mutants killed: {killed} of {wanted}.{node}"]
    lines += ["", "# Error codes", "", "| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {text} |" for code, text in ERROR_CODES.items()]
    lines += ["", "# Flags", "", "| flag | bug | what is done wrong | effect | mutants killed |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for flag, note in NOTES.items():
        killed, wanted, _ = scores[f"flag:{flag}"]
        cells = (flag, note.bug_type, note.description, note.effect, f"{killed} of {wanted}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "# Mutants argued to be equivalent", ""]
    lines += [f"- `{m.id}`: {m.description}. {m.equivalent}." for m in MUTANTS if m.equivalent]
    return "\n".join(lines) + "\n"


def stale(folder: Path | None = None) -> list[str]:
    """Names of generated files that differ from those in the folder, are missing or left over."""
    folder = folder or vectors_path()
    wanted = files()
    here = {
        path.relative_to(folder).as_posix()
        for path in (*folder.glob("*.json"), *folder.glob("schema/*.json"))
    }
    differ = [n for n, data in wanted.items() if not (folder / n).is_file()
              or (folder / n).read_bytes() != data]  # fmt: skip
    return sorted({*differ, *(here - set(wanted))})


def generate(folder: Path | None = None) -> list[str]:
    """Write every generated file that is not up to date; files left over are removed.

    Args:
        folder: where to; the suite's own folder by default.

    Returns: the names of the files that changed.

    Raises: CertificateError when two routes disagree.
    """
    folder = folder or vectors_path()
    changed = stale(folder)
    for name in changed:
        target = folder / name
        if name not in files():
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        data = files()[name]
        write_atomically(target, lambda file, data=data: file.write(data))  # type: ignore[misc]
    return changed
