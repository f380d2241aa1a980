"""Mistakes planted in networks: named, in a group of equals, or "none of mine"; never wrongly sure.

The mutants are those of the conformance suite: loops over Python integers that share no line with
the catalogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import product

import numpy as np
import pytest
from planted import TRAINED, Planted, planted, samples, trained, zoo

from refqnn import Network
from refqnn.diagnosis import CATALOGUE, Diagnosis, diagnose
from refqnn.diagnosis.deviation import computed


def verdict(case: Planted, found: Diagnosis) -> str:
    """Which end a diagnosis comes to."""
    if found.ok:
        return "named" if case.node in found.notes else "missed"  # a layout that its shape tells
    finding = found.findings[0]
    sets = finding.explanations
    if not sets:
        return "none of mine"
    if any(len(e) == 1 and e[0].node == case.node and e[0].name in case.names for e in sets):
        return "named"
    return "wrongly certain" if finding.certain else "other names"


def counted(cases: Iterable[tuple[Planted, Diagnosis | None]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for case, found in cases:
        if found is not None:
            end = verdict(case, found)
            counts[end] += 1
            if end != "named":
                print(f"{end}: {case}: {found}")
    print(dict(counts))
    return counts


def check(counts: Counter[str], at_least: int) -> None:
    assert counts["wrongly certain"] == 0
    assert counts["missed"] == 0
    assert counts.total() >= at_least
    assert counts["named"] >= 0.95 * counts.total()


def test_a_mutant_is_named() -> None:
    network = trained("iris-mlp")
    cases = planted(network, samples(network, 40))
    check(counted((case, case.beside()) for case in cases), 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRAINED, "zoo"])
def test_every_mutant_in_every_network(name: str) -> None:
    network = zoo() if name == "zoo" else trained(name)
    cases = planted(network, samples(network, 12 if len(network.input_shape) > 1 else 40))
    check(counted((case, case.beside()) for case in cases), 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_every_mutant_from_the_output_alone(name: str) -> None:
    network = trained(name)
    cases = planted(network, samples(network, 12 if len(network.input_shape) > 1 else 40))
    check(counted((case, case.at_the_end()) for case in cases), 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iris-mlp", "zoo"])
def test_the_catalogue_finds_its_own(name: str) -> None:
    """What a deviation makes of a node is explained by it, whatever else explains it too."""
    network = zoo() if name == "zoo" else trained(name)
    codes = samples(network, 10)
    trace = network.trace(codes)
    for number, (node, deviation) in enumerate(product(network.nodes, CATALOGUE)):
        if number % 23 or not deviation.applies_to(node.op) or deviation.fit is not None:
            continue
        x = tuple(trace[source] for source in node.inputs or ())
        try:
            made = computed(node.op, x, [deviation])
        except (ValueError, IndexError, TypeError, AttributeError):
            continue  # no program
        expected = trace[node.name]
        if made is None or made.shape != expected.shape or np.array_equal(made, expected):
            continue
        dump = {**{s: trace[s] for s in node.inputs or ()}, "input": codes, node.name: made}
        found = diagnose(network, dump, budget_s=0).findings[-1]
        assert deviation.name in found.names, (node.name, deviation.name)


def perturbed(
    network: Network, rng: np.random.Generator, share: float
) -> tuple[dict[str, np.ndarray], str]:
    """A dump in which some values of one node are wrong at random."""
    codes = samples(network, 30, int(rng.integers(1000)))
    trace = network.trace(codes)
    name = network.nodes[int(rng.integers(len(network.nodes)))].name
    values = trace[name].copy()
    wrong = rng.random(values.shape) < share
    wrong.reshape(-1)[: values.size // 10 + 1] = True  # ten percent at least
    lo, hi = int(values.min()), int(values.max())
    values[wrong] = rng.integers(lo, hi + 1, int(wrong.sum()))
    return {**trace, name: values}, name


@pytest.mark.parametrize("name", ["iris-mlp", "digits-cnn"])
def test_random_values_are_none_of_mine(name: str) -> None:
    """A control: programs that no catalogue could hold."""
    network, rng = trained(name), np.random.default_rng(1)
    for share in (0.1, 0.7):
        dump, wrong = perturbed(network, rng, share)
        found = diagnose(network, dump, budget_s=1)
        assert found.findings[0].node == wrong
        assert not any(finding.explanations for finding in found.findings)
        assert "none of mine" in str(found)
