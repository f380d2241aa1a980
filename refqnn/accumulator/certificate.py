"""Certificate: for every value of a network, bounds that hold for every input of a domain.

Each bound carries how it was proved and what is known of its tightness:

    exact      an input of the domain reaches it
    upper      proved to hold; whether an input reaches it was not asked
    unknown    proved to hold; a tighter bound was searched for and the time ran out

All three are sound.  `certify` makes certificates and holds each against the network before it is
returned; `Certificate.verify` rechecks one with other code; `check_usable` is what everything asks
that is about to rely on one.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.accumulator.arguments import generator_seed, index_of, seconds, the_network
from refqnn.accumulator.bounds import (
    HI,
    LO,
    NO_WITNESS,
    Bounds,
    LayerCertificate,
    Progress,
    Proof,
    Status,
)
from refqnn.accumulator.deciding import decided
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.ladder import Method, climbed
from refqnn.accumulator.recheck import verify
from refqnn.accumulator.rungs import corner, format_ranges, full_ranges
from refqnn.accumulator.samples import sampled
from refqnn.accumulator.staged import StagedCertificate, stage_reports
from refqnn.accumulator.staged_files import WHAT as STAGES
from refqnn.container import (
    MALFORMED,
    decode_integers,
    encode_integers,
    opened,
    pair_of,
    read_json,
    sealed,
    write_json,
)
from refqnn.display import html_table, shortened, text_table
from refqnn.emulate import Accumulators, Stage
from refqnn.errors import CertificateError, FileFormatError, InvalidArgument, InvalidType, mismatch
from refqnn.foreign import refuse_foreign
from refqnn.graph import INPUT, Node, inputs_of
from refqnn.network import Network
from refqnn.ops import KINDS
from refqnn.ops.base import Ends, Interval, is_sum

__all__ = [
    "HI",
    "LO",
    "Certificate",
    "LayerCertificate",
    "Proof",
    "Row",
    "Status",
    "about_one_sum",
    "certify",
    "check_usable",
    "load",
    "observed",
    "read_certificate",
    "with_stages",
]

FORMAT_VERSION = 1
_KEYS = ("network", "domain", "witnesses", "nodes")
_ARRAYS = ("lo", "hi", "proof", "status", "witness", "mass")
_PAIRS = ("datatype", "by_weights", "by_interval")
_WIDTHS = ("datatype_bits", "weight_bits", "interval_bits", "signed_bits", "span_bits")


@dataclass(frozen=True)
class Row:
    """One line of `Certificate.table`: an accumulating layer."""

    layer: str
    kind: str
    neurons: int
    lo: int
    hi: int
    datatype_bits: int
    weight_bits: int
    interval_bits: int
    signed_bits: int
    span_bits: int
    mass: int
    exact: int  # neurons whose two bounds are reached
    unknown: int  # neurons with a bound that a search left open
    proofs: str


class Certificate:
    """Bounds of every value of one network, for every input of one domain.

    Attributes:
        nodes: "input" and every node by name, in topological order.
        digest: sha256 of the network it speaks of.
        domain: the inputs it speaks of.
        witnesses: inputs of the domain, int64 [m, *input_shape].

    >>> from refqnn import IntFormat, Linear, Network, Node, certify
    >>> fc1 = Node("fc1", Linear([[1, -2]], [3]))
    >>> net = Network([fc1], input_shape=(2,), input_format=IntFormat(3, signed=False))
    >>> certificate = certify(net, method="interval")
    >>> certificate["fc1"].range
    Interval(lo=array([-11]), hi=array([10]))
    >>> certificate["fc1"].signed_bits, certificate["fc1"].datatype_bits
    (5, 6)
    >>> certificate.verify(net)
    {'interval': 6}
    """

    def __init__(
        self,
        nodes: Mapping[str, LayerCertificate],
        digest: str,
        domain: Domain,
        witnesses: NDArray[np.int64],
    ) -> None:
        self.nodes: Mapping[str, LayerCertificate] = MappingProxyType(dict(nodes))
        self.digest = digest
        self.domain = domain
        self.witnesses = witnesses
        _freeze(domain, witnesses, *nodes.values())
        # The network that `certify` made it for, or that `verify` held it against, in this process.
        self._proved_of: weakref.ref[Network] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle and copies; what a pickle holds is not proved in this process."""
        return type(self), (dict(self.nodes), self.digest, self.domain, self.witnesses)

    def __eq__(self, other: object) -> bool:
        """The same claims, about the same network."""
        if not isinstance(other, Certificate):
            return NotImplemented
        return self is other or self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        bits = ", ".join(f"{name}: {layer.signed_bits}" for name, layer in self.layers.items())
        return f"<Certificate of {self.digest[:12]}, bits {shortened(bits)}>"

    def __getitem__(self, name: str) -> LayerCertificate:
        if name not in self.nodes:
            raise InvalidArgument(mismatch("name", repr(name), f"one of {list(self.nodes)}"))
        return self.nodes[name]

    @property
    def layers(self) -> dict[str, LayerCertificate]:
        """The accumulating nodes alone, by name."""
        return {name: layer for name, layer in self.nodes.items() if layer.mass is not None}

    @property
    def ranges(self) -> dict[str, Interval]:
        """Proved bounds of "input" and of every node, [*shape] each."""
        return {name: layer.range for name, layer in self.nodes.items()}

    def range(self, name: str) -> Interval:
        """Proved bounds of one value.  Raises: InvalidArgument for an unknown name."""
        return self[name].range

    def witness(
        self, network: Network, name: str, index: int | tuple[int, ...], end: int
    ) -> NDArray[np.int64] | None:
        """An input [*input_shape] that reaches lo (end 0) or hi (end 1) of a neuron, or None.

        Witnesses of a first layer over a box are not stored: its weights say what they are.  What
        is returned was replayed through the network.

        Raises: InvalidArgument, InvalidType.
        """
        layer = self[name]
        where = index_of(index, layer.lo.shape)
        if end not in (LO, HI):
            raise InvalidArgument(mismatch("end", repr(end), "0 (lo) or 1 (hi)"))
        found, bound = self.candidate(network, name, where, end), (layer.lo, layer.hi)[end][where]
        replayed = found is not None and network.trace(found[None])[name][(0, *where)] == bound
        return found if replayed else None

    def candidate(
        self, network: Network, name: str, where: tuple[int, ...], end: int
    ) -> NDArray[np.int64] | None:
        """What `witness` replays, not yet replayed."""
        layer = self.nodes[name]
        number = int(layer.witness[(end, *where)])
        if number != NO_WITNESS:
            return np.asarray(self.witnesses[number])
        if layer.status[(end, *where)] != Status.EXACT:
            return None
        found = corner(network, self.domain, name, where, end)
        # Where no corner is told, lo = hi: any input will do.
        return self.domain.at(np.zeros(1, dtype=np.int64))[0] if found is None else found

    def table(self) -> list[Row]:
        """One row per accumulating layer."""
        rows = []
        for name, layer in self.layers.items():
            assert layer.mass is not None
            unknown = (layer.status == Status.UNKNOWN).any(axis=0)
            proofs = [Proof(p).label for p in np.unique(layer.proof).tolist()]
            rows.append(
                Row(
                    *(name, layer.kind, layer.lo.size, *layer.range.ends),
                    **{bits: getattr(layer, bits) for bits in _WIDTHS},
                    mass=int(layer.mass.max()),
                    exact=int(layer.exact.sum()),
                    unknown=int(unknown.sum()),
                    proofs=", ".join(proofs),
                )
            )
        return rows

    def __str__(self) -> str:
        return text_table(*self._shown)

    def _repr_html_(self) -> str:
        return html_table(*self._shown)

    @property
    def _shown(self) -> tuple[str, list[dict[str, object]]]:
        rows: list[dict[str, object]] = [
            {
                "layer": row.layer,
                "neurons": row.neurons,
                "range": f"[{row.lo}, {row.hi}]",
                "datatype": row.datatype_bits,
                "weights": row.weight_bits,
                "interval": row.interval_bits,
                "proved": row.signed_bits,
                "span": row.span_bits,
                "exact": f"{row.exact}/{row.neurons}",
            }
            for row in self.table()
        ]
        return f"accumulator bits for {self.domain}", rows

    def verify(
        self,
        network: Network,
        *,
        budget_s: float | None = None,
        allow_trusted: bool = False,
        solver: bool = False,
        samples: int = 10_000,
        seed: int = 0,
    ) -> dict[str, int]:
        """Derive every claim again, by code that shares nothing with what makes certificates.

        Interval bounds are computed a second time from the bounds of the node's inputs, exhaustive
        ones by walking through the domain (a claim of more than 2**20 points is false).  A searched
        bound is enumerated where the inputs that its neuron depends on have at most 2**20 points.
        Witnesses are replayed, and all bounds held against at least `samples` inputs: corners,
        random ones, and some that a local search pushes outward.  Every other field is compared
        with what the network says.

        What cannot be derived again is *trusted*: searched bounds of too many points, what the time
        did not suffice for (samples and witnesses too), intervals of a user's own node kind, and
        "exact" where nothing shows it.

        Args:
            network: must have the digest of the certificate.
            budget_s: seconds for everything, but for the block of inputs or of a node that is under
                way then; None for no limit.
            allow_trusted: count trusted claims instead of refusing them.
            solver: ask a solver about searched bounds that no enumeration reaches, on a model of
                its own (needs the `verify` extra).
            samples: how many inputs to try where the domain has more; a domain of at most as many
                points is tried as a whole.
            seed: of the inputs that are tried.

        Returns: how many bounds were confirmed, by proof; with `allow_trusted` also how many count
            as "trusted" followed by their proof, by "exact", "witnesses" or "samples", and as
            "samples" the inputs that were tried where the time was too short for all.

        Raises: CertificateError that names node and field, for another network, for anything that
            does not hold, and for trusted claims unless they are allowed; MissingExtra for `solver`
            without ortools.
        """
        the_network(network)
        counts = verify(
            self,
            network,
            budget_s=seconds(budget_s),
            allow_trusted=allow_trusted,
            solver=solver,
            samples=samples,
            seed=generator_seed(seed),
        )
        if not any(label.startswith("trusted") for label in counts):
            self._proved_of = weakref.ref(network)
        return counts

    # --- files ------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dump."""
        domain: dict[str, Any] = {
            "lo": encode_integers(self.domain.hull.lo),
            "hi": encode_integers(self.domain.hull.hi),
            "rows": None if self.domain.listed is None else encode_integers(self.domain.listed),
            "step": self.domain.step,
        }
        content = {
            "network": self.digest,
            "domain": domain,
            "witnesses": encode_integers(self.witnesses),
            "nodes": [_encode_layer(layer) for layer in self.nodes.values()],
        }
        return sealed("certificate", FORMAT_VERSION, content)

    @classmethod
    def from_json(cls, content: Any) -> Certificate:
        """The certificate in `to_json` data.  Raises: FileFormatError."""
        try:
            content = opened(content, "certificate", FORMAT_VERSION, _KEYS)
            box = content["domain"]
            hull = Interval(decode_integers(box["lo"]), decode_integers(box["hi"]))
            listed = None if box["rows"] is None else decode_integers(box["rows"])
            if listed is not None and (not len(listed) or listed.shape[1:] != hull.shape):
                raise FileFormatError("rows: expected inputs of the shape of lo and hi")
            witnesses = decode_integers(content["witnesses"])
            if witnesses.dtype == object or witnesses.shape[1:] != hull.shape:
                raise FileFormatError("witnesses: expected one input of the domain in each row")
            layers = [_decode_layer(item, len(witnesses)) for item in content["nodes"]]
            if len({layer.name for layer in layers}) != len(layers):
                raise FileFormatError("two nodes have the same name")
            if type(box["step"]) is not int or box["step"] not in (1, 2):
                raise FileFormatError(mismatch("step", repr(box["step"]), "1 or 2"))
            return cls(
                {layer.name: layer for layer in layers},
                _text(content["network"]),
                Domain(hull, listed, int(box["step"])),
                witnesses,
            )
        except FileFormatError:
            raise
        except MALFORMED as error:
            raise FileFormatError(f"malformed certificate ({error!r})") from error

    def save(self, path: str | Path) -> None:
        """Write it as one JSON file, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read what `save` wrote.  Raises: FileFormatError; OSError as open does."""
        return read_json(path, cls.from_json)


