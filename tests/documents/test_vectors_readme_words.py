"""vectors/README.md, promise by promise: each sentence beside the smallest check that it is so.

Written from the words alone.  Its Python blocks run in tests/conformance/test_suite.py.
"""

from __future__ import annotations

import json
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quoting import ROOT, Document

from refqnn.conformance import (
    ERROR_CODES,
    OPERATIONS,
    HarnessError,
    Rejected,
    Unsupported,
    Vector,
    conform,
    emit,
    load_vectors,
    reference,
    run,
    verify,
)
from refqnn.conformance.encoding import decode, encode
from refqnn.conformance.operations import Field

README = Document("vectors/README.md")
says = README.says
VECTORS = load_vectors()
FILES = ROOT / "vectors"


def files() -> dict[str, Any]:
    manifest = json.loads((FILES / "MANIFEST.json").read_text())
    return {name: json.loads((FILES / name).read_text()) for name in manifest["files"]}


def with_answers(operation: str, change: Any) -> Any:
    """The report on the reference, whose results `change(name, value)` alters."""
    right = reference.FUNCTIONS[operation]

    def altered(**arguments: Any) -> Any:
        answer = right(**arguments)
        outputs = list(OPERATIONS[operation].outputs)
        named = answer if isinstance(answer, dict) else {outputs[0]: answer}
        return {name: change(name, value) for name, value in named.items()}

    return run({operation: altered}, operations=[operation])


# --- comparison -------------------------------------------------------------------------------


def test_floats_are_compared_bit_for_bit() -> None:
    says("Integers are compared exactly, floats bit for bit. There are no tolerances.")
    assert with_answers("dequantize", lambda _, v: v).conforms
    for change in (
        lambda _, v: np.where(v == 0, -v, v),
        lambda _, v: np.nextafter(v, v.dtype.type(np.inf)),
        lambda _, v: v.astype(np.float64 if v.dtype == np.float32 else np.float32),
    ):
        assert not with_answers("dequantize", change).conforms


@pytest.mark.parametrize("change", [float, str, lambda v: v + 1, lambda v: [v], bool])
def test_integers_are_compared_exactly(change: Any) -> None:
    says("Integers are compared exactly")
    assert with_answers("omega", lambda _, v: v).conforms
    assert with_answers("omega", lambda _, v: np.int64(v) if abs(v) < 2**63 else v).conforms
    assert not with_answers("omega", lambda _, v: change(v)).conforms


def test_a_tensor_of_another_shape_or_of_floats_is_wrong() -> None:
    for change in (lambda v: v.astype(float), lambda v: v.reshape(*v.shape, 1), lambda v: v[:1]):
        assert not with_answers("flatten", lambda _, v, change=change: change(v)).conforms


def test_what_you_do_not_have_is_left_out_and_what_you_cannot_hold_is_skipped() -> None:
    says(
        "What you do not have is left out; what you cannot hold (an accumulator beyond your 32 "
        "bits) is skipped, not wrapped."
    )
    right = reference.FUNCTIONS["linear"]

    def linear(**arguments: Any) -> Any:
        answer = right(**arguments)
        acc = answer["acc"] if isinstance(answer, dict) else answer
        if any(not -(2**31) <= int(v) < 2**31 for v in np.ravel(acc)):
            raise Unsupported("beyond 32 bits")
        return answer

    report = run({"linear": linear})
    assert report.conforms
    assert report.counts["passed"]
    skipped = [o for o in report.outcomes if o.status == "unsupported"]
    assert {"linear", "conv2d"} <= {o.vector.operation for o in skipped}


