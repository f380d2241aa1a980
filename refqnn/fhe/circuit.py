"""A compiled circuit: simulate, make keys, encrypt, run, decrypt."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from math import prod
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from concrete import fhe
from numpy.typing import ArrayLike, NDArray

from refqnn.accumulator import Certificate, certify
from refqnn.accumulator.arguments import the_network
from refqnn.display import html_table, text_table
from refqnn.errors import CircuitError, InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.fhe import backend, prices
from refqnn.fhe.batch import run_all
from refqnn.fhe.interrupts import held_back
from refqnn.fhe.lowering import Choose, Layer, Lowered, lower, lowerings, proved_ranges
from refqnn.fhe.memory import (
    KeySizes,
    available_memory,
    ciphertext_bytes,
    kept_between_runs,
    key_sizes,
    require_memory,
)
from refqnn.fhe.parties import LIBRARY, Halves, OnSample, as_teller, save_client, save_server
from refqnn.fhe.program import MatMul, Program
from refqnn.fhe.security import FAILURE, LEVELS, MODELS, refuse_seeds, reveals, security_of
from refqnn.fhe.tables import Lowering
from refqnn.formats import as_array, as_truth, is_integer
from refqnn.network import Network
from refqnn.ops import Interval
from refqnn.simplify import simplify

__all__ = ["Circuit", "compile"]

PARAMETERS = ("multi", "mono")

_LINEAR = (
    "model: got 'secret', but an output is a sum of ciphertexts that the client sends, and one "
    "answer would give its weights away; put an activation before the last layer, or compile with "
    "model='public'"
)
# Over how many (parts, digits) the last sums are shared out, fewest sums first.
_SHARED_OUT = ((1, 2), (2, 1), (2, 2), (4, 1), (3, 2), (2, 3), (4, 2), (8, 1), (16, 1), (32, 1))
_WIDE_OUTPUT = 7  # bits; narrower outputs cost no table anything
_LEAST_ERROR = 2.0**-256  # of a lookup

_MOST_IN_BATCH = 64
_COPIES = 4  # of each value that is looked up: as it enters, keyswitched, looked up, summed


def compile(
    network: Network,
    *,
    security: str = "ind-cpa-d",
    security_level: int = 128,
    model: str = "secret",
    certificate: Certificate | None = None,
    p_error: float | None = None,
    global_p_error: float | None = None,
    parameters: str = "multi",
    compress_keys: bool = True,
    input_levels: bool = True,
    trials: int = 0,
    choose: Choose | None = None,
    **options: Any,
) -> Circuit:
    """Lower a network and compile it.  No samples are needed: every width is proved.

    Args:
        security: "ind-cpa-d": an inference fails with probability 2**-128 at most, so that
            decrypted results may become known; "ind-cpa": 2**-64, for results that the client
            alone ever learns.  See refqnn.fhe.
        security_level: bits, 128 or 132, as the compiler's optimizer estimates them.
        model: "secret": no output is a sum of ciphertexts that the client sent, which would give
            its coefficients away with one answer.  "public": such sums are allowed, and need no
            lookup; `Circuit.reveals` says what they tell.
        certificate: of this network, for its whole input format; its ranges may be tighter than the
            intervals that are used without it.
        p_error: for experts, in place of `security`: probability, at most, that one table lookup
            gives a wrong result.
        global_p_error: likewise, that one inference does.  Above 2**-64 each wrong result that
            anybody learns of tells something about the secret key.
            An inference of n lookups and m outputs fails only if one of them does, so with
            p_error = global_p_error / (n + m) the union bound holds whatever their dependence.
        parameters: "multi" (one set of cryptographic parameters per width) or "mono" (one set:
            smaller keys, slower lookups).
        compress_keys: evaluation keys travel four to seven times smaller, and the first run unpacks
            them (one to three seconds).
        input_levels: in a public model neurons that depend on one input need no lookup: the client
            sends which levels each such input reaches, too, one more ciphertext for each level.  At
            most 4096.
        trials: how many further alternatives to compile, one second each; the circuit of the least
            predicted work is kept.  Without them the prices of refqnn.fhe.prices decide.
        choose: called with (node name, alternatives, cheapest first) for each layer of tables;
            returns the one to use.
        options: further fields of Concrete's Configuration, those that change no integer
            (`refqnn.fhe.backend.OPTIONS`).

    Raises: InvalidArgument; CircuitError where a width has no parameters, and for a secret model
        with an output that no lookup stands before; NotCovered for a node without an encrypted
        form; CertificateError for a certificate of another network or of a part of its inputs.
    """
    the_network(network)
    asked: dict[str, object] = {"p_error": p_error, "global_p_error": global_p_error}
    for name, value in asked.items():
        # An integer beyond the floats is compared before it would be converted.
        number = (
            isinstance(value, Real)
            and not value <= 0
            and value < 1
            and float(value) >= _LEAST_ERROR
        )
        if value is not None and not number:
            expected = "between 2**-256 and 1, or None: results are exact without a search"
            raise InvalidArgument(mismatch(name, repr(value), expected))
    choices: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("parameters", parameters, PARAMETERS),
        ("security", security, tuple(FAILURE)),
        ("security_level", security_level, LEVELS),
        ("model", model, MODELS),
    )
    for name, choice, known in choices:
        if not isinstance(choice, (str, int, np.integer)) or choice not in known:
            raise InvalidArgument(mismatch(name, repr(choice), f"one of {known}"))
    compress_keys = as_truth(compress_keys, "compress_keys")
    input_levels = as_truth(input_levels, "input_levels") and model == "public"
    if not is_integer(trials) or trials < 0:
        raise InvalidArgument(mismatch("trials", repr(trials), "an integer >= 0"))
    for name in options:
        if name not in backend.OPTIONS:
            expected = backend.NEEDLESS.get(name, f"one of {backend.OPTIONS}")
            raise InvalidArgument(mismatch("option", repr(name), expected))
    try:
        fhe.Configuration(**options)
    except TypeError as error:
        raise InvalidType(f"options: {error}") from error
    if p_error is None and global_p_error is None:
        global_p_error = FAILURE[security]

    def compiled(lowered: Lowered) -> Circuit:
        if model == "secret" and lowered.program.linear_in_input:
            raise CircuitError(_LINEAR)
        per_event = None if global_p_error is None else global_p_error / lowered.events

        def build(program: Program) -> fhe.Circuit:
            return backend.compiled(
                program,
                p_error=min(p for p in (p_error, per_event) if p is not None),
                global_p_error=1.0,
                security_level=security_level,
                parameter_selection_strategy=parameters,
                compress_evaluation_keys=compress_keys,
                compress_input_ciphertexts=True,
                **options,
            )

        try:
            circuit = build(lowered.program)
        except RuntimeError as error:
            if "NoParametersFound" not in str(error):
                raise
            raise CircuitError(_no_parameters(lowered)) from error
        return Circuit(network, lowered, circuit, build)

    smallest = _smallest(network, certificate, input_levels)
    lowered_as = partial(lowerings, *smallest, input_levels=input_levels)

    def attempt(pick: Choose | None) -> Circuit:
        return compiled(lowered_as(pick)(1, 1))

    def with_narrow_output(best: Circuit, pick: Choose | None) -> Circuit:
        for shared in _narrower(best.lowered, lowered_as(pick), secret=model == "secret"):
            if best.lowered.output_bits < _WIDE_OUTPUT:
                break
            best = min(best, compiled(shared), key=lambda circuit: circuit.work)
        return best

    if choose is not None:
        return with_narrow_output(attempt(choose), choose)
    menu: dict[str, list[Lowering]] = {}

    def cheapest(name: str, found: list[Lowering]) -> Lowering:
        menu[name] = found
        return found[0]

    pick: Choose | None = None
    best = attempt(pick)
    if len(lowered_as(cheapest)(1, 1).layers) < len(best.layers):
        uniform = attempt(cheapest)
        if uniform.work < best.work:
            best, pick = uniform, cheapest
    forms = [(best, pick)]
    if trials:
        forms.append(_tried(best, pick, menu, trials, attempt))
    return min((with_narrow_output(*form) for form in forms), key=lambda c: c.work)


def _smallest(
    network: Network, certificate: Certificate | None, input_levels: bool
) -> tuple[Network, dict[str, Interval]]:
    """The network, or its simplified form where that is cheaper, and the proved ranges."""
    ranges = proved_ranges(network, certificate)
    known = certificate if certificate is not None else certify(network, method="interval")
    simplified = simplify(network, known)
    if simplified.shapes == network.shapes:
        return network, ranges
    forms = [(network, ranges), (simplified, proved_ranges(simplified))]
    lowered = [lower(*form, input_levels=input_levels) for form in forms]
    prices_ = [sum(layer.price for layer in form.layers) for form in lowered]
    return forms[int(np.argmin(prices_))]


def _tried(
    best: Circuit,
    best_pick: Choose | None,
    menu: dict[str, list[Lowering]],
    trials: int,
    attempt: Callable[[Choose], Circuit],
) -> tuple[Circuit, Choose | None]:
    """Change one layer at a time, the cheapest changes first; keep what lowers the work."""
    taken = {name: found[0] for name, found in menu.items()}
    changes = [
        (other.price - found[0].price, name, other)
        for name, found in menu.items()
        for other in found[1:]
    ]
    for _, name, other in sorted(changes, key=lambda change: change[0])[:trials]:
        changed = {**taken, name: other}

        def pick(
            layer: str, found: list[Lowering], changed: dict[str, Lowering] = changed
        ) -> Lowering:
            return changed[layer]

        try:
            circuit = attempt(pick)
        except CircuitError:
            continue
        if circuit.work < best.work:
            best, best_pick, taken = circuit, pick, changed
    return best, best_pick


def _narrower(
    whole: Lowered, shared_out: Callable[[int, int], Lowered], *, secret: bool
) -> Iterator[Lowered]:
    """The last sums shared out over more and more sums that ask the tables for less.

    The noise that a lookup may leave is set by the widest sum that its result enters, and the last
    layer has the widest of all.  A secret model's integers are no more dependent than its outputs.
    """
    if not whole.layers:
        return
    asked = _asked(whole)
    dependent = whole.program.dependent() if secret else 0
    for parts, digits in _SHARED_OUT:
        shared = shared_out(parts, digits)
        if shared.output_parts == 1:
            return
        less = _asked(shared)
        if shared.output_parts != parts * digits or 1.4 * less >= asked:
            continue
        if not secret or shared.program.dependent() <= dependent:
            asked = less
            yield shared


def _asked(lowered: Lowered) -> float:
    """How accurate lookups have to be: the widest output times the norm of the weights in a sum."""
    sums = [step.weight for step in lowered.program.steps if isinstance(step, MatMul)]
    return float(2**lowered.output_bits * np.linalg.norm(sums[-1], axis=0).max()) if sums else 1.0


def _no_parameters(lowered: Lowered) -> str:
    widest = max(lowered.layers, key=lambda layer: layer.bits - layer.shift, default=None)
    text = "no cryptographic parameters serve this circuit: "
    if widest is None or lowered.output_bits > widest.bits:
        text += f"its output has {lowered.output_bits} bits; train with narrower weights"
    else:
        text += (
            f"the table behind {widest.name!r} takes {widest.bits - widest.shift} bits of "
            f"{widest.bits}-bit accumulators; {_hint(widest)}"
        )
    return text + ", or allow a larger p_error"


class Circuit:
    """A network that runs encrypted.  Made by `refqnn.fhe.compile`.

    Attributes:
        network: what it computes.
        lowered: how its integers stand for the network's.
        layers: what each layer of lookups costs.
    """

    def __init__(
        self,
        network: Network,
        lowered: Lowered,
        concrete: fhe.Circuit,
        build: Callable[[Program], fhe.Circuit],
    ) -> None:
        self.network = network
        self.lowered = lowered
        self.layers: list[Layer] = lowered.layers
        self._concrete = concrete
        self._build = build
        self._of_batches: dict[int, fhe.Circuit] = {}  # with keys of their own
        self._salt = secrets.token_hex(16)  # nobody but the server may recompute its identity

    def __repr__(self) -> str:
        return f"<Circuit of {self.network!r}>"

    # --- integers in, integers out ------------------------------------------------------------

    def simulate(self, codes: ArrayLike) -> NDArray[np.int64]:
        """Outputs [n, *output_shape] of codes [n, *input_shape], computed in clear by the circuit.

        The circuit's own modular arithmetic and the noise of its parameters, without keys.

        Raises: as `Network.forward` for codes outside the declared format.
        """
        arguments = self._arguments(codes)
        with held_back():
            results = [self._concrete.simulate(x) for x in arguments]
        return self._results(results)

    def keygen(self, force: bool = False, seed: None = None, encryption_seed: None = None) -> float:
        """Make keys unless there are some; returns the seconds it took.

        Args:
            force: make new ones all the same.
            seed, encryption_seed: None alone; whoever knows a seed has the keys.

        Raises: InvalidArgument for a seed; CircuitError when the keys would not fit into the memory
            that is left.
        """
        refuse_seeds(seed=seed, encryption_seed=encryption_seed)
        if as_truth(force, "force") or not self._concrete.keys.are_generated:
            require_memory(self.key_sizes.resident, "the keys")
        start = time.perf_counter()
        with held_back():
            self._concrete.keygen(force=force)
        return time.perf_counter() - start

    def encrypt(self, codes: ArrayLike) -> fhe.Value:
        """The ciphertext of one sample [*input_shape].

        Raises: InvalidType, ShapeMismatch; OutOfRange for codes outside the declared format, before
            anything is encrypted.
        """
        array = as_array(codes, "codes", "integers")
        if array.shape == (1, *self.network.input_shape):  # a table of one row
            array = array[0]
        if array.shape != self.network.input_shape:
            expected = f"one sample of shape {self.network.input_shape}"
            raise ShapeMismatch(mismatch("codes", f"shape {array.shape}", expected))
        (argument,) = self._arguments(array[None])
        with held_back():
            return self._concrete.encrypt(argument)

    def run(self, ciphertext: fhe.Value) -> fhe.Value:
        """The encrypted output of an encrypted sample; uses the evaluation keys alone.

        Its low bits tell of the weights: what `Server.run` answers is without them.

        Raises: InvalidType, CircuitError for anything but a ciphertext that `encrypt` gave.
        """
        with _ciphertext("ciphertext", ciphertext), kept_between_runs(self.key_sizes.bootstrap):
            return self._concrete.run(ciphertext)

    def decrypt(self, result: fhe.Value) -> NDArray[np.int64]:
        """The output [*output_shape] of one sample.

        Raises: InvalidType, CircuitError for anything but a ciphertext that `run` gave, and for
            integers that the circuit cannot give (a result under other keys).
        """
        with _ciphertext("result", result):
            decrypted = np.asarray(self._concrete.decrypt(result))
        self.lowered.require(decrypted)
        return self._results([decrypted])[0]

    def execute(
        self,
        codes: ArrayLike,
        *,
        n_jobs: int | None = None,
        batch: int | Literal["memory"] = 1,
        on_sample: OnSample | None = None,
    ) -> NDArray[np.int64]:
        """Outputs [n, *output_shape] of codes [n, *input_shape], really encrypted.

        Args:
            batch: how many samples one tensor holds: more take longer together and less each.  The
                circuit of such a tensor is compiled when it is first used, and has keys of its own.
                "memory": as many as memory holds, 64 at most.
            n_jobs: None runs here, one sample after the other, each on all cores.  A number runs
                samples in that many joblib workers: processes of this machine, or, inside
                `joblib.parallel_config(backend="dask")`, of a cluster.  The order is kept, failed
                samples are run again, secret keys stay here.
            on_sample: called with a short text after each sample, or batch.

        Raises: as `Network.forward` for codes outside the declared format; CircuitError for a
            sample that keeps failing, or keys that memory does not hold; InvalidArgument.
        """
        by_memory = isinstance(batch, str) and batch == "memory"
        if not by_memory and not (is_integer(batch) and batch >= 1):
            raise InvalidArgument(mismatch("batch", repr(batch), "an integer >= 1, or 'memory'"))
        if n_jobs is not None and (not is_integer(n_jobs) or n_jobs == 0):
            expected = "an integer other than 0, as joblib takes it, or None"
            raise InvalidArgument(mismatch("n_jobs", repr(n_jobs), expected))
        if n_jobs is not None and batch != 1:
            raise InvalidArgument(mismatch("batch", repr(batch), "1 where n_jobs is given"))
        arguments, tell = self._arguments(codes), as_teller(on_sample)
        if n_jobs is not None:
            return self._execute_on_workers(arguments, n_jobs, tell)
        if batch != 1 and len(arguments):
            return self._execute_in_batches(arguments, batch, tell)
        outputs = []
        for argument in arguments:
            start = time.perf_counter()
            with held_back():
                result = self.run(self._concrete.encrypt(argument))
                outputs.append(self._concrete.decrypt(result))
            tell(f"{time.perf_counter() - start:.2f} s")
        return self._results(outputs)

    def _execute_in_batches(
        self, arguments: NDArray[np.int64], batch: int | str, tell: OnSample
    ) -> NDArray[np.int64]:
        if isinstance(batch, str):
            batch = min(len(arguments), self._held_in_memory())
        if batch not in self._of_batches:
            self._of_batches[batch] = self._build(self.lowered.program.batched(batch))
        circuit = self._of_batches[batch]
        if not circuit.keys.are_generated:
            require_memory(self.key_sizes.resident, "the keys")
        outputs: list[NDArray[np.int64]] = []
        for start in range(0, len(arguments), batch):
            part = arguments[start : start + batch]
            whole = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
            argument = np.ascontiguousarray(np.moveaxis(whole, 0, -1))
            begun = time.perf_counter()
            with held_back(), kept_between_runs(self.key_sizes.bootstrap):
                result = circuit.run(circuit.encrypt(argument))
                decrypted = np.asarray(circuit.decrypt(result))
            outputs += list(np.moveaxis(decrypted, -1, 0)[: len(part)])
            tell(f"{len(part)} samples, {time.perf_counter() - begun:.2f} s")
        return self._results(outputs)

    def _held_in_memory(self) -> int:
        """How many samples' ciphertexts fit beside the keys, from 1 to 64."""
        values = prod(self.lowered.program.input_shape) + self.lowered.output_top.size
        values += _COPIES * sum(sum(layer.lookups.values()) for layer in self.layers)
        room = available_memory()
        if room is None:
            return 1
        each = values * ciphertext_bytes(self._parameters)
        return int(np.clip((room - self.key_sizes.resident) // each, 1, _MOST_IN_BATCH))

    def _execute_on_workers(
        self, arguments: NDArray[np.int64], n_jobs: int, tell: OnSample
    ) -> NDArray[np.int64]:
        self.keygen()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "server")
            self.save_server(file)
            server_file = file.read_bytes()
        keys = self._concrete.client.evaluation_keys.serialize()
        with held_back():
            requests = [self._concrete.encrypt(x).serialize() for x in arguments]
        memory = self.key_sizes.resident
        answers = run_all(server_file, keys, requests, n_jobs, tell, memory)
        values = [fhe.Value.deserialize(answer) for answer in answers]
        with held_back():
            return self._results([self._concrete.decrypt(value) for value in values])

    # --- files --------------------------------------------------------------------------------

    def save_client(self, path: str | Path) -> None:
        """Write what a client needs: the doors, the encryption parameters, the range of each
        output, and which inputs some neuron reads alone; no weight, no key."""
        save_client(self._files(), path)

    def save_server(self, path: str | Path) -> None:
        """Write what a server needs: the compiled circuit, no key."""
        save_server(self._files(), path)

    def _files(self) -> Halves:
        # Compiled circuits live in a temporary folder of Concrete's library object.
        folder = self._concrete.server._library.get_output_dir_path()
        library = {name: Path(folder, name).read_bytes() for name in LIBRARY}
        return Halves(self.network, self.lowered, self._parameters, library, self._salt)

    @property
    def _parameters(self) -> bytes:
        """The encryption parameters, serialized."""
        return bytes(self._concrete.client.specs.program_info.serialize())

    def _arguments(self, codes: ArrayLike) -> NDArray[np.int64]:
        """Checked codes as the circuit's unsigned integers [n, *program.input_shape]."""
        return self.lowered.arguments(self.network.check_codes(codes))

    def _results(self, results: list[Any]) -> NDArray[np.int64]:
        """The network's integers [n, *output_shape] from what the circuit gave."""
        return np.stack([self.lowered.outputs(np.asarray(r)) for r in results])

    # --- what it costs ------------------------------------------------------------------------

    @property
    def pbs(self) -> dict[int, int]:
        """Table lookups (programmable bootstraps) per sample, by the width they look up."""
        return prices.merged(*(layer.lookups for layer in self.layers))

    @property
    def complexity(self) -> float:
        """The cost of one inference in the units of the compiler's optimizer."""
        return float(self._concrete.complexity)

    @property
    def work(self) -> float:
        """Predicted cost of one inference, in operations; see refqnn.fhe.prices."""
        removed_bits = sum(layer.removed_bits for layer in self.layers)
        inputs = prod(self.lowered.program.input_shape)
        return prices.work(self.complexity, self.key_sizes.bootstrap, removed_bits, inputs)

    @property
    def p_error(self) -> float:
        """Probability that one lookup fails, at most."""
        return float(self._concrete.p_error)

    @property
    def global_p_error(self) -> float:
        """Probability that one inference fails, at most: the union bound over its events."""
        return min(1.0, self.p_error * self.lowered.events)

    @property
    def compiled_pbs(self) -> int:
        """Table lookups per sample as the compiler counts them."""
        return int(self._concrete.programmable_bootstrap_count)

    @cached_property
    def key_sizes(self) -> KeySizes:
        """Sizes of the evaluation keys, known before they are made."""
        return key_sizes(self._parameters)

    @property
    def evaluation_key_bytes(self) -> int:
        """Size of the evaluation keys as they travel to a server."""
        return self.key_sizes.travelling

    def reveals(self) -> dict[str, list[str]]:
        """What the client, the server and a passive reader of all messages can compute of what
        they were not given; the threat model is in refqnn.fhe."""
        return reveals(self.lowered)

    def explain(self) -> str:
        """Per layer: widths, bits removed, lookups by width, share of the cost, what would help;
        then the security, and what is revealed to whom."""
        told = [f"{who} can tell: {what}" for who, all_ in self.reveals().items() for what in all_]
        lines = [text_table("", self.table()), security_of(self.global_p_error), *told]
        return "\n".join(lines)

    def table(self) -> list[dict[str, object]]:
        """The layers of `explain` as rows of {column: value}."""
        total = sum(layer.price for layer in self.layers) or 1.0
        rows: list[dict[str, object]] = [
            {
                "layer": layer.name,
                "values": layer.neurons,
                "span": f"{layer.span_bits} bits",
                "width": f"{layer.bits} bits",
                "removed": f"{layer.shift} ({layer.method})",
                "lookups": ", ".join(f"{n} of {bits} bits" for bits, n in layer.lookups.items()),
                "share": f"{layer.price / total:.0%}",
                "hint": _hint(layer),
            }
            for layer in self.layers
        ]
        none: dict[str, object] = dict.fromkeys(_COLUMNS) | {"lookups": "none"}
        for name, count in self.lowered.without_lookup.items():
            levels = len(self.lowered.read_alone) * (self.lowered.input_format.levels - 1)
            hint = f"each reads one input: sums of {levels} levels that the client sends"
            rows.append(none | {"layer": name, "values": count, "hint": hint})
        width = f"{self.lowered.output_bits} bits"
        return [*rows, none | {"layer": "output", "width": width}]

    def _repr_html_(self) -> str:
        told = ({"who": who, "what": what} for who, all_ in self.reveals().items() for what in all_)
        lookups = html_table("Lookups by layer", self.table())
        return lookups + html_table(security_of(self.global_p_error), told)

    def __reduce__(self) -> tuple[object, ...]:
        """Raises: InvalidType; a circuit is machine code, and may hold secret keys."""
        raise InvalidType(
            "pickle: got a Circuit, expected its network, which compiles again anywhere; "
            "save_client and save_server write what a client and a server need"
        )


@contextmanager
def _ciphertext(name: str, value: object) -> Iterator[None]:
    """Inside, Concrete is handed this.  Raises: InvalidType, CircuitError where it refuses it."""
    if not isinstance(value, fhe.Value):
        raise InvalidType(mismatch(name, type(value).__name__, "a ciphertext of this circuit"))
    try:
        with held_back():
            yield
    except RuntimeError as error:
        raise CircuitError(
            mismatch(name, "another ciphertext", f"one of this step: {error}")
        ) from error


_COLUMNS = ("layer", "values", "span", "width", "removed", "lookups", "share", "hint")


def _hint(layer: Layer) -> str:
    """What would make a layer cheaper."""
    kept = layer.bits - layer.shift
    if layer.method == "max":
        return "fewer code bits make each maximum narrower"
    if layer.method == "carry":
        return "thresholds a power of two apart (power-of-two scales, half_up) need one table"
    if layer.method == "window":
        return "codes that use the whole accumulator (larger scales) need no test for saturation"
    if layer.method == "split":
        return "rounding half_up instead of half_even needs one table instead of several"
    if layer.shift == 0 and kept > 4:
        return "thresholds a power of two apart would let low bits be removed"
    if layer.shift:
        return f"train the accumulators into {kept} bits: no bit to remove"
    return "narrow already: fewer neurons, or neurons of one input (fan_in=1)"