load = Certificate.load


def read_certificate(path: str | Path) -> Certificate | StagedCertificate:
    """What `Certificate.save` or `StagedCertificate.save` wrote.

    Raises: FileFormatError; OSError as open does.
    """

    def decode(content: Any) -> Certificate | StagedCertificate:
        staged = isinstance(content, dict) and content.get("format") == f"refqnn {STAGES}"
        return StagedCertificate.from_json(content) if staged else Certificate.from_json(content)

    refuse_foreign(path, "a JSON file", ("certificate",))
    return read_json(path, decode)


# --- making -------------------------------------------------------------------------------------


@overload
def certify(
    network: Network,
    domain: object = ...,
    method: Method = ...,
    *,
    budget_s: float | None = ...,
    X: ArrayLike | None = ...,
    seed: int = ...,
    progress: Progress | None = ...,
    accumulator: None = ...,
) -> Certificate: ...


@overload
def certify(
    network: Network,
    domain: object = ...,
    method: Method = ...,
    *,
    budget_s: float | None = ...,
    X: ArrayLike | None = ...,
    seed: int = ...,
    progress: Progress | None = ...,
    accumulator: Accumulators,
) -> StagedCertificate: ...


def certify(
    network: Network,
    domain: object = None,
    method: Method = "auto",
    *,
    budget_s: float | None = None,
    X: ArrayLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    accumulator: Accumulators | None = None,
) -> Certificate | StagedCertificate:
    """Bounds of every value of a network, for every input of a domain.

    Args:
        network: the integer program.
        domain: None for every code of the input format; a `Domain`; an `Interval` (a box); an
            integer array [n, *input_shape] (those rows and no others).
        method: how far to climb, see refqnn.accumulator.ladder.  `auto` is interval bounds, and
            exhaustive ones where the domain has at most 2**20 points; with a budget also search,
            then the solver if it is installed.
        budget_s: seconds for the searching rungs, over all neurons; None: 60 for `search` and
            `solver`.  The deterministic rungs do not count.
        X: codes [n, *input_shape] inside the domain to take witnesses from.
        seed: of the random starting points of the search.
        progress: called with (what, done, total).
        accumulator: what the sums go through, as for `Network.trace`; then every stage is judged
            too, with the budget a second time.

    Returns: a certificate whose bounds are all sound; see `Certificate` for what else it says.
        With an accumulator a `StagedCertificate`, which holds it.

    Raises: InvalidArgument, InvalidType, ShapeMismatch, OutOfRange; MissingExtra for `solver`
        without ortools; CertificateError, an internal error, should the network itself contradict
        a bound.

    >>> from refqnn import IntFormat, Linear, Requantize
    >>> fc1 = Node("fc1", Linear([[1, 1], [-1, -1]]))
    >>> act1 = Node("act1", Requantize.from_shift(0, IntFormat(3, signed=False), offset=3))
    >>> fc2 = Node("fc2", Linear([[1, 1]]))
    >>> net = Network([fc1, act1, fc2], input_shape=(2,), input_format=IntFormat(1, signed=False))
    >>> certify(net, method="interval")["fc2"].range  # as if x and -x were independent
    Interval(lo=array([4]), hi=array([8]))
    >>> certify(net)["fc2"].range
    Interval(lo=array([6]), hi=array([6]))
    """
    the_network(network)
    budget_s, seed = seconds(budget_s), generator_seed(seed)
    where = Domain.of(network, domain)
    bounds, witnesses = climbed(network, where, method, budget_s, X, seed, progress)
    certificate = _certificate(network, where, bounds, witnesses)
    _hold_against(certificate, network, seed)
    certificate._proved_of = weakref.ref(network)
    if accumulator is None:
        return certificate
    return with_stages(certificate, network, accumulator, budget_s=budget_s, seed=seed)