def test_a_failure_says_where_which_mistake_and_how_to_see_it_again() -> None:
    says(
        "A failure says where the first value differs, which known mistake gives that very answer, "
        "and how to see it again."
    )

    right = reference.FUNCTIONS["round_ratio"]
    half_even = lambda **arguments: right(**{**arguments, "rounding": "half_even"})  # noqa: E731
    report = run({"round_ratio": half_even}, profiles=["half_up"])
    (first, *_) = report.failures
    assert first.mismatch is not None
    assert first.mismatch.index is not None
    assert str(list(first.mismatch.index)) in str(first)
    assert first.resembles
    assert first.reproduction in str(first)
    exec(first.reproduction, {"f": half_even})  # Python to paste, f is what was asked


# --- files ------------------------------------------------------------------------------------


def test_the_files_that_the_readme_names() -> None:
    says("`MANIFEST.json` lists the files.")
    here = {path.name for path in FILES.glob("*.json")} - {"MANIFEST.json"}
    assert set(files()) == here
    says("`OPERATIONS.md` defines every operation, flag and error code.")
    text = (FILES / "OPERATIONS.md").read_text()
    flags = {flag for vector in VECTORS for flag in vector.flags}
    for name in {*OPERATIONS, *flags, *ERROR_CODES}:
        assert any(f"{a}{name}{b}" in text for a, b in ("``", "||", ("| ", " |"), ("# ", "\n")))
    says("`schema/` holds one closed JSON Schema per operation, and `protocol.json` for")
    schemas = {path.stem.removesuffix(".schema") for path in (FILES / "schema").iterdir()}
    assert {*OPERATIONS, "protocol"} <= schemas


def test_a_vector_needs_no_other_file() -> None:
    says("a vector carries its network in full, so an implementation needs no other file.")
    for name, content in files().items():
        if content["operation"] in ("network", "predict"):
            text = json.dumps(content)
            assert ".npz" not in text, name


def test_one_operation_a_file_and_the_keys_of_the_table() -> None:
    says("One file per operation and important parameter.")
    says("`valid`, with `outputs`; or `invalid`, with `error`: it must be refused")
    says("There is no third result.")
    for content in files().values():
        assert content["operation"] in OPERATIONS
        assert content["number_of_tests"] == sum(len(g["tests"]) for g in content["groups"])
        for test in (test for group in content["groups"] for test in group["tests"]):
            assert test["result"] in ("valid", "invalid")
            assert ("outputs" in test) == (test["result"] == "valid")
            assert ("error" in test) == (test["result"] == "invalid")
            assert test["flags"] == [] or set(test["flags"]) <= set(content["notes"])


def test_ids_are_unique() -> None:
    says("immutable: an id asks the same question for ever")
    assert len({vector.id for vector in VECTORS}) == len(VECTORS)


def test_flags_are_measured() -> None:
    says(
        "A test has a flag exactly when it gives another answer than some mutant of that flag: a "
        "deliberately wrong implementation. Flags are measured, not claimed."
    )
    says("has no check of its own is not put to its mutants.")
    from refqnn.conformance.mutants import KERNELS, mutants_of
    from refqnn.conformance.runner import passes
    from refqnn.conformance.suite import call

    mutants = list(mutants_of("lookup"))
    for vector in (v for v in VECTORS if v.operation == "lookup"):
        checks = vector.error is None or call(KERNELS["lookup"], vector).code == vector.error
        told = {m.flag for m in mutants if checks and not passes(m.function, vector)}
        assert told == set(vector.flags), vector.id


def test_intermediates_are_compared_where_they_are_given() -> None:
    says("compared where an implementation gives them")
    vectors = [v for v in VECTORS if v.intermediates]
    assert vectors
    operation = vectors[0].operation

    def without(name: str, value: Any) -> Any:
        return value if name in OPERATIONS[operation].outputs else None

    def wrong(name: str, value: Any) -> Any:
        return value if name in OPERATIONS[operation].outputs or value is None else value + 1

    assert with_answers(operation, without).conforms
    assert not with_answers(operation, wrong).conforms


