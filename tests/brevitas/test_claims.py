"""The claim, at scale, on random networks.

strict    0 differences from the unmodified module, at every quantizer
general   0 differences under exact accumulation, and none outside the near-tie certificate without
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from random_networks import KINDS, PROFILES, build

from refqnn.brevitas import exact_accumulators, from_brevitas, verify_against

SEEDS = 6  # of each kind and profile, by default
SLOW_SEEDS = range(1000, 1104)
# Of a module: about 10**5 codes each, so that 1,000 modules are 10**8.
SLOW_SAMPLES = {"mlp": 1024, "cnn": 384, "depthwise": 384, "residual": 384, "moving": 256}


def check(kind: str, profile: str, seed: int, samples: int) -> Counter[str]:
    """One network; returns the counts.  Fails on any difference that the claim excludes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, shape, _ = build(kind, profile, seed)
        x = torch.randn(samples, *shape) * 2
        network = from_brevitas(module, x[:1])
        report = verify_against(module, network, x)
        label = f"{kind} {profile} {seed}\n"
        if profile == "strict":
            assert report.exact, label + str(report)
        assert report.ok, label + str(report)
        if profile == "general":
            with exact_accumulators():
                exact = verify_against(module, network, x)
            assert exact.exact, label + str(exact)
    near = sum(layer.near_tie for layer in report.teacher_forced)
    return Counter(networks=1, codes=report.codes, near_ties=near)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("profile", PROFILES)
def test_random_networks(kind: str, profile: str) -> None:
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    for seed in range(SEEDS):
        total += check(kind, profile, seed, samples=48)
    assert total["networks"] == SEEDS
    assert total["codes"] > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_a_thousand_networks_and_a_hundred_million_codes(
    profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    for kind in KINDS:
        for seed in SLOW_SEEDS:
            total += check(kind, profile, seed, SLOW_SAMPLES[kind])
    with capsys.disabled():
        print(
            f"\n{profile}: {total['networks']} networks, {total['codes']:,} codes, "
            f"{total['near_ties']} near ties against the unmodified module, 0 unexplained"
        )
    assert total["networks"] >= 500  # in each of the two profiles
    assert total["codes"] >= 5 * 10**7


def test_the_committed_run_counts_no_difference() -> None:
    path = Path(__file__).parents[2] / "bench" / "brevitas_modules.json"
    found = json.loads(path.read_text())
    assert found["unexplained"] == 0
    for key, total in (("networks", found["modules"]), ("codes", found["codes"])):
        assert sum(found["profiles"][profile][key] for profile in PROFILES) == total
    assert "near_ties" not in found["profiles"]["strict"]  # a count of 0 is left out
