"""Random networks that look for trouble, and everything that must agree on them.

A failure is made smaller and printed as Python that runs by itself.  Everything follows from the
name of the comparison and the number of the network.
"""

from __future__ import annotations

import time
from collections import Counter
from zlib import crc32

import numpy as np
import pytest
from comparisons import COMPARISONS, LIMITS, Disagreement, homes, told
from networks import MAKERS, codes_of, network_of
from shrinking import HEADER, python, shrunk

from refqnn import Network
from refqnn.ops import KINDS

SECONDS = 30  # for making a failure smaller


def attempt(name: str, network: Network, number: int) -> str:
    with told(name):
        rng = np.random.default_rng([crc32(name.encode()), number, 1])
        return COMPARISONS[name][0](network, rng)


def made(name: str, number: int) -> Network:
    arguments = COMPARISONS[name][1]
    return network_of(np.random.default_rng([crc32(name.encode()), number]), **arguments)


def report(name: str, number: int, network: Network, seconds: float = SECONDS) -> str:
    """A failing network, as small as it gets in the time, in Python."""

    def failure(candidate: Network) -> Disagreement | None:
        try:
            attempt(name, candidate, number)
        except Disagreement as error:
            return error
        return None

    small, error = shrunk(network, failure, time.monotonic() + seconds)
    lines = "\n".join(line for line in error.lines if line)
    return f"{name}, network {number}: {str(error)[:500]}\n\n{HEADER}{python(small)}\n{lines}\n"


def run(name: str, numbers: range) -> Counter[str]:
    ends: Counter[str] = Counter()
    for number in numbers:
        network = made(name, number)
        try:
            ends[attempt(name, network, number)] += 1
        except Disagreement:
            pytest.fail(report(name, number, network), pytrace=False)
    print(f"{name}: {dict(ends)}")
    return ends


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_sample(name: str) -> None:
    run(name, range(COMPARISONS[name][2]))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARISONS)
def test_an_hour(name: str) -> None:
    assert sum(run(name, range(10**6, 10**6 + COMPARISONS[name][3])).values()) > 0


def test_every_kind_has_a_maker() -> None:
    assert {*MAKERS} == {kind.kind for kind in KINDS} | {"Requantize"}
    seen = Counter(node.op.kind for i in range(150) for node in made("forward", i).nodes)
    assert not {*MAKERS} - {*seen}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_where_they_are_looked_for(name: str) -> None:
    assert homes(name)


@pytest.mark.parametrize("name", ["forward", "a kind of one's own"])
def test_what_is_printed_makes_the_network(name: str) -> None:
    for number in range(30):
        network, names = made(name, number), {}
        exec(HEADER + python(network), names)
        codes = codes_of(network, np.random.default_rng(number), 5)
        assert names["network"].output == network.output
        for node, values in names["network"].trace(codes).items():
            assert values.tolist() == network.trace(codes)[node].tolist()


def test_a_failure_becomes_small_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that fails where a weight of 3 or more meets a table, as a fault might."""

    def fails(network: Network, rng: np.random.Generator) -> str:
        weights = [n.op.weight.max() for n in network.nodes if hasattr(n.op, "weight")]
        if max(weights, default=0) >= 3 and any(n.op.kind == "Requantize" for n in network.nodes):
            raise Disagreement("a fault", "seen = network.output")
        return "equal"

    monkeypatch.setitem(COMPARISONS, "fault", (fails, {}, 0, 0))
    number = next(i for i in range(100) if failing("fault", i))
    text = report("fault", number, made("fault", number))
    heading, program = text.split("\n\n", 1)
    assert heading == f"fault, network {number}: a fault"
    names: dict[str, object] = {}
    exec(program, names)
    network = names["network"]
    assert isinstance(network, Network)
    assert len(network.nodes) == 2
    assert names["seen"] == network.output
    with pytest.raises(Disagreement):
        attempt("fault", network, number)


def failing(name: str, number: int) -> bool:
    try:
        attempt(name, made(name, number), number)
    except Disagreement:
        return True
    return False
