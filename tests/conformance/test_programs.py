"""Programs under test: in C, in JavaScript, and broken ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filling import integers_c

from refqnn.conformance import HarnessError, conform, emit, vectors_path, verify
from refqnn.errors import FileFormatError, InvalidArgument

PROGRAMS = Path(__file__).parent / "programs"

# A program in Python that answers everything but what its argument breaks.
BROKEN = """
import json, os, sys, time
how = sys.argv[1]
if how.startswith("once"):
    os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))
for line in sys.stdin:
    message = json.loads(line)
    if message["cmd"] == "stop":
        break
    if message["cmd"] == "start":
        if how == "no-protocol":
            answer = {"name": "broken", "operations": []}
        elif how == "unknown-operation":
            answer = {"protocol": 1, "name": "broken", "operations": ["fly"]}
        else:
            protocol = {"protocol-float": 1.0, "protocol-bool": True}.get(how, 1)
            names = ["flatten", "concat", "omega"]
            answer = {"protocol": protocol, "name": "broken", "operations": names}
    elif message["operation"] == "echo":
        answer = {"seq": 0, "result": message["arguments"]}
        if how == "echo-floats":
            answer["result"]["x"]["data"] = [float(v) for v in answer["result"]["x"]["data"]]
        x = answer["result"]["x"]
        if how == "echo-one-float":
            x["data"] = [float(v) if v == -1 else v for v in x["data"]]
        if how == "echo-numbers":
            x["data"] = [int(v) for v in x["data"]]
        if how == "echo-strings":
            x["shape"] = [str(n) for n in x["shape"]]
        if how == "echo-bools":
            answer["result"]["flags"] = [1, None, "half_even"]
        if how == "echo-seq":
            answer["seq"] = 0.0
        if how == "echo-deep":
            answer["result"] = json.loads("[" * 900 + "]" * 900)
        if how == "echo-dies":
            sys.exit(3)
    elif how in ("crash", "once-crash"):
        sys.exit(7)
    elif how == "once-closed":
        os.close(1)
        time.sleep(60)
    elif how == "garbage":
        print("Segmentation fault", flush=True)
        continue
    elif how == "list":
        answer = [1]
    elif how == "slow":
        time.sleep(60)
    elif how == "wrong-seq":
        answer = {"seq": 10**6, "skipped": ""}
    elif how == "float-seq":
        answer = {"seq": float(message["seq"]), "skipped": ""}
    elif how == "small-strings":
        answer = {"seq": message["seq"], "result": {"fan_in": "28"}}
    elif how == "float-integers":
        answer = {"seq": message["seq"], "result": {"fan_in": 28.0}}
    elif how == "large-numbers":
        answer = {"seq": message["seq"], "result": {"fan_in": 2**60}}
    elif how == "two-answers":
        answer = {"seq": message["seq"], "skipped": "", "error": "out_of_range"}
    elif how == "escapes":
        answer = {"seq": message["seq"], "error": "refused", "message": "\\x1b[2J\\n"}
    elif how in ("refused", "out_of_range", "shape_mismatch"):
        answer = {"seq": message["seq"], "error": how}
    elif how == "unknown-code":
        answer = {"seq": message["seq"], "error": "bad luck"}
    elif how == "bad-tensor":
        tensor = {"dtype": "int", "shape": [2], "data": [1]}
        answer = {"seq": message["seq"], "result": {"y": tensor}}
    elif how == "zeros":
        x = message["arguments"]["x"]
        size = len(x["data"])
        shape = [x["shape"][0], size // x["shape"][0]]
        answer = {"seq": message["seq"], "result": {"y": {**x, "shape": shape, "data": [0] * size}}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("c") / "integers"
    flags = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    source = target.with_suffix(".c")
    source.write_text(integers_c()[0])
    subprocess.run([compiler, *flags, "-o", target, source], check=True)
    return str(target)


def broken(how: str) -> list[str]:
    return [sys.executable, "-c", BROKEN, how]


def test_the_c_program_conforms(c_program: str) -> None:
    report = conform([c_program])
    assert report.conforms, report.summary()
    passed = {o.vector.operation for o in report.outcomes if o.status == "passed"}
    machines = {
        o.vector.id
        for o in report.outcomes
        if o.vector.operation == "accumulate_stages" and o.status == "passed"
    }
    assert {"accumulate-stages-x86-maddubs", "accumulate-stages-arm-smlad"} <= machines
    assert passed - {"accumulate_stages"} == {
        "linear",
        "conv2d",
        "flatten",
        "requantize_thresholds",
    }
    assert report.implementation == "integers.c"
    asked = [o for o in report.outcomes if o.vector.operation in passed - {"accumulate_stages"}]
    assert sum(o.status == "unsupported" for o in asked) <= 5  # values beyond 64 bits


def test_the_javascript_program_conforms() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    report = conform([node, str(PROGRAMS / "bigints.js")])
    assert report.conforms, report.summary()
    for operation in ("round_ratio", "requantize_shift", "linear", "bit_widths", "check_codes"):
        statuses = {o.status for o in report.outcomes if o.vector.operation == operation}
        assert statuses == {"passed"}, operation


@pytest.mark.parametrize(
    "how",
    ["no-protocol", "protocol-float", "protocol-bool", "unknown-operation", "echo-floats",
     "echo-one-float", "echo-numbers", "echo-strings", "echo-bools", "echo-seq", "echo-deep",
     "echo-dies"],
)  # fmt: skip
def test_faults_of_the_harness_are_no_verdict(how: str) -> None:
    with pytest.raises(HarnessError):
        conform(broken(how))


def test_a_program_that_does_not_exist() -> None:
    with pytest.raises(HarnessError, match="cannot start"):
        conform(["/nonexistent/program"])
    with pytest.raises(InvalidArgument, match="command"):
        conform([])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crash", "exit code 7"),
        ("garbage", "not a line of JSON"),
        ("list", "not a JSON object"),
        ("slow", "no answer within 0.5 s"),
        ("wrong-seq", "answer to question 1000000"),
        ("two-answers", "expected one of"),
        ("unknown-code", "bad luck"),
        ("bad-tensor", "expected a int_tensor"),
        ("float-seq", "answer to question 1.0"),
        ("small-strings", "got '28', expected a int"),
        ("float-integers", "got 28.0, expected a int"),
        ("large-numbers", "got 1152921504606846976, expected a int"),
    ],
)
def test_faults_are_not_failures(how: str, message: str) -> None:
    asked = ["omega" if message.endswith("expected a int") else "flatten"]
    report = conform(broken(how), operations=asked, seconds=0.5 if how == "slow" else 10)
    assert not report.conforms
    assert report.counts["fault"] == len(report.outcomes)
    assert message in report.outcomes[0].message


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 10**400])
def test_a_time_limit_is_a_time(seconds: float) -> None:
    with pytest.raises(InvalidArgument, match="seconds: got"):
        conform(broken("zeros"), seconds=seconds)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("once-crash", "ended without an answer, exit code 7"),
        pytest.param("once-closed", "closed its output", marks=pytest.mark.slow),  # waits a second
    ],
)
def test_a_program_that_starts_once_has_its_report(how: str, message: str, tmp_path: Path) -> None:
    report = conform([*broken(how), str(tmp_path / "started")], operations=["flatten"])
    assert message in report.outcomes[0].message
    assert "not asked" in report.outcomes[1].message
    assert report.counts["fault"] == len(report.outcomes)


