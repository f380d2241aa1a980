"""Run the vectors against any program that speaks JSON lines on standard input and output.

    harness                                            program
    {"cmd": "start", "protocol": 1, ...}               {"protocol": 1, "name", "operations"}
    {"cmd": "run", "seq": 0, "operation": "echo", ...} {"seq": 0, "result": the arguments}
    {"cmd": "run", "seq": 1, "operation": ...,         {"seq": 1, "result": {...}}
     "arguments": {...}}                               or {"seq": 1, "error": code, "message": ...}
                                                       or {"seq": 1, "skipped": why}
    {"cmd": "stop"}                                    (it ends)

A code is one of `ERROR_CODES`, which must be the right one, or "refused", for a program that
refuses without saying why; "message" may be left out.

The handshake tells faults of the harness from faults of the implementation: until `start` and
`echo` are answered, nothing has been computed, so whatever is wrong is in how the program reads and
writes; that raises `HarnessError`.  After it, a crash, a time limit or garbage is the verdict on
one vector, and the program is started anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import reprlib
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from refqnn.conformance.encoding import Data, decode_fields
from refqnn.conformance.operations import ERROR_CODES, OPERATIONS, Values
from refqnn.conformance.runner import Outcome, Report, encoded_arguments, judge, report_on
from refqnn.conformance.suite import (
    SEMANTICS_VERSION,
    SUITE_VERSION,
    Answer,
    Vector,
    load_vectors,
    select,
)
from refqnn.container import write_atomically
from refqnn.errors import FileFormatError, InvalidArgument, InvalidType, RefqnnError, mismatch

__all__ = ["PROTOCOL", "REFUSED", "HarnessError", "conform", "read_answer"]

PROTOCOL = 1
REFUSED = "refused"  # in place of an error code, which is not compared then
_RESTARTS = 10
_LONGEST = 10**6  # seconds; timers of the system end somewhere beyond
_LINE = 2**24  # bytes of an answer
_LINES = 4  # answers that wait to be read

# What the echo must bring back: integers around and beyond 2**53, floats, no shape, no values.
_ECHO = {
    "x": {"dtype": "int", "shape": [2, 2], "data": [-1, 2**53, "-9007199254740993", str(2**63)]},
    "y": {"dtype": "float32", "shape": [], "data": ["-0x1.8000000000000p-3"]},
    "z": {"dtype": "int", "shape": [0], "data": []},
    "flags": [True, None, "half_even"],
}


class HarnessError(RefqnnError, RuntimeError):
    """The program cannot be talked to; nothing is known about its arithmetic."""


class _Fault(Exception):
    """The program crashed, took too long, or wrote something that is no answer."""


class _Process:
    """One run of the program."""

    def __init__(self, command: Sequence[str], seconds: float, sent: list[str]) -> None:
        self._seconds = seconds
        self._sent = sent  # the lines that this and former runs were sent
        self.first = len(sent) + 1
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a group of its own, so that `kill` ends its children too
            )
        except (OSError, ValueError) as error:
            raise HarnessError(f"cannot start {shlex.join(command)}: {error}") from error
        self._killed = False
        self._lines: queue.Queue[bytes | None] = queue.Queue(_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.about = self._handshake()
        except (_Fault, HarnessError) as error:
            self.kill()
            raise HarnessError(f"{shlex.join(command)}: {error}") from error

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with contextlib.suppress(queue.Full):  # it talks without being asked
            for line in iter(lambda: stdout.readline(_LINE + 1), b""):
                self._lines.put_nowait(line)
                if len(line) > _LINE:
                    break
            self._lines.put_nowait(None)

    def _handshake(self) -> Values:
        versions = {"suite_version": SUITE_VERSION, "semantics_version": SEMANTICS_VERSION}
        about = self.ask({"cmd": "start", "protocol": PROTOCOL, **versions})
        if not _same(about.get("protocol"), PROTOCOL):
            got = reprlib.repr(about.get("protocol"))
            raise HarnessError(mismatch("protocol in the answer to start", got, str(PROTOCOL)))
        operations = about.get("operations")
        if not isinstance(operations, list) or not isinstance(about.get("name"), str):
            raise HarnessError('answer to start: expected "name" and a list "operations"')
        if unknown := [n for n in operations if not isinstance(n, str) or n not in OPERATIONS]:
            raise HarnessError(mismatch("operations", unknown, "operations of this suite"))
        echo = self.ask({"cmd": "run", "seq": 0, "operation": "echo", "arguments": _ECHO})
        if not _same(echo, {"seq": 0, "result": _ECHO}):
            raise HarnessError(mismatch("echo", reprlib.repr(echo), "the arguments, as they were"))
        return about

    def ask(self, message: Values) -> Values:
        """One line there, one line back.  Raises: _Fault."""
        assert self._process.stdin is not None
        line = json.dumps(message)
        self._sent.append(line)
        watch = threading.Timer(self._seconds, self._end)  # it may never read
        watch.start()
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise _Fault(self._death()) from None
        finally:
            watch.cancel()
        try:
            said = self._lines.get(timeout=self._seconds)
        except queue.Empty:
            raise _Fault(f"no answer within {self._seconds:g} s") from None
        if said is None:
            raise _Fault(self._death())
        if len(said) > _LINE:
            raise _Fault(f"a line of more than {_LINE} bytes: {said[:200]!r}")
        try:
            answer = json.loads(said)
        except (ValueError, RecursionError):
            raise _Fault(f"not a line of JSON: {said[:200]!r}") from None
        if not isinstance(answer, dict):
            raise _Fault(f"not a JSON object: {said[:200]!r}")
        return answer

    def _death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        code = self._process.returncode
        how = "closed its output" if code is None else "ended"
        return f"{how} without an answer" + ("" if code is None else f", exit code {code}")

    def stop(self) -> None:
        """Ask it to end; kill it where it does not."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(b'{"cmd": "stop"}\n')
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        self.kill()

    def kill(self) -> None:
        """End it now, and what it started; once, for its number may be another's afterwards."""
        if self._killed:
            return
        self._killed = True
        self._end()
        self._process.wait()
        self._reader.join(timeout=1)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)