def test_a_choice_is_an_argument_and_a_profile() -> None:
    says('An implementation that rounds half up alone asks for `profiles=["half_up"]`.')

    def half_up(numerator: Any, denominator: int, rounding: str) -> Any:
        assert rounding == "half_up"
        return (2 * numerator + denominator) // (2 * denominator)

    assert run({"round_ratio": half_up}, profiles=["half_up"]).conforms
    says("`double_rounding`, `zero_point_first` (add the zero point before rounding), `float64`")
    known = {profile for vector in VECTORS for profile in vector.profiles}
    assert {"half_even", "half_up", "double_rounding", "zero_point_first", "float64"} <= known


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2**53, -(2**53), 2**53 + 1, -(2**70)])
def test_integers_beyond_2_to_53_are_text(value: int) -> None:
    says("An integer is a JSON number; beyond 2^53 in magnitude it is a string of decimal digits.")
    written = encode(value, Field("int", ""))
    assert isinstance(written, str) == (abs(value) > 2**53)
    assert int(written) == value
    assert decode(written, Field("int", "")) == value


def test_floats_are_hexadecimal_digits_of_the_exact_value() -> None:
    says("A float is a string: hexadecimal digits of the exact value, `inf`, `-inf` or `nan`.")
    values = np.array([0.1, -0.0, np.inf, -np.inf, np.nan, 5e-324])
    written = encode(values, Field("float_tensor", ""))["data"]
    assert written[2:5] == ["inf", "-inf", "nan"]
    for text, value in zip(written, values):
        if np.isfinite(value):
            assert Fraction(*float.fromhex(text).as_integer_ratio()) == Fraction(float(value))
            assert "x" in text
    again = decode({"dtype": "float64", "shape": [6], "data": written}, Field("float_tensor", ""))
    assert again.tobytes() == values.tobytes()


def test_tensors_are_row_major() -> None:
    says(
        'A tensor is `{"dtype", "shape", "data"}` in row-major order; dtype is `int`, `float32` or'
    )
    fortran = np.asfortranarray([[1, 2, 3], [4, 5, 6]])
    written = encode(fortran, Field("int_tensor", ""))
    assert written == {"dtype": "int", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}


# --- semantics, asked of the answers in the files ---------------------------------------------


def of(operation: str) -> list[Vector]:
    return [vector for vector in VECTORS if vector.operation == operation]


def test_accumulators_are_mathematical_integers() -> None:
    says(
        "Accumulators are mathematical integers. Only `accumulate` and `accumulate_stages` have "
        "widths: the one of a single register, the other of a register for each stage of a sum, as "
        "SIMD and tiled hardware has them."
    )
    have = {
        name for name, o in OPERATIONS.items() if {"widths", "accumulator_bits"} & {*o.arguments}
    }
    assert have == {"accumulate", "accumulate_stages"}
    valid = [v for v in of("linear") if v.error is None]
    assert max(np.abs(v.outputs["acc"]).max() for v in valid) >= 2**31
    for vector in valid:
        a = vector.arguments
        centre = [[int(v) - int(a["x_zero_point"]) for v in row] for row in a["x"]]
        zeros = np.broadcast_to(np.asarray(a["weight_zero_point"], dtype=object), len(a["weight"]))
        for sample, row in enumerate(centre):
            for out, weights in enumerate(a["weight"]):
                bias = 0 if a["bias"] is None else int(a["bias"][out])
                total = bias + sum((int(w) - int(zeros[out])) * x for w, x in zip(weights, row))
                assert int(vector.outputs["acc"][sample, out]) == total


def test_half_up_and_half_away() -> None:
    says(
        "`half_up` toward +infinity (add a half, shift), `half_down` toward -infinity, "
        "`half_toward_zero`, and `half_away` away from zero. Other tools call the latter HALF_UP."
    )
    ties = 0
    for vector in of("round_ratio"):
        a = vector.arguments
        if vector.error is not None or a["rounding"] not in ("half_up", "half_away"):
            continue
        (output,) = vector.outputs.values()
        for n, got in zip(np.ravel(a["numerator"]), np.ravel(output)):
            exact = Fraction(int(n), int(a["denominator"]))
            if exact.denominator == 2:
                ties += 1
                up = a["rounding"] == "half_up" or exact > 0
                assert int(got) == (exact + Fraction(1 if up else -1, 2))
    assert ties


