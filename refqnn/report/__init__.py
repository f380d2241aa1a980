"""A network on one page of HTML: its graph, its ranges, what samples showed, what it costs.

The page stands alone: no script, nothing from elsewhere.  Names come from files and are escaped.
Needs the `report` extra.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from refqnn.errors import MissingExtra

try:
    import jinja2
    import networkx as _networkx  # noqa: F401
except ImportError as error:
    raise MissingExtra("report", (error.name or "jinja2").partition(".")[0]) from error

from refqnn import __version__
from refqnn.accumulator import Certificate, certify
from refqnn.accumulator.bounds import HI, LO, LayerCertificate
from refqnn.accumulator.certificate import check_usable
from refqnn.container import write_atomically
from refqnn.display import cell, safe
from refqnn.errors import CircuitError, NotCovered
from refqnn.inspect import describe
from refqnn.network import Network
from refqnn.report.drawing import drawn, shortened
from refqnn.report.figures import ranges_of, sampled

if TYPE_CHECKING:
    from refqnn.fhe import Circuit

__all__ = ["Page", "Witness", "report"]

_WITNESSES = 12  # layers whose extreme inputs are shown
_CODES = 256  # of one input


@dataclass(frozen=True)
class Page:
    """A report: `save` writes it, a notebook shows it.

    Attributes:
        title: of the page.
        html: all of it.
    """

    title: str
    html: str = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write the page.  Raises: OSError."""
        write_atomically(path, lambda file: file.write(self.html.encode()))

    def __str__(self) -> str:
        return (
            f"report on {self.title}: {len(self.html):,} characters of HTML; save(path) writes it"
        )

    def _repr_html_(self) -> str:
        frame = "border:0;width:100%;height:80vh"
        title = escape(f"Report on {self.title}", quote=True)
        page = escape(self.html, quote=True)
        return f'<iframe title="{title}" style="{frame}" sandbox srcdoc="{page}"></iframe>'


@dataclass(frozen=True)
class Witness:
    """An input [*input_shape] that brings a neuron to an end of its range."""

    layer: str
    neuron: str
    value: int
    end: str
    codes: str


@dataclass(frozen=True)
class Cost:
    """What encrypted inference takes; or why there is none."""

    circuit: Circuit | None = None
    seconds: float | None = None
    security: str = ""
    refused: str = ""


def report(
    network: Network,
    X: ArrayLike | None = None,
    *,
    title: str = "network",
    certificate: Certificate | None = None,
    encrypted: bool | None = None,
) -> Page:
    """The page on a network.

    Args:
        X: samples [n, *input_shape], floats or codes, for observed ranges, histograms and ties.
        title: such as the name of its file.
        certificate: of this network; `certify(network)` by default.
        encrypted: compile a circuit for its lookups and for what it reveals; None: where the `fhe`
            extra is there.  Seconds are told where `refqnn.fhe.estimate` has measured this machine.

    Raises: as `certify` and `Network.codes_of`; CertificateError; MissingExtra.

    >>> from refqnn import IntFormat, Linear, Node
    >>> net = Network([Node("fc1", Linear([[1, -2]]))], input_shape=(2,),
    ...               input_format=IntFormat(3, signed=False))
    >>> page = report(net, [[7, 0], [1, 3]], encrypted=False)
    >>> "fc1" in page.html, "<script" in page.html
    (True, False)
    """
    known = certify(network) if certificate is None else check_usable(certificate, network)
    seen = None if X is None else sampled(network, network.codes_of(X))
    rows = describe(network)
    roles = {node.name: _role(node.op) for node in network}
    html = _template().render(
        title=safe(title),
        network=network,
        rows=rows,
        drawing=drawn(rows, roles),
        ranges=ranges_of(known, None if seen is None else seen.seen),
        table_rows=known.table(),
        domain=str(known.domain),
        seen=seen,
        witnesses=list(_witnesses(network, known)),
        left_out=max(0, len(known.layers) - _WITNESSES),
        cost=_cost(network, encrypted),
        version=__version__,
    )
    return Page(safe(title), html)


def _role(op: Any) -> str:
    return "other" if op.role is None else str(op.role.name).lower()


def _witnesses(network: Network, certificate: Certificate) -> list[Witness]:
    """For each layer the inputs that reach its ends, where they are known."""
    found = []
    for name, layer in list(certificate.layers.items())[:_WITNESSES]:
        for end, word in ((LO, "lowest"), (HI, "highest")):
            index, value = _extreme(layer, end)
            codes = certificate.witness(network, name, index, end)
            if codes is not None:
                neuron = ", ".join(map(str, index))
                found.append(Witness(name, neuron, value, word, _listed(codes.ravel().tolist())))
    return found


def _extreme(layer: LayerCertificate, end: int) -> tuple[tuple[int, ...], int]:
    """The neuron that goes furthest, and how far."""
    bounds = layer.lo if end == LO else layer.hi
    values = bounds.ravel().tolist()
    value = min(values) if end == LO else max(values)
    place = np.unravel_index(values.index(value), bounds.shape)
    return tuple(map(int, place)), int(value)


def _listed(codes: list[int]) -> str:
    more = f" … and {len(codes) - _CODES:,} more" if len(codes) > _CODES else ""
    return " ".join(map(str, codes[:_CODES])) + more


def _cost(network: Network, encrypted: bool | None) -> Cost | None:
    if encrypted is False:
        return None
    try:
        from refqnn.fhe.circuit import compile
        from refqnn.fhe.estimation import calibrated
        from refqnn.fhe.security import security_of
    except ImportError:
        if encrypted:
            raise
        return None
    try:
        circuit = compile(network)
    except (CircuitError, NotCovered) as error:
        return Cost(refused=safe(error))
    speed = calibrated()
    seconds = None if speed is None else circuit.work * speed
    return Cost(circuit, seconds, security_of(circuit.global_p_error))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(cell=cell, duration=_duration, safe_text=safe, short=shortened)
    source = files("refqnn.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _duration(seconds: float) -> str:
    """Two figures, in a unit that people count in."""
    for unit, length in (("s", 1.0), ("min", 60.0)):
        if seconds < 99.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 3600:,.1f} h"