def conform(
    command: Sequence[str],
    *,
    operations: Iterable[str] | None = None,
    profiles: Iterable[str] | None = None,
    seconds: float = 10.0,
    name: str | None = None,
    transcript: str | Path | None = None,
    folder: Path | None = None,
) -> Report:
    """Ask every vector of a program.

    Args:
        command: the program and its arguments.
        operations, profiles: as for `run`.
        seconds: time limit of one answer, above 0.
        name: for the report; what the program calls itself by default.
        transcript: a file for every line that the program was sent.  `reproduction` then replays
            the conversation from the program's start, and not the one question alone.
        folder: of vectors, as `refqnn vectors from` writes them; None: the suite.

    Raises: HarnessError when the program cannot be talked to, InvalidArgument, InvalidType.
    """
    if not command:
        raise InvalidArgument(mismatch("command", "nothing", "a program and its arguments"))
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise InvalidType(mismatch("seconds", repr(seconds), "a number"))
    if not 0 < seconds <= _LONGEST:
        expected = f"above 0, at most {_LONGEST:,}"
        raise InvalidArgument(mismatch("seconds", seconds, expected))
    vectors = select(load_vectors(folder), operations, profiles)
    sent: list[str] = []
    process = _Process(command, seconds, sent)
    about, outcomes, restarts = process.about, [], 0
    gone = ""  # why nothing more is asked
    known = set(about["operations"])
    try:
        for seq, vector in enumerate(vectors, start=1):
            if vector.operation not in known:
                outcomes.append(Outcome(vector, "unsupported", message="not in its operations"))
                continue
            if gone:
                outcomes.append(Outcome(vector, "fault", message=f"not asked: {gone}"))
                continue
            message = {
                "cmd": "run",
                "seq": seq,
                "operation": vector.operation,
                "arguments": encoded_arguments(vector),
            }
            first, last = process.first, len(sent) + 1
            again = _reproduction(command, message)
            if transcript is not None:
                file = shlex.quote(str(transcript))
                again = f"sed -n {first},{last}p {file} | {shlex.join(command)}"
            try:
                answer = process.ask(message)
                if not _same(answer.get("seq"), seq):
                    got = reprlib.repr(answer.get("seq"))
                    raise _Fault(f"answer to question {got}, expected {seq}")
                verdict = read_answer(vector, answer)
            except _Fault as fault:
                verdict = Answer("fault", message=str(fault))
                process.kill()
                restarts += 1
                gone = f"the program failed {restarts} times" if restarts > _RESTARTS else ""
                if not gone:
                    try:
                        process = _Process(command, seconds, sent)
                    except HarnessError as error:
                        gone = str(error)
            outcomes.append(judge(vector, verdict, again))
        if not gone:
            process.stop()
    finally:
        process.kill()
        if transcript is not None:
            text = "".join(line + "\n" for line in sent)
            write_atomically(transcript, lambda out: out.write(text.encode()))
    return report_on(name or about["name"], outcomes)


def read_answer(vector: Vector, answer: Values) -> Answer:
    """An answer from the wire or from a file of answers; "fault" for what is none."""
    kinds = [k for k in ("result", "error", "skipped") if k in answer]
    if len(kinds) != 1:
        return Answer("fault", message='expected one of "result", "error", "skipped"')
    if kinds == ["skipped"]:
        return Answer("skipped", message=_text(answer["skipped"]))
    if kinds == ["error"]:
        code = answer["error"]
        if not isinstance(code, str) or code not in (*ERROR_CODES, REFUSED):
            expected = f"one of {', '.join([*ERROR_CODES, REFUSED])}"
            return Answer("fault", message=mismatch("error", reprlib.repr(code), expected))
        message = f"{code}: {_text(answer.get('message', ''))}"
        return Answer("error", message=message, code=None if code == REFUSED else code)
    try:
        results = decode_fields(answer["result"], OPERATIONS[vector.operation].results)
    except FileFormatError as error:
        return Answer("fault", message=str(error))
    return Answer("result", results)


def _same(got: Data, expected: Data) -> bool:
    """Equal, and written alike: 2.0 is not 2, and true is not 1."""
    if type(got) is not type(expected):
        return False
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(_same(got[k], expected[k]) for k in got)
    if isinstance(expected, list):
        return len(got) == len(expected) and all(map(_same, got, expected))
    return bool(got == expected)


def _text(said: Data) -> str:
    """Text as it is; anything else shortened, for it may be nested too deeply to be printed."""
    return said if isinstance(said, str) else reprlib.repr(said)


def _reproduction(command: Sequence[str], message: Values) -> str:
    """A line of shell that asks this question of a program that has just started."""
    start = json.dumps({"cmd": "start", "protocol": PROTOCOL})
    lines = (start, json.dumps({**message, "seq": 1}), '{"cmd": "stop"}')
    return f"printf '%s\\n' {' '.join(map(shlex.quote, lines))} | {shlex.join(command)}"
