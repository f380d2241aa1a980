"""Encrypted inference: a Network as a circuit of Concrete, with the same integers.

    circuit = refqnn.fhe.compile(network)
    circuit.keygen()
    acc = circuit.execute(codes)        # equals network.forward(codes)

Needs the `fhe` extra.  `Client` and `Server` load Concrete's runtime alone, without torch.

**Threat model**

Who holds what.  The client holds inputs, results and the secret keys.  The server holds the network
(weights, as machine code), evaluation keys and ciphertexts.  A passive reader sees all requests,
evaluation keys and answers, and no file of either side.

What is kept.  Inputs and results from the server and from readers: ciphertexts are LWE with binary
secrets at 128 or 132 bits (`security_level`), as the optimizer of concrete-python 2.11 estimates
them; nobody here has estimated them anew.  The weights from client and readers, in a secret model,
as far as said below.  Server and client are honest but curious: they follow the protocol and
compute what they can.

What decrypted results may be used for.  A wrong decryption tells whoever learns of it something
about the secret key (attacks on IND-CPA-D: ePrint 2024/116, 2024/127).  The probability that an
inference gives one, over all lookups and outputs, is what `security` chooses:

    ind-cpa-d   2**-128 (default)   results may become known, to the server too
    ind-cpa     2**-64              results, and whether they were right, stay with the client

`global_p_error` and `p_error` are for experiments: above 2**-64 a few million inferences are
expected to show failures, and each known failure is information on the key.

A secret model (`model="secret"`, default).  No output is a sum of ciphertexts that the client sent:
every path passes a lookup, which makes a ciphertext anew.  Without one, request and answer obey the
same linear equations modulo 2**64, and whoever reads both solves for every coefficient, without a
key.  A network with such an output is refused: if its weights may be known, say so with
`model="public"`, which also lets neurons of one input be sums of levels that the client sends.
`Circuit.reveals` lists what each party can compute.

The masks of its answer.  They are Y = W X modulo 2**64, X those of the lookups, W the last layer.
Where X is uniform, Y tells the span of W's columns modulo powers of two and no more: nothing at all
where W has an odd minor of as many rows as there are integers.  `compile` shares outputs out over
more sums as long as these stay so independent.  But X is uniform in its high bits alone: it comes
out of a transform in floats, its low bits are zeros with few exceptions, and there an exception
shows its column of W.  `Server` therefore answers with the high 32 bits of each word
(`refqnn.fhe.messages`); what `Circuit.run` returns is whole, and not for others to see.

What is *not* protected:

    integrity         a server may answer anything; a client refuses what its outputs cannot be,
                      answers under other keys, and answers to other requests, by name
    circuit privacy   in the formal sense: masks and noise of an answer depend on the weights.  It
                      would take answers made anew by the server, with an encryption of zero under
                      noise that floods what is there, or a sanitizing bootstrap; Concrete offers
                      neither.  Evaluation is deterministic, so that whoever has evaluation keys, a
                      request and its answer, a passive reader too, can test a guess of the weights.
                      Answers are sums of lookups: elimination finds the neurons among all that they
                      may be, one layer deep, so the work is the number of possible neurons, not of
                      networks.  A neuron of few inputs with narrow weights is no secret
    the last layer    where the integers of an answer depend on each other, as they must if they
                      outnumber the lookups that they sum.  Masks obey the relations of its weights,
                      and one answer tells them, without a key; reveals says how many there are.
                      A client also sees the sums that an output is shared out over (explain says
                      how many): groups of neurons, and digits of their weights
    the function      a client that asks often enough can train a model like this one
    traffic           who asks, when, how often, sizes, and times: code on ciphertexts does not
                      branch on values, but nothing else is hidden
    the client file   holds the range and step of each output, input and output scales and the
                      parameters (widths): a guess of these can be confirmed, the weights cannot
    files' makers     a server file is machine code; a client file chooses the parameters
    memory            keys are not erased when a process ends

Files and messages are checked before they are used (refqnn.fhe.files, refqnn.fhe.messages); what is
relied on in Concrete is listed, with its tests, in refqnn.fhe.backend.
"""

import atexit
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from refqnn.errors import MissingExtra

if TYPE_CHECKING:
    from refqnn.fhe.circuit import Circuit, compile
    from refqnn.fhe.deployment import FHEModelClient, FHEModelDev, FHEModelServer
    from refqnn.fhe.estimation import Estimate, estimate
    from refqnn.fhe.lowering import Layer, Lowered, lower, proved_ranges
    from refqnn.fhe.parties import Client, Server
    from refqnn.fhe.tables import Lowering

try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        import concrete.compiler
except ImportError as error:  # pragma: no cover
    raise MissingExtra("fhe", "concrete-python") from error

# At the end of a process that has computed anything, this handler of Concrete's calls exit(0): a
# program that failed, a test run too, would report success.  Nothing else depends on it.
atexit.unregister(concrete.compiler._terminate_df_parallelization)

_HOMES = {
    "Circuit": "circuit",
    "Client": "parties",
    "Estimate": "estimation",
    "FHEModelClient": "deployment",
    "FHEModelDev": "deployment",
    "FHEModelServer": "deployment",
    "Layer": "lowering",
    "Lowered": "lowering",
    "Lowering": "tables",
    "Server": "parties",
    "compile": "circuit",
    "estimate": "estimation",
    "lower": "lowering",
    "proved_ranges": "lowering",
}

__all__ = [
    "Circuit",
    "Client",
    "Estimate",
    "FHEModelClient",
    "FHEModelDev",
    "FHEModelServer",
    "Layer",
    "Lowered",
    "Lowering",
    "Server",
    "compile",
    "estimate",
    "lower",
    "proved_ranges",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"refqnn.fhe.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'refqnn.fhe' has no attribute {name!r}")