def with_stages(
    certificate: Certificate,
    network: Network,
    accumulator: Accumulators,
    *,
    budget_s: float | None = None,
    seed: int = 0,
) -> StagedCertificate:
    """What `certify` says of stages, on top of a certificate that is there already.

    Args: as for `certify`; the budget is for the stages alone.

    Raises: as `certify`; CertificateError for a certificate of another network.

    >>> from refqnn import Accumulator, IntFormat, Linear
    >>> net = Network([Node("fc", Linear([[7, 7]]))], input_shape=(2,),
    ...               input_format=IntFormat(2, signed=False))
    >>> with_stages(certify(net), net, Accumulator([Stage(6)])).safe
    False
    """
    check_usable(certificate, network, allow_trusted=True)
    reports = stage_reports(
        network, certificate, accumulator, budget_s=budget_s, seed=seed, ask=about_one_sum
    )
    return StagedCertificate(certificate, accumulator, tuple(reports))


def about_one_sum(
    network: Network, stage: Stage, domain: Domain, budget_s: float
) -> NDArray[np.int64] | Proof | None:
    """Does the one output of a network leave a register?  An input that makes it leave, the proof
    that none does, or None."""
    certificate, place = certify(network, domain), (0,)
    layer, proofs = certificate[network.output], [Proof.INTERVAL]
    deadline, rng = time.monotonic() + budget_s, np.random.default_rng(0)
    for end, limit in zip((LO, HI), stage.ends):
        bound = int((layer.lo, layer.hi)[end][place])
        if stage.ends[LO] <= bound <= stage.ends[HI]:
            proofs.append(Proof(int(layer.proof[(end, *place)])))
            continue
        answer = decided(
            *(network, certificate, certificate.domain, network.output, place),
            *(end, limit, deadline, rng),
        )
        if not isinstance(answer, Proof):
            return answer
        proofs.append(answer)
    return max(proofs)