def test_what_a_program_says_does_nothing_to_a_terminal() -> None:
    summary = conform(broken("escapes"), operations=["flatten"], name="a\x1b[31m").summary()
    assert summary.startswith(r"a\x1b[31m, vectors")
    assert r"refused: \x1b[2J\n" in summary
    assert "\x1b" not in summary


def test_wrong_answers_are_failures_with_a_reproduction(tmp_path: Path) -> None:
    report = conform(broken("zeros"), operations=["flatten"])
    failed = [o for o in report.outcomes if o.status == "failed"]
    assert failed
    assert "printf" in failed[0].reproduction
    assert failed[0].mismatch is not None
    report.write(tmp_path / "report.jsonl")
    header, *lines = map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines())
    assert header["failed"] == len(failed)
    first = next(line for line in lines if line["status"] == "failed")
    assert first["mismatch"]["index"] == list(failed[0].mismatch.index or ())
    assert set(first["flags"]) == set(failed[0].vector.flags)


@pytest.mark.parametrize(
    ("how", "status"),
    [("shape_mismatch", "passed"), ("refused", "passed"), ("out_of_range", "failed")],
)
def test_codes_of_programs_are_compared(how: str, status: str) -> None:
    report = conform(broken(how), operations=["concat"])
    invalid = [o for o in report.outcomes if o.vector.error is not None]
    assert {o.vector.error for o in invalid} == {"shape_mismatch"}
    assert {o.status for o in invalid} == {status}
    assert {o.status for o in report.outcomes if o.vector.error is None} == {"failed"}


# It forgets how to count after its third question: a fault that no single question shows.
FORGETFUL = """
import json, sys
asked = 0
for line in sys.stdin:
    message = json.loads(line)
    if message["cmd"] == "stop":
        break
    if message["cmd"] == "start":
        answer = {"protocol": 1, "name": "forgetful", "operations": ["omega"]}
    elif message["operation"] == "echo":
        answer = {"seq": message["seq"], "result": message["arguments"]}
    else:
        asked += 1
        if asked == 8:
            sys.exit(5)
        least = min(message["arguments"].values())
        n, w, x = (2 ** max(bits, 1) - 1 for bits in message["arguments"].values())
        fan_in = n // (w * x)
        answer = {"seq": message["seq"], "result": {"fan_in": 12345 if asked > 3 else fan_in}}
        if least < 1:
            answer = {"seq": message["seq"], "error": "refused"}
    print(json.dumps(answer), flush=True)
"""