def test_quantization_divides_rounds_adds_saturates() -> None:
    says(
        "Quantization divides, rounds, adds the zero point, saturates, in this order. NaN is "
        "refused; an infinity saturates."
    )
    seen = set()
    for vector in of("quantize"):
        x = np.ravel(vector.arguments["x"])
        if np.isnan(x).any():
            assert vector.error is not None
            seen.add("nan")
        elif np.isinf(x).any() and vector.error is None:
            (codes,) = vector.outputs.values()
            codes = np.ravel(codes)
            assert codes[x == np.inf].tolist() in ([codes.max()] * int((x == np.inf).sum()),)
            assert (codes[x == -np.inf] == codes.min()).all()
            seen.add("inf")
    assert seen == {"nan", "inf"}


def test_data_outside_the_format_is_refused() -> None:
    says("Data outside the declared format is refused, not clamped. There are four error codes.")
    assert len(ERROR_CODES) == 4
    assert any(vector.error == "out_of_range" for vector in of("check_codes"))
    clamped = run({"check_codes": lambda **a: {"codes": a["codes"]}}, operations=["check_codes"])
    assert not clamped.conforms


def test_codes_of_refusals() -> None:
    says("A refusal without a code passes; a refusal under another code than the vector's fails.")
    right = reference.FUNCTIONS["lookup"]

    def refusing(code: str | None) -> Any:
        def lookup(**arguments: Any) -> Any:
            try:
                return right(**arguments)
            except ValueError:
                raise (ValueError("no") if code is None else Rejected(code)) from None

        return run({"lookup": lookup}, operations=["lookup"])

    assert any(vector.error for vector in of("lookup"))
    assert refusing(None).conforms
    assert not all(refusing(code).conforms for code in ERROR_CODES)


# --- running them -----------------------------------------------------------------------------


def flatten(x: Any) -> Any:
    return x.reshape(len(x), -1)


def test_a_mapping_or_a_module_of_functions_called_by_name() -> None:
    says("they return the results by name, or the only output.")
    says("`run` takes a mapping or a module.")
    says("Missing functions are unsupported, never passed.")
    module = types.ModuleType("mine")
    module.flatten = flatten  # type: ignore[attr-defined]
    by_name = run({"flatten": lambda **a: {"y": flatten(**a)}})
    for report in (run(module), run({"flatten": flatten}), by_name):
        assert report.conforms
        assert report.counts["passed"] == len(of("flatten"))
        assert report.counts["unsupported"] == len(VECTORS) - len(of("flatten"))


@pytest.mark.parametrize("error", [ValueError, TypeError, ArithmeticError, OverflowError])
def test_how_to_refuse(error: type[Exception]) -> None:
    says(
        "Refuse by raising `Rejected(code)`, or a ValueError, TypeError or ArithmeticError (with a "
        "`code`, if you like it compared); raise `Unsupported(why)` for what you do not do."
    )

    def refuse(**_: Any) -> Any:
        raise error("no")

    refused = run({"lookup": refuse}, operations=["lookup"])
    for outcome in refused.outcomes:
        assert outcome.status == ("failed" if outcome.vector.error is None else "passed")