def _certificate(
    network: Network, domain: Domain, bounds: dict[str, Bounds], witnesses: NDArray[np.int64]
) -> Certificate:
    formats = format_ranges(network)
    refined = any((b.proof != Proof.INTERVAL).any() for b in bounds.values())
    ranges = {name: b.range for name, b in bounds.items()}
    intervals = network.ranges(domain.hull) if refined else ranges
    layers = {INPUT: _layer(INPUT, INPUT, bounds[INPUT])}
    for node in network.nodes:
        layer = _layer(node.name, node.op.kind, bounds[node.name])
        if is_sum(node.op):
            layer = replace(
                layer,
                mass=node.op.absolute_mass(*(ranges[name] for name in inputs_of(node))),
                datatype=formats[node.name],
                by_weights=_by_weights(network, node, formats, intervals),
                by_interval=intervals[node.name].ends,
            )
        layers[node.name] = layer
    return Certificate(layers, network.digest, domain, witnesses)


def _by_weights(
    network: Network, node: Node, formats: dict[str, Ends], intervals: dict[str, Interval]
) -> Ends:
    """The ends of a sum whose operands are as free as their formats allow."""
    full = full_ranges(network, node, formats)
    known = [intervals[name] for name in inputs_of(node)]
    if all((a.lo == b.lo).all() and (a.hi == b.hi).all() for a, b in zip(full, known)):
        return intervals[node.name].ends
    return node.op.out_range(*full).ends


