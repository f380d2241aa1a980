"""JSON Schemas of the vector files and the manifest, from the table of operations.

All are closed: a name that is not listed is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refqnn.conformance.notes import NOTES
from refqnn.conformance.operations import ERROR_CODES, OPERATIONS, Field, Operation

__all__ = ["schemas"]

Schema = dict[str, Any]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_SLUG = {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$"}
_TEXT = {"type": "string", "minLength": 1}


def _closed(properties: Mapping[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


def _array(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


_TENSOR_SHAPE = _array({"type": "integer", "minimum": 0})
_DEFINITIONS: Schema = {
    "int": {
        "anyOf": [
            {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
            {"type": "string", "pattern": "^-?[1-9][0-9]{15,}$"},
        ]
    },
    "int_tensor": _closed(
        {"dtype": {"const": "int"}, "shape": _TENSOR_SHAPE, "data": _array(_ref("int"))}
    ),
    "float_tensor": _closed(
        {
            "dtype": {"enum": ["float32", "float64"]},
            "shape": _TENSOR_SHAPE,
            "data": _array(
                {
                    "type": "string",
                    "pattern": r"^(-?0x[01]\.[0-9a-f]+p[+-][0-9]+|-?inf|nan)$",
                }
            ),
        }
    ),
}


def _field(field: Field) -> Schema:
    simple: dict[str, Schema] = {
        "bool": {"type": "boolean"},
        "choice": {"enum": list(field.choices)},
        "int": _ref("int"),
        "ints": _array(_ref("int")),
        "pairs": _array(_array(_ref("int"), minItems=2, maxItems=2)),
        "int_tensor": _ref("int_tensor"),
        "int_tensors": _array(_ref("int_tensor"), minItems=1),
        "float_tensor": _ref("float_tensor"),
        "network": _ref("network"),
    }
    schema = simple[field.kind]
    return {"anyOf": [schema, {"type": "null"}]} if field.optional else schema


def _fields(fields: Mapping[str, Field]) -> Schema:
    return _closed({name: _field(field) for name, field in fields.items()})


def _network() -> Schema:
    """A program whose nodes are operations of the suite, each with its own parameters."""
    nodes = [
        _closed(
            {
                "name": _TEXT,
                "operation": {"const": operation.name},
                "inputs": _array(_TEXT, minItems=1),
                "parameters": _fields(operation.parameters),
            }
        )
        for operation in OPERATIONS.values()
        if operation.node
    ]
    fmt = {n: _field(f) for n, f in OPERATIONS["check_codes"].parameters.items()}
    return _closed(
        {
            "input_shape": _array({"type": "integer", "minimum": 1}, minItems=1),
            "input_format": _closed(fmt),
            "nodes": _array({"anyOf": nodes}, minItems=1),
            "output": _TEXT,
        }
    )


def _vector_file(operation: Operation) -> Schema:
    common: Schema = {
        "id": _SLUG,
        "comment": _TEXT,
        "flags": _array({"enum": list(NOTES)}),
        "inputs": _fields(operation.inputs),
    }
    intermediates = _closed(
        {n: _field(f) for n, f in operation.intermediates.items()},
        optional=tuple(operation.intermediates),
    )
    if operation.traces:
        intermediates = {"type": "object", "additionalProperties": _ref("int_tensor")}
    valid = _closed(
        {
            **common,
            "result": {"const": "valid"},
            "outputs": _fields(operation.outputs),
            "intermediates": intermediates,
        },
        optional=("intermediates",),
    )
    invalid = _closed(
        {**common, "result": {"const": "invalid"}, "error": {"enum": list(ERROR_CODES)}}
    )
    group = _closed(
        {
            "id": _SLUG,
            "profiles": _array({"type": "string", "pattern": "^[a-z0-9_]+$"}),
            "parameters": _fields(operation.parameters),
            "tests": _array({"oneOf": [valid, invalid]}, minItems=1),
        }
    )
    note = _closed(
        {"bug_type": _TEXT, "description": _TEXT, "effect": _TEXT, "links": _array(_TEXT)}
    )
    uses_network = any(f.kind == "network" for f in operation.parameters.values())
    return {
        "$schema": _DRAFT,
        "title": f"Vectors of {operation.name}",
        **_closed(
            {
                "format": {"const": "refqnn-vectors"},
                "format_version": {"const": 1},
                "semantics_version": {"const": 1},
                "operation": {"const": operation.name},
                "schema": {"const": f"schema/{operation.name}.json"},
                "header": _array(_TEXT),
                "notes": {
                    "type": "object",
                    "propertyNames": {"enum": list(NOTES)},
                    "additionalProperties": note,
                },
                "number_of_tests": {"type": "integer", "minimum": 1},
                "groups": _array(group, minItems=1),
            }
        ),
        "$defs": _DEFINITIONS | ({"network": _network()} if uses_network else {}),
    }


def _manifest() -> Schema:
    entry = _closed(
        {
            "operation": {"enum": list(OPERATIONS)},
            "profiles": _array(_TEXT),
            "number_of_tests": {"type": "integer", "minimum": 1},
            "invalid": {"type": "integer", "minimum": 0},
            "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        }
    )
    return {
        "$schema": _DRAFT,
        "title": "What is in the suite",
        **_closed(
            {
                "format": {"const": "refqnn-vectors"},
                "format_version": {"const": 1},
                "semantics_version": {"type": "integer", "minimum": 1},
                "suite_version": {"type": "string", "pattern": r"^[0-9]+\.[0-9]+\.[0-9]+$"},
                "number_of_files": {"type": "integer", "minimum": 1},
                "number_of_tests": {"type": "integer", "minimum": 1},
                "files": {"type": "object", "additionalProperties": entry},
            }
        ),
    }


_SEQ: Schema = {"type": "integer", "minimum": 0}
_PROTOCOL: Schema = {"const": 1}


def _echoed() -> Schema:
    tensor = {"anyOf": [_ref("int_tensor"), _ref("float_tensor")]}
    return _closed({**dict.fromkeys(("x", "y", "z"), tensor), "flags": {"type": "array"}})


def _questions() -> dict[str, Schema]:
    start: dict[str, Schema] = {
        "cmd": {"const": "start"},
        "protocol": _PROTOCOL,
        "suite_version": _TEXT,
        "semantics_version": {"type": "integer", "minimum": 1},
    }
    echo: dict[str, Schema] = {
        "cmd": {"const": "run"},
        "seq": {"const": 0},
        "operation": {"const": "echo"},
    }
    runs = [
        _closed(
            {
                "cmd": {"const": "run"},
                "seq": {"type": "integer", "minimum": 1},
                "operation": {"const": operation.name},
                "arguments": _fields(operation.arguments),
            }
        )
        for operation in OPERATIONS.values()
    ]
    return {
        "start": _closed(start, optional=("suite_version", "semantics_version")),
        "echo": _closed({**echo, "arguments": _echoed()}),
        "run": {"oneOf": runs},
        "stop": _closed({"cmd": {"const": "stop"}}),
    }


def _answers() -> dict[str, Schema]:
    results = [
        _closed({n: _field(f) for n, f in o.results.items()}, optional=tuple(o.intermediates))
        for o in OPERATIONS.values()
        if not o.traces
    ]
    trace = {"type": "object", "additionalProperties": _ref("int_tensor")}  # by names of nodes
    about: dict[str, Schema] = {
        "protocol": _PROTOCOL,
        "name": _TEXT,
        "operations": _array({"enum": [*OPERATIONS]}),
    }
    code = {"enum": [*ERROR_CODES, "refused"]}
    return {
        "about": _closed(about),
        "result": _closed({"seq": _SEQ, "result": {"anyOf": [_echoed(), trace, *results]}}),
        "error": _closed({"seq": _SEQ, "error": code, "message": _TEXT}, optional=("message",)),
        "skipped": _closed({"seq": _SEQ, "skipped": _TEXT}),
    }


def _protocol() -> Schema:
    """Every line of a conversation with a program, see `refqnn.conformance.program`."""
    asked, answered = _questions(), _answers()
    lines = {"start": asked["start"], "about": answered["about"], **asked, **answered}
    return {
        "$schema": _DRAFT,
        "title": "One line of a conversation with a program",
        "oneOf": [_ref("question"), _ref("answer")],
        "$defs": {
            **_DEFINITIONS,
            "network": _network(),
            **lines,
            "question": {"oneOf": list(map(_ref, asked))},
            "answer": {"oneOf": list(map(_ref, answered))},
        },
    }


def schemas() -> dict[str, Schema]:
    """File name -> schema: one per operation, and `manifest.json`."""
    result = {f"{name}.json": _vector_file(operation) for name, operation in OPERATIONS.items()}
    return {**result, "manifest.json": _manifest(), "protocol.json": _protocol()}