PROGRAM = """
import json, sys
how = sys.argv[1]
asked = 0
for line in sys.stdin:
    message = json.loads(line)
    if message["cmd"] == "stop":
        break
    if message["cmd"] == "start":
        answer = {"protocol": 1, "name": "mine", "operations": ["omega"]}
    elif message["operation"] == "echo":
        answer = {"seq": message["seq"], "result": message["arguments"]}
        if how == "echo":
            answer["result"] = {}
    elif how == "skip":
        answer = {"seq": message["seq"], "skipped": "beyond 64 bits"}
    elif how == "crash" and asked == 2:
        sys.exit(1)
    elif how == "garbage" and asked == 2:
        print("what?", flush=True)
        asked += 1
        continue
    elif min(message["arguments"].values()) < 1:
        answer = {"seq": message["seq"], "error": "refused"}
    else:
        n_max, n_weights, n_inputs = (2**n - 1 for n in message["arguments"].values())
        fan_in = n_max // (n_weights * n_inputs)
        answer = {"seq": message["seq"],
                  "result": {"fan_in": fan_in if fan_in <= 2**53 else str(fan_in)}}
    asked += message["cmd"] == "run" and message["operation"] != "echo"
    print(json.dumps(answer), flush=True)
"""


def program(how: str) -> Any:
    return conform([sys.executable, "-c", PROGRAM, how], operations=["omega"], seconds=20)


def test_a_program_without_codes_says_refused() -> None:
    says("`error` is one of the four codes, or `refused` for a program without codes.")
    assert any(vector.error for vector in of("omega"))
    assert program("well").conforms


def test_nothing_is_judged_until_echo_comes_back() -> None:
    says(
        "Until `echo` comes back right nothing is judged: a fault there is one of reading and "
        "writing."
    )
    with pytest.raises(HarnessError):
        program("echo")


@pytest.mark.parametrize("how", ["crash", "garbage"])
def test_a_fault_is_one_of_its_vector_and_the_program_starts_anew(how: str) -> None:
    says(
        "Afterwards a crash, a time limit or garbage is a `fault` of that vector, and the program "
        "is started anew"
    )
    counts = program(how).counts
    assert counts["fault"] >= 1
    assert counts["passed"] >= 2
    assert sum(counts.values()) == len(of("omega"))


def test_skipped_is_unsupported() -> None:
    says('or {"seq": 1, "skipped": "beyond 64 bits"}')
    assert program("skip").counts["unsupported"] == len(of("omega"))


def test_programs_in_c_and_javascript_are_there() -> None:
    says("has a complete program in C")
    says("and one in JavaScript.")
    endings = {path.suffix for path in (ROOT / "tests/conformance/programs").iterdir()}
    assert ".c" in endings
    assert endings & {".js", ".mjs", ".cjs"}
    says("The schema of every line is `schema/protocol.json`.")
    assert (FILES / "schema" / "protocol.json").is_file()


def test_questions_and_answers_as_files(tmp_path: Path) -> None:
    says(
        'a question is `{"id", "operation", "arguments"}`, an answer `{"id"}` with `result`, '
        "`error` or `skipped` as above."
    )
    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    assert emit(questions) == len(VECTORS)
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    assert all(set(line) == {"id", "operation", "arguments"} for line in lines)
    known = {vector.id: vector for vector in VECTORS}
    with answers.open("w") as file:
        for line in lines:
            vector = known[line["id"]]
            answer: dict[str, Any] = {"id": vector.id}
            if vector.error is not None:
                answer["error"] = vector.error
            elif vector.operation == "omega":
                fields = OPERATIONS["omega"].outputs
                answer["result"] = {n: encode(v, fields[n]) for n, v in vector.outputs.items()}
            else:
                answer["skipped"] = "not mine"
            file.write(json.dumps(answer) + "\n")
    report = verify(answers)
    assert report.conforms
    refusals = sum(vector.error is not None for vector in VECTORS)
    right = sum(vector.error is None for vector in of("omega"))
    assert report.counts["passed"] == refusals + right


def test_versions() -> None:
    says("`suite_version` is a semantic version of the suite: tests are added in minor versions.")
    manifest = json.loads((FILES / "MANIFEST.json").read_text())
    assert len([int(part) for part in manifest["suite_version"].split(".")]) == 3
    for content in files().values():
        for key in ("format_version", "semantics_version"):
            assert content[key] == manifest[key]