def _freeze(*values: object) -> None:
    """Nobody writes to what was proved, nor to the arrays inside of it."""
    for value in values:
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        elif is_dataclass(value):
            _freeze(*vars(value).values())


def _layer(name: str, kind: str, b: Bounds) -> LayerCertificate:
    return LayerCertificate(name, kind, b.lo, b.hi, b.proof, b.status, b.witness)


def _hold_against(certificate: Certificate, network: Network, seed: int) -> None:
    """Run the network on witnesses, corners, random and searched inputs, and compare all bounds.

    Raises: CertificateError, which is a fault of ours and not of whoever called.
    """
    for trace in sampled(network, certificate.domain, certificate.witnesses, seed):
        for name, values in trace.items():
            if not certificate[name].range.contains(values):
                raise CertificateError(
                    f"internal error: a bound of {name!r} does not hold for an input of network "
                    f"{network.digest}; please report it"
                )


def observed(network: Network, X: ArrayLike) -> dict[str, Interval]:
    """The least intervals that hold every value met on samples: never a certificate.

    Args:
        network: the integer program.
        X: codes [n, *input_shape], or floats when the network has an input quantizer.

    Returns: an `Interval` for "input" and every node.
    """
    codes = network.codes_of(X)
    seen: dict[str, Interval] = {}
    block = network.traced_block
    for start in range(0, len(codes), block):
        for name, values in network.trace(codes[start : start + block]).items():
            here = Interval.observed(values)
            if name in seen:
                lo = np.minimum(seen[name].lo, here.lo)
                here = Interval(lo, np.maximum(seen[name].hi, here.hi))
            seen[name] = here
    return seen


