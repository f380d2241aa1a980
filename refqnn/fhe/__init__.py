"""Encrypted inference: a Network as a circuit of Concrete, with the same integers.

    circuit = refqnn.fhe.compile(network)
    circuit.keygen()
    acc = circuit.execute(codes)        # equals network.forward(codes)

Needs the `fhe` extra.  `Client` and `Server` load Concrete's runtime alone, without torch.
"""

import atexit
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from refqnn.errors import MissingExtra

if TYPE_CHECKING:
    from refqnn.fhe.circuit import Circuit, compile
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
