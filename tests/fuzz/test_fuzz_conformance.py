"""Answers, vector files and the programs themselves: whatever they say, a verdict or our error."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import textwrap
from pathlib import Path

import pytest
from fuzzing import fuzz, mutated_bytes, mutated_json, to_text

from refqnn import conformance
from refqnn.conformance import operations
from refqnn.conformance.encoding import encode_fields
from refqnn.conformance.program import HarnessError, read_answer
from refqnn.conformance.runner import judge
from refqnn.conformance.suite import load_vectors, vectors_path
from refqnn.errors import FileFormatError

SPEEDS = [False, pytest.param(True, marks=pytest.mark.slow)]


def right_answer(vector) -> dict:
    if vector.error is not None:
        return {"id": vector.id, "error": vector.error, "message": "no"}
    fields = operations.OPERATIONS[vector.operation].results
    results = {**vector.outputs, **vector.intermediates}
    return {"id": vector.id, "result": encode_fields(results, fields)}


@pytest.mark.parametrize("slow", SPEEDS)
def test_answers(slow: bool) -> None:
    asked = [(vector, right_answer(vector)) for vector in load_vectors()]
    asked = [(v, answer) for v, answer in asked if len(json.dumps(answer)) < 2000]

    def make(rng: random.Random):
        vector, answer = rng.choice(asked)
        return vector, mutated_json(answer, rng)

    def door(value) -> None:
        vector, answer = value
        if not isinstance(answer, dict):
            return
        said = read_answer(vector, answer)
        assert said.kind in ("result", "error", "skipped", "fault")
        if said.kind != "result" or vector.error is not None:
            return
        verdict = conformance.suite.compare(vector, said.results)
        if verdict is None:  # every output is there and says the same integers
            again = encode_fields(said.results, operations.OPERATIONS[vector.operation].results)
            for name, expected in right_answer(vector)["result"].items():
                assert name not in vector.outputs or again[name] == expected

    fuzz("answer of a program", slow, make, door)


def test_right_answers_pass() -> None:
    for vector in load_vectors():
        assert judge(vector, read_answer(vector, right_answer(vector))).status == "passed"


@pytest.mark.parametrize("slow", SPEEDS)
def test_files_of_answers(slow: bool, tmp_path: Path, monkeypatch) -> None:
    few = load_vectors()[::40]
    monkeypatch.setattr("refqnn.conformance.offline.load_vectors", lambda *_: few)
    monkeypatch.setattr("refqnn.conformance.runner._same_answer", lambda *_: [])
    path = tmp_path / "answers.jsonl"
    text = "".join(json.dumps(right_answer(v)) + "\n" for v in few).encode()

    def door(data: bytes) -> None:
        path.write_bytes(data)
        conformance.verify(path).summary()

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return mutated_bytes(text, rng)
        lines = [mutated_json(right_answer(rng.choice(few)), rng) for _ in range(3)]
        return "".join(to_text(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")

    fuzz("file of answers", slow, make, door)


@pytest.mark.parametrize("slow", SPEEDS)
def test_vector_files(slow: bool, tmp_path: Path) -> None:
    """Mutated, and the manifest mended for most: what loads has arrays where arrays belong."""
    names = ["flatten.json", "integer_format.json", "reshape.json", "omega.json"]
    texts = {name: (vectors_path() / name).read_bytes() for name in names}
    manifest = json.loads((vectors_path() / "MANIFEST.json").read_text())
    manifest["files"] = {name: manifest["files"][name] for name in names}

    def make(rng: random.Random):
        name = rng.choice(names)
        if rng.random() < 0.3:
            text = mutated_bytes(texts[name], rng)
        else:
            text = to_text(mutated_json(json.loads(texts[name]), rng)).encode()
        listing = manifest
        if rng.random() < 0.9:
            digest = hashlib.sha256(text).hexdigest()
            listing = {"files": {name: {**manifest["files"][name], "sha256": digest}}}
            listing = {**manifest, **listing}
        if rng.random() < 0.2:
            listing = mutated_json(listing, rng)
        return name, text, to_text(listing).encode("utf-8", "surrogatepass")

    def door(value) -> None:
        name, text, listing = value
        for other in names:
            (tmp_path / other).write_bytes(text if other == name else texts[other])
        (tmp_path / "MANIFEST.json").write_bytes(listing)
        for vector in load_vectors.__wrapped__(tmp_path):
            assert vector.operation in operations.OPERATIONS

    fuzz("vector file", slow, make, door)


def test_an_altered_vector_file_is_refused(tmp_path: Path) -> None:
    for path in (vectors_path() / "MANIFEST.json", *vectors_path().glob("*.json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(load_vectors.__wrapped__(tmp_path)) == len(load_vectors())
    changed = tmp_path / "flatten.json"
    changed.write_bytes(changed.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(FileFormatError, match="MANIFEST"):
        load_vectors.__wrapped__(tmp_path)


# --- programs ---------------------------------------------------------------------------------

HONEST = """
    import json, sys
    def say(value): print(json.dumps(value), flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        if message["cmd"] == "start":
            say({"protocol": 1, "name": "hostile", "operations": ["flatten"]})
        elif message["cmd"] == "stop":
            break
        elif message["operation"] == "echo":
            say({"seq": message["seq"], "result": message["arguments"]})
        else:
            HERE
"""

AT_START = {
    "silent": "import time; time.sleep(1000)",
    "deaf": "import os, time; os.close(0); time.sleep(1000)",
    "endless line": "import sys\nwhile True: sys.stdout.write('x' * 65536)",
    "endless lines": "while True: print('{}')",
    "no JSON": "print('hello')",
    "deep": "print('[' * 10**6, flush=True); import time; time.sleep(1000)",
    "operations of no text": (
        'print(\'{"protocol": 1, "name": "x", "operations": [[1]]}\', flush=True); input(); input()'
    ),
    "gone": "pass",
    "a child that stays": (
        "import subprocess, sys; "
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(1000)'])"
    ),
}

AT_A_QUESTION = {
    "huge integer": "say({'seq': message['seq'], 'result': {'y': {'dtype': 'int', 'shape': [1],"
    " 'data': ['9' * 5000]}}})",
    "huge shape": "say({'seq': message['seq'], 'result': {'y': {'dtype': 'int',"
    " 'shape': [2**40, 2**40], 'data': [1]}}})",
    "error of no text": "say({'seq': message['seq'], 'error': {'a': 1}})",
    "wrong question": "say({'seq': -1, 'skipped': 'x'})",
    "endless line": "sys.stdout.write('x' * 2**25); sys.stdout.flush()",
    "many lines": "print('{}\\n' * 1000, flush=True)",
    "no number": "print('{\"seq\": NaN}', flush=True)",
    "end": "break",
}


def program(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, "-S", str(path)]


@pytest.mark.parametrize("name", AT_START)
def test_programs_that_cannot_be_talked_to(name: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError):
        conformance.conform(program(tmp_path, AT_START[name]), seconds=0.3)


@pytest.mark.parametrize("name", AT_A_QUESTION)
def test_programs_that_answer_with_garbage(name: str, tmp_path: Path) -> None:
    command = program(tmp_path, HONEST.replace("HERE", AT_A_QUESTION[name]))
    vectors = [v for v in load_vectors() if v.operation == "flatten"][:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refqnn.conformance.program.load_vectors", lambda *_: vectors)
        report = conformance.conform(command, seconds=5.0)
    assert report.counts["fault"] == len(vectors)