# --- using --------------------------------------------------------------------------------------


def check_usable(
    certificate: object,
    network: Network,
    domain: Domain | None = None,
    *,
    allow_trusted: bool = False,
) -> Certificate:
    """The certificate, if something may be built on it for this network.

    One that `certify` did not make in this process is verified first.

    Args:
        domain: that the certificate has to speak of; None for any.
        allow_trusted: as for `Certificate.verify`.

    Raises: InvalidType; CertificateError for another network or domain, and for what `verify` does
        not confirm.
    """
    if not isinstance(certificate, Certificate):
        raise InvalidType(mismatch("certificate", repr(certificate), "a Certificate"))
    if certificate.digest != network.digest:
        got = f"one of another network, {certificate.digest[:12]}..."
        raise CertificateError(mismatch("certificate", got, f"one of {network.digest[:12]}..."))
    shapes = {name: layer.lo.shape for name, layer in certificate.nodes.items()}
    if list(shapes.items()) != list(network.shapes.items()):
        got = f"bounds of shapes {shapes}"
        raise CertificateError(mismatch("certificate", got, f"{network.shapes}"))
    if domain is not None and not certificate.domain.same_as(domain):
        got = f"one for another domain, {certificate.domain}"
        raise CertificateError(mismatch("certificate", got, str(domain)))
    proved = certificate._proved_of
    # Two kinds of the user's own may look alike: then it has to be the very network.
    ours = all(type(node.op) in KINDS for node in network.nodes)
    if proved is None or not (ours or proved() is network):
        certificate.verify(network, allow_trusted=allow_trusted)
    return certificate


def _decode_within(item: Any, lowest: int, highest: int) -> NDArray[np.int64]:
    array = decode_integers(item)
    if not ((array >= lowest) & (array <= highest)).all():
        raise FileFormatError(mismatch("values", "one outside", f"[{lowest}, {highest}]"))
    return array


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FileFormatError(mismatch("name", repr(value), "text"))
    return value


def _encode_layer(layer: LayerCertificate) -> dict[str, Any]:
    def told(keys: tuple[str, ...], code: Callable[[Any], Any]) -> dict[str, Any]:
        values = {key: getattr(layer, key) for key in keys}
        return {key: None if value is None else code(value) for key, value in values.items()}

    names = {"name": layer.name, "kind": layer.kind}
    return {**names, **told(_ARRAYS, encode_integers), **told(_PAIRS, list)}


def _decode_layer(item: Any, witnesses: int) -> LayerCertificate:
    lo, hi = decode_integers(item["lo"]), decode_integers(item["hi"])
    proof = _decode_within(item["proof"], min(Proof), max(Proof)).astype(np.int8)
    status = _decode_within(item["status"], min(Status), max(Status)).astype(np.int8)
    witness = _decode_within(item["witness"], NO_WITNESS, witnesses - 1)
    mass = None if item["mass"] is None else decode_integers(item["mass"])
    if (
        any(a.shape != (2, *lo.shape) for a in (proof, status, witness))
        or hi.shape != lo.shape
        or (mass is not None and mass.shape != lo.shape)
    ):
        raise FileFormatError(f"node {item['name']!r}: arrays of different shapes")
    if not lo.size or (lo > hi).any():
        raise FileFormatError(f"node {item['name']!r}: no values, or a bound lo above hi")
    name, kind = _text(item["name"]), _text(item["kind"])
    pairs = (pair_of(item[p]) for p in _PAIRS)
    return LayerCertificate(name, kind, lo, hi, proof, status, witness, mass, *pairs)
