"""Mutators and the harness of the fuzz tests.

A door is a function of one mutated input.  It may return, or raise one of our errors; anything else
fails, and so do 10 seconds of processor time on one input and half a gigabyte more of memory.
Everything follows from a seed: a failure names the door, the seed and the number of its input.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import random
import resource
import signal
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from refqnn.errors import RefqnnError

SECONDS = 10.0
MEGABYTES = 512

# Mutated inputs by door: by default, and with -m slow.
INPUTS = {
    "array file": (300, 250_000),
    "network file": (300, 400_000),
    "network file, checksums mended": (150, 15_000),
    "certificate": (150, 40_000),
    "certificate, checksum mended": (100, 12_000),
    "answer of a program": (300, 250_000),
    "file of answers": (60, 8_000),
    "vector file": (60, 8_000),
    "array of codes": (200, 30_000),
    "array of floats": (200, 30_000),
    "ONNX bytes": (100, 40_000),
    "ONNX message": (50, 6_000),
    "TFLite bytes": (2000, 60_000),
    "command line": (30, 1_500),
    "estimator file": (30, 3_000),
    "estimator file, checksums mended": (10, 200),
    "client file": (30, 4_000),
    "client file, checksums mended": (30, 1_500),
}

INTERESTING = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 32, 33, 255, 2**16, 2**27, 2**31, -(2**31), 2**40),
    *(2**53 + 1, 2**62, 2**63, -(2**63), -(2**63) - 1, 10**30, 10**400),
    *(0.5, 1.0, -0.0, 1e-45, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "1", "-1", "0x1p3", "nan", "input", "\x00", "\U0001f600", "../x", "a" * 5000),
    *([], {}, [[]], [0], [1, 2], [2**40], [2**20, 2**20], [-1], [0, 2**62], ["x"], {"x": 1}),
]


class Hang(BaseException):
    """One input took too long; not an Exception, so that nothing swallows it."""


def _hang(*_: Any) -> None:
    raise Hang(f"more than {SECONDS} s of processor time")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Processor time of the block is limited; a machine that is busy or stopped does not count."""
    before = signal.signal(signal.SIGVTALRM, _hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def shown(value: Any) -> str:
    try:
        return str(value)[:2000]
    except RecursionError:
        return "a value nested deeply"


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(
    name: str,
    slow: bool,
    make: Callable[[random.Random], Any],
    door: Callable[[Any], Any],
    seed: int = 0,
) -> Counter[str]:
    """Push the inputs of one door through it; returns how each ended."""
    ends: Counter[str] = Counter()
    for i in range(INPUTS[name][slow]):
        rng = random.Random(f"{name} {seed} {i}")
        value = make(rng)
        before = peak_megabytes()
        try:
            with limited():
                door(value)
            ends["accepted"] += 1
        except RefqnnError as error:
            ends[type(error).__name__ if str(error) else "error without a message"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"{name}, input {i}: {error!r} for {shown(value)}") from error
        if i > 20:
            grown = peak_megabytes() - before
            assert grown < MEGABYTES, f"{name}, input {i}: {grown} MB for {shown(value)}"
    assert not ends["error without a message"]
    print(f"{name}: {dict(ends)}")
    assert sum(ends.values()) == INPUTS[name][slow]
    return ends


# --- bytes ------------------------------------------------------------------------------------


def mutated_bytes(data: bytes, rng: random.Random, most: int = 3) -> bytes:
    """A few small changes: bits, bytes, integers, pieces cut, doubled, moved, inserted."""
    out = bytearray(data)
    for _ in range(rng.randint(1, most)):
        if not out:
            out = bytearray(b"\x00")
        at = rng.randrange(len(out))
        length = min(len(out) - at, rng.choice((1, 2, 4, 8, 16, 64)))
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            number = rng.choice((0, 1, -1, 127, 255, 2**15, 2**31 - 1, 2**32 - 1))
            size = rng.choice((1, 2, 4, 8))
            out[at : at + size] = struct.pack("<q", number)[:size]
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + length]
        elif kind == 5:
            out[at:at] = out[at : at + length]
        elif kind == 6:
            out[at:at] = rng.randbytes(length)
        else:
            other = rng.randrange(len(out))
            out[at : at + length] = out[other : other + length]
    return bytes(out)


# --- JSON -------------------------------------------------------------------------------------


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    found = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        for key in keys:
            found.append((item, key))
            if isinstance(item[key], (dict, list)):
                waiting.append(item[key])
    return found


def mutated_json(value: Any, rng: random.Random, most: int = 3) -> Any:
    """The document with values replaced, moved, doubled, removed, renamed or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, most)):
        spots = places(value)
        if not spots:
            return copy.deepcopy(rng.choice(INTERESTING))
        container, key = rng.choice(spots)
        kind = rng.randrange(9)
        if kind <= 2:
            container[key] = copy.deepcopy(rng.choice(INTERESTING))
        elif kind == 3:
            other, there = rng.choice(spots)
            container[key] = copy.deepcopy(other[there])
        elif kind == 4:
            del container[key]
        elif kind == 5 and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif kind == 5:
            container[str(key) + rng.choice(("", "x", "_"))] = container.pop(key)
        elif kind == 6:
            container[key] = [container[key]] if rng.random() < 0.5 else {"x": container[key]}
        elif kind == 7 and type(container[key]) is int:
            container[key] += rng.choice((-1, 1, 2, -1000, 2**32, -(2**63)))
        elif kind == 8 and rng.random() < 0.02:
            deep: Any = container[key]
            for _ in range(rng.choice((100, 900, 20_000))):
                deep = [deep]
            container[key] = deep
            return value  # too deep to be copied
    return value


def to_text(value: Any) -> str:
    """JSON, of values nested too deeply for the json module as well."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 20_000 + "]" * 20_000


# --- our containers ---------------------------------------------------------------------------


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def mended(data: bytes, what: str, listing: str, rng: random.Random) -> bytes:
    """A container whose content and members were changed and whose checksums are right again:
    what an enemy, not an accident, would make."""
    members = members_of(data)
    content = json.loads(members.pop(f"{what}.json"))
    members.pop(f"{what}.sha256")
    names = sorted(members)
    if names and rng.random() < 0.4:
        name = rng.choice(names)
        members[name] = mutated_bytes(members[name], rng)
    if names and rng.random() < 0.05:
        name, other = rng.choice(names), rng.choice(names)
        members[name] = members[other]
    if rng.random() < 0.8 or not names:
        content = mutated_json(content, rng)
    if isinstance(content, dict) and rng.random() < 0.95:
        content[listing] = {n: hashlib.sha256(d).hexdigest() for n, d in members.items()}
    text = to_text(content).encode("utf-8", "surrogatepass")
    checksum = hashlib.sha256(text).hexdigest().encode()
    return zipped({f"{what}.json": text, f"{what}.sha256": checksum, **members})
