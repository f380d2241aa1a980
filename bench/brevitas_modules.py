"""Random Brevitas modules, code by code against the networks made from them.

MLPs, CNNs, depthwise, residual and moving networks of the tests' generator: trained for some steps
or calibrated, some pruned, each layer with a precision of its own.  In the strict profile no code
may differ from the unmodified module; in the general one none under exact accumulation, and without
it none outside the near-tie certificate.  A difference ends the run.

The results are written after every round of ten modules, one of each kind and profile, so that a
run that is stopped has counted what it did.

    python bench/brevitas_modules.py            # half an hour on one core
    python bench/brevitas_modules.py --quick    # one round, nothing written
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import product

import torch
from common import FOLDER, Session

sys.path.insert(0, str(FOLDER.parent / "tests" / "brevitas"))

from random_networks import KINDS, PROFILES
from test_claims import SLOW_SAMPLES, SLOW_SEEDS, check


def main() -> None:
    session = Session("brevitas_modules", __doc__ or "", "one round, nothing written")
    torch.set_num_threads(1)
    totals: dict[str, Counter[str]] = {profile: Counter() for profile in PROFILES}
    for seed in SLOW_SEEDS:
        for profile, kind in product(PROFILES, KINDS):
            totals[profile] += check(kind, profile, seed, SLOW_SAMPLES[kind])
        modules = sum(total["networks"] for total in totals.values())
        codes = sum(total["codes"] for total in totals.values())
        session.say(f"{modules} modules, {codes:,} codes, 0 unexplained")
        if session.quick:
            return
        counts = {profile: dict(total) for profile, total in totals.items()}
        session.write({"modules": modules, "codes": codes, "unexplained": 0, "profiles": counts})


if __name__ == "__main__":
    main()
