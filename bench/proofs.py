"""What a proof takes: certificates of wide networks, and how many classes are decided in time.

wide     `certify` of an MLP 4096-4096-4096-4096 of random 3-bit weights and codes, beside its own
         clear forward pass of one batch of 64 in the same run.
classes  digits 64-64-10 with 3-bit weights and codes, every test sample: does any input within one
         code change the class?  Decided: proved, or an input that does, within 10 s.

    python bench/proofs.py              # a minute on one core
    python bench/proofs.py wide         # that part alone
    python bench/proofs.py --quick      # 512 wide, 8 samples, nothing written
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
from common import Session, seconds
from fhe_networks import trained

from refqnn import IntFormat, Linear, Network, Node, Requantize, certify, certify_class

BUDGET_S, RADIUS, BATCH, SEED = 10.0, 1, 64, 0
WIDTH, LAYERS, SAMPLES = 4096, 3, 360


def mlp(width: int, rng: np.random.Generator) -> Network:
    """Square layers; between them sums come down to 3 bits by one shift."""
    shift = int(np.ceil(np.log2(width))) + 1
    nodes: list[Node] = []
    for index in range(1, LAYERS + 1):
        nodes.append(Node(f"fc{index}", Linear(rng.integers(-4, 4, (width, width)))))
        if index < LAYERS:
            codes = IntFormat(3, signed=False)
            nodes.append(Node(f"act{index}", Requantize.from_shift(shift, codes, "half_up")))
    return Network(nodes, input_shape=(width,), input_format=IntFormat(3, signed=False))


def wide(width: int) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    network = mlp(width, rng)
    start = time.perf_counter()
    certificate = certify(network)
    taken = time.perf_counter() - start
    codes = rng.integers(0, 8, (BATCH, width))
    forward = float(seconds(lambda: network.forward(codes))[0])
    widths = {name: layer.signed_bits for name, layer in certificate.layers.items()}
    return {"width": width, "seconds": taken, "forward_s": forward, "signed_bits": widths}


def classes(samples: int, session: Session) -> dict[str, Any]:
    found = trained("digits w3a3")
    ends: Counter[str] = Counter()
    taken: list[float] = []
    for index, codes in enumerate(found.codes[:samples]):
        start = time.perf_counter()
        verdict = certify_class(found.network, codes, RADIUS, budget_s=BUDGET_S)
        taken.append(time.perf_counter() - start)
        changed = verdict.witness is not None
        ends["proved" if verdict.proved else "changed" if changed else "unknown"] += 1
        if not index % 10:
            session.say(f"{index}: {dict(ends)}, {taken[-1]:.2f} s")
    decided = (ends["proved"] + ends["changed"]) / len(taken)
    return {
        "samples": len(taken),
        **ends,
        "decided": decided,
        "median_s": float(np.median(taken)),
        "longest_s": max(taken),
    }


def main() -> None:
    quick = "512 wide, 8 samples, nothing written"
    session = Session("proofs", __doc__, quick, ("wide", "classes"))
    done: dict[str, Any] = {}
    if "wide" in session.parts:
        done["wide"] = wide(512 if session.quick else WIDTH)
        session.say(str(done["wide"]))
    if "classes" in session.parts:
        done["classes"] = classes(8 if session.quick else SAMPLES, session)
        session.say(str(done["classes"]))
    if not session.quick:
        session.write({**session.written(), **done})


if __name__ == "__main__":
    main()