def test_a_conversation_can_be_replayed(tmp_path: Path) -> None:
    """Up to the wrong answer, from the program's last start: crashes start it anew."""
    command = [sys.executable, "-c", FORGETFUL]
    file = tmp_path / "every line.jsonl"
    report = conform(command, operations=["omega"], transcript=file)
    wrong = [o for o in report.failures if "expected" in str(o.mismatch or o.message)]
    assert len(wrong) > 4
    assert [o.status for o in report.outcomes].count("fault") >= 1
    for outcome in report.failures:
        done = subprocess.run(
            outcome.reproduction, shell=True, capture_output=True, text=True, check=False
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        if outcome.message.startswith("ended without"):
            assert answers[-1]["seq"] == report.outcomes.index(outcome)
        else:
            assert answers[-1]["seq"] == report.outcomes.index(outcome) + 1
            assert answers[-1]["result"]["fan_in"] == 12345


def test_a_reproduction_can_be_pasted(c_program: str) -> None:
    report = conform([c_program], operations=["flatten"])
    from refqnn.conformance.program import _reproduction
    from refqnn.conformance.runner import encoded_arguments

    vector = report.outcomes[0].vector
    message = {"cmd": "run", "operation": "flatten", "arguments": encoded_arguments(vector)}
    shell = subprocess.run(
        _reproduction([c_program], message), shell=True, capture_output=True, check=True, text=True
    )
    _, answer = map(json.loads, shell.stdout.splitlines())
    assert answer["result"]["y"]["data"] == vector.outputs["y"].ravel().tolist()


# --- questions and answers as files -----------------------------------------------------------


def _answers(tmp_path: Path, edit: object = None) -> Path:
    """Right answers to every question about widths."""
    questions = tmp_path / "questions.jsonl"
    emit(questions, operations=["bit_widths"])
    from refqnn.conformance.reference import bit_widths

    lines = []
    for question in map(json.loads, questions.read_text().splitlines()):
        given = {name: int(value) for name, value in question["arguments"].items()}
        try:
            lines.append({"id": question["id"], "result": bit_widths(**given)})
        except ValueError:
            lines.append({"id": question["id"], "error": "invalid_parameter"})
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_emit_and_verify(tmp_path: Path) -> None:
    report = verify(_answers(tmp_path))
    assert report.conforms
    assert report.counts["unsupported"] > 0  # what was not asked is not passed
    assert {o.vector.operation for o in report.outcomes if o.status == "passed"} == {"bit_widths"}


def test_verify_sees_a_wrong_answer(tmp_path: Path) -> None:
    path = _answers(tmp_path)
    first, *rest = path.read_text().splitlines()
    answer = json.loads(first)
    answer["result"]["span_bits"] += 1
    path.write_text("\n".join([json.dumps(answer), *rest]))
    report = verify(path)
    assert [o.vector.id for o in report.failures] == [answer["id"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ("[]", "line 1"),
        ('{"id": "no-such-vector", "skipped": ""}', "no-such-vector"),
        ('{"id": "flatten-image", "skipped": ""}\n{"id": "flatten-image", "skipped": ""}', "twice"),
    ],
)
def test_verify_refuses_bad_files(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(FileFormatError, match=message):
        verify(path)


# Stands between the harness and a program and writes down every line.
RELAY = """
import subprocess, sys
log = open(sys.argv[1], "w")
pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
with subprocess.Popen(sys.argv[2:], **pipes) as program:
    for line in sys.stdin:
        print("question", line.strip(), file=log, flush=True)
        program.stdin.write(line)
        program.stdin.flush()
        if '"stop"' in line:
            break
        answer = program.stdout.readline()
        print("answer", answer.strip(), file=log, flush=True)
        print(answer, end="", flush=True)
    program.stdin.close()
"""


def test_a_conversation_follows_the_schema(c_program: str, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((vectors_path() / "schema" / "protocol.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validators = {
        side: jsonschema.Draft202012Validator({**schema, "oneOf": [{"$ref": f"#/$defs/{side}"}]})
        for side in schema["$defs"]
    }
    log = tmp_path / "log"
    asked = ["round_ratio", "linear", "requantize_shift", "omega"]
    conform([sys.executable, "-c", RELAY, str(log), c_program], operations=asked)
    definitions = set()
    for line in log.read_text().splitlines():
        side, _, message = line.partition(" ")
        content = json.loads(message)
        validator = validators[side]
        validator.validate(content)
        assert not validator.is_valid({**content, "unknown": 1})
        definitions |= {content.get("cmd"), *content} & {"start", "run", "stop", "result", "error"}
    assert definitions == {"start", "run", "stop", "result", "error"}


def test_a_skipped_question_follows_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((vectors_path() / "schema" / "protocol.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"seq": 3, "skipped": "too wide"})
    assert not validator.is_valid({"seq": 3, "skipped": "too wide", "error": "out_of_range"})
    assert not validator.is_valid({"seq": 3, "error": "bad luck"})
    assert validator.is_valid({"seq": 3, "error": "refused", "message": "3 channels for 2"})
