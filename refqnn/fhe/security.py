"""What a circuit keeps secret, from whom, and what it does not; the whole of it is in refqnn.fhe.

A failed decryption tells whoever learns of it something about the secret key (the attacks on
IND-CPA-D of ePrint 2024/116 and 2024/127), so that the probability of one is part of the security.
"""

from __future__ import annotations

from math import log2

from refqnn.errors import InvalidArgument, mismatch
from refqnn.fhe.lowering import Lowered

__all__ = ["FAILURE", "LEVELS", "MODELS", "refuse_seeds", "reveals", "security_of"]

# By notion of security, the probability, at most, that an inference fails: what TFHE-rs asks for.
FAILURE = {"ind-cpa-d": 2.0**-128, "ind-cpa": 2.0**-64}
LEVELS = (128, 132)  # bits: what the optimizer of concrete-python 2.11 has curves for
MODELS = ("secret", "public")

_SOLVABLE = (
    "every coefficient between the levels and codes that are sent and each output, from one answer "
    "(two where lookups are added to them): ciphertexts obey the same equations modulo 2**64"
)

_GUESSES = (
    "whether a guess of the weights is right, from evaluation keys, a request and its answer: "
    "evaluation is deterministic, not circuit-private, and what each neuron may be is tried apart"
)
_RELATIONS = (
    "{} linear relations between the {} integers of an answer, modulo powers of two, from one "
    "answer: where these outnumber the lookups that they sum, most of the last layer's weights"
)


def security_of(global_p_error: float) -> str:
    """What a probability of failure allows to be done with decrypted results."""
    told = f"an inference fails with probability 2**{log2(global_p_error):.0f} at most"
    if global_p_error <= FAILURE["ind-cpa-d"]:
        return f"ind-cpa-d: {told}; decrypted results may become known"
    if global_p_error <= FAILURE["ind-cpa"]:
        return f"ind-cpa: {told}; nobody but the client may learn decrypted results"
    return f"below ind-cpa: {told}; nobody may learn of results, nor that one was wrong"


def refuse_seeds(**seeds: object) -> None:
    """Raises: InvalidArgument where one is given: whoever knows it has the keys or the plaintexts.

    Nor would it make the same keys again in Concrete 2.11.
    """
    for name, seed in seeds.items():
        if seed is not None:
            expected = "None: keys and noise come from the system's randomness"
            raise InvalidArgument(mismatch(name, "a seed", expected))


def reveals(lowered: Lowered) -> dict[str, list[str]]:
    """By party, what it can compute that it was not given: see `refqnn.fhe.Circuit.reveals`."""
    parts = lowered.output_parts
    sums = f", and the {parts} sums that make each of them" if parts > 1 else ""
    client = [
        f"the outputs of all inputs it asks for{sums}: with enough of them a model like this one",
        "the least and the greatest value of each output, and the common divisor of its steps",
    ]
    if len(lowered.read_alone):
        client.append(f"which {len(lowered.read_alone)} inputs some neuron reads alone")
    both = [_GUESSES]
    if lowered.program.linear_in_input:
        both.append(_SOLVABLE)
    elif dependent := lowered.program.dependent():
        both.append(_RELATIONS.format(dependent, lowered.output_top.size))
    reader = ["who asks, when, how often, the sizes of messages and the circuit's name"]
    server = ["as a passive reader; the weights are its own; nothing of inputs or outputs"]
    return {"client": client + both, "server": server, "passive reader": reader + both}
