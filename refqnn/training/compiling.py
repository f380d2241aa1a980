"""What Concrete ML's ``compile`` is called with, as options of `refqnn.fhe.compile`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from refqnn.errors import InvalidArgument, InvalidType, mismatch

if TYPE_CHECKING:
    from concrete.fhe import Configuration

__all__ = ["circuit_options"]

_REFUSED = {
    "artifacts": "None: the circuit's explain() tells what was compiled",
    "device": "'cpu'",
    "n_bits": "none: bits are those of training, n_w_bits and n_a_bits",
    "rounding_threshold_bits": "none: each accumulator loses as many low bits as change no code",
}
# Of a Configuration: what every circuit has, and what has another name here.
_FIXED = {"compress_input_ciphertexts": True, "dump_artifacts_on_unexpected_failures": False}
_OURS = {"compress_evaluation_keys": "compress_keys", "parameter_selection_strategy": "parameters"}


def circuit_options(
    configuration: Configuration | None, options: Mapping[str, object]
) -> dict[str, object]:
    """Options of `refqnn.fhe.compile`; from a Configuration those that differ from its defaults.

    Raises: InvalidType; InvalidArgument that names every option which has no meaning here.
    """
    from concrete.fhe import Configuration

    from refqnn.fhe import compile
    from refqnn.fhe.backend import OPTIONS

    found: dict[str, object] = {}
    if configuration is not None:
        if not isinstance(configuration, Configuration):
            got = type(configuration).__name__
            raise InvalidType(mismatch("configuration", got, "a Configuration of Concrete"))
        usual = vars(Configuration())
        for name, value in vars(configuration).items():
            if value != usual[name] and value is not _FIXED.get(name):
                found[_OURS.get(name, name)] = getattr(value, "value", value)
    found.update(options)
    known = {*inspect.signature(compile).parameters, *OPTIONS} - {"network", "options"}
    wrong = [
        mismatch(name, repr(value), _REFUSED.get(name, "one of " + ", ".join(sorted(known))))
        for name, value in found.items()
        if name not in known
    ]
    if wrong:
        raise InvalidArgument("; ".join(wrong))
    return found
