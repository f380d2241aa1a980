"""The page on a network: what it says, that it stands alone, and how a browser shows it."""

from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("networkx")

from click.testing import CliRunner

from refqnn import (
    Add,
    Concat,
    Conv2d,
    Flatten,
    IntFormat,
    Linear,
    MaxPool2d,
    Network,
    Node,
    Requantize,
    certify,
    simplify,
)
from refqnn.cli import refqnn
from refqnn.errors import CertificateError, MissingExtra
from refqnn.inspect import describe
from refqnn.report import _duration, report
from refqnn.report.drawing import HEIGHT, WIDTH, drawn
from refqnn.report.figures import sampled

UINT3 = IntFormat(3, signed=False)
EVIL = "</title><script>alert(1)</script><b x='\"&{{ 1 }}{% \x1b[31m \u202e"


def residual(name: str = "conv1") -> Network:
    """Branches of two lengths, a join of three, a pool, per-channel thresholds."""
    rng = np.random.default_rng(0)

    def steps(channels: int) -> Requantize:
        return Requantize(np.sort(rng.integers(-20, 40, (channels, 7)), axis=1), UINT3)

    return Network(
        [
            Node(name, Conv2d(rng.integers(-2, 3, (4, 1, 3, 3)), padding=1)),
            Node("act1", steps(4)),
            Node("conv2", Conv2d(rng.integers(-1, 2, (4, 4, 3, 3)), padding=1)),
            Node("act2", steps(4)),
            Node("conv3", Conv2d(rng.integers(-1, 2, (4, 4, 3, 3)), padding=1)),
            Node("act3", steps(4)),
            Node("add", Add(), ("act3", "act1", "act2")),
            Node("both", Concat(), ("add", "act1")),
            Node("pool", MaxPool2d(2)),
            Node("flat", Flatten()),
            Node("fc", Linear(rng.integers(-2, 3, (3, 72)))),
        ],
        input_shape=(1, 6, 6),
        input_format=UINT3,
    )


def codes(n: int = 40) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 8, (n, 1, 6, 6))


# --- what it says -----------------------------------------------------------------------------


def test_ties_and_observed_ranges_are_those_counted_one_by_one() -> None:
    net, X = residual(), codes()
    trace = net.trace(X)
    found = {h.node: h for h in sampled(net, X).histograms}
    assert set(found) == {"act1", "act2", "act3"}
    for name, histogram in found.items():
        acc = trace[histogram.accumulator]
        exact = missed = 0
        for row, values in zip(net[name].op.thresholds.tolist(), acc.transpose(1, 0, 2, 3)):
            for value in values.ravel().tolist():
                exact += value in row
                missed += value + 1 in row and value not in row
        assert (histogram.ties, histogram.missed) == (exact, missed)
        assert histogram.total == acc.size == sum(bar.count for bar in histogram.bars)
        assert sum(bar.count for bar in histogram.distances) == acc.size
        for bar in histogram.bars:
            assert bar.count == int(((acc >= bar.lo) & (acc <= bar.hi)).sum())
        inside = {
            t for t in net[name].op.thresholds.ravel().tolist() if acc.min() <= t <= acc.max()
        }
        assert inside <= {line.lo for line in histogram.lines}
        assert all(bar.left >= 0 and bar.left + bar.width <= 100.01 for bar in histogram.bars)
    seen = sampled(net, X).seen
    for node in net.accumulators():
        assert (seen[node.name].hi == trace[node.name].max(axis=0)).all()
        assert (seen[node.name].lo == trace[node.name].min(axis=0)).all()


def test_blocks_of_samples_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    net, X = residual(), codes(23)
    whole = sampled(net, X)
    monkeypatch.setattr(Network, "traced_block", 5)
    parts = sampled(net, X)
    assert parts.histograms == whole.histograms
    assert all((parts.seen[k].lo == whole.seen[k].lo).all() for k in whole.seen)


def test_the_page_holds_the_figures_of_the_certificate() -> None:
    net = residual()
    certificate = certify(net)
    page = Parsed(report(net, codes(), certificate=certificate, encrypted=False).html)
    for row in certificate.table():
        assert f"[{row.lo:,}, {row.hi:,}]" in page.text
        assert f"{row.exact:,} of {row.neurons:,}" in page.text
    for row in describe(net):
        assert row.node in page.text
    assert f"{certificate['conv1'].signed_bits} bits proved" in page.text
    assert net.digest[:16] in page.text


def test_witnesses_reach_what_the_page_says() -> None:
    net = residual()
    page = Parsed(report(net, encrypted=False).html).text
    told = re.findall(r"conv1\[([\d, ]+)\] (?:lowest|highest): (-?\d+)\s*([\d ]+)", page)
    assert len(told) == 2
    for neuron, value, listed in told:
        sample = np.array(listed.split(), dtype=int).reshape(1, 1, 6, 6)
        index = tuple(int(i) for i in neuron.split(", "))
        assert net.trace(sample)["conv1"][(0, *index)] == int(value)


def test_a_certificate_of_another_network_is_refused() -> None:
    other = certify(Network(residual().nodes[:1], input_shape=(1, 6, 6), input_format=UINT3))
    with pytest.raises(CertificateError):
        report(residual(), certificate=other, encrypted=False)


def test_what_encryption_takes_and_reveals() -> None:
    fhe = pytest.importorskip("refqnn.fhe")
    nodes = [Node("fc", Linear([[1, 2]])), Node("act", Requantize.from_shift(1, UINT3))]
    net = Network(nodes, input_shape=(2,), input_format=IntFormat(1, signed=False))
    circuit = fhe.compile(net)
    page = Parsed(report(net).html).text
    assert f"{circuit.compiled_pbs:,} lookups" in page
    for told in circuit.reveals().values():
        assert all(line in page for line in told)
    open_sum = Network(nodes[:1], input_shape=(2,), input_format=UINT3)
    assert "was not compiled: model: got 'secret'" in Parsed(report(open_sum).html).text
    assert "Encrypted" not in report(open_sum, encrypted=False).html


def test_small_and_odd_networks_have_a_page() -> None:
    one = Network([Node("f", Flatten())], input_shape=(1, 2, 2), input_format=UINT3)
    constant = Network([Node("fc", Linear([[0]]))], input_shape=(1,), input_format=UINT3)
    never = Requantize(np.full((1, 7), 2**63 - 1), UINT3)
    still = Network([*constant, Node("r", never)], input_shape=(1,), input_format=UINT3)
    wide = Network(
        [Node("fc", Linear([[2**62, 2**62, 2**62]]))], input_shape=(3,), input_format=UINT3
    )
    for net in (one, constant, still, wide, simplify(residual(), certify(residual()))):
        X = np.zeros((2, *net.input_shape), dtype=int)
        Parsed(net.report(X, encrypted=False).html)
        Parsed(net.report(encrypted=False).html)


# --- how it is drawn --------------------------------------------------------------------------


def test_boxes_lie_apart_and_below_what_they_read() -> None:
    net = residual()
    drawing = drawn(describe(net), {})
    boxes = {box.row.node: box for box in drawing.boxes}
    listed = list(boxes.values())
    for i, a in enumerate(listed):
        assert 0 <= a.x <= drawing.width - WIDTH
        assert 0 <= a.y <= drawing.height - HEIGHT
        for b in listed[:i]:
            assert a.y != b.y or abs(a.x - b.x) > WIDTH
    read = {(name, node.name) for node in net for name in node.inputs or ()}
    assert {(edge.source, edge.target) for edge in drawing.edges} == read
    for source, target in read:
        assert boxes[target].y >= boxes[source].y + HEIGHT


def test_a_chain_is_a_column() -> None:
    nodes = [Node(f"fc{i}", Linear([[1]])) for i in range(30)]
    net = Network(nodes, input_shape=(1,), input_format=UINT3)
    assert len({box.x for box in drawn(describe(net), {}).boxes}) == 1


# --- the page alone ---------------------------------------------------------------------------


class Parsed(HTMLParser):
    """Tags with their attributes, and the text; raises where an element is left open."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def test_a_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    page = report(residual(), codes(), encrypted=False).html
    for tag, attributes in Parsed(page).tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "action", "xlink:href", "srcset")
            assert name != "href" or str(value).startswith("#")
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {"#tip"}
    assert not re.search(r"https?:|@import|javascript:", page)


def test_hostile_names_are_text() -> None:
    net = residual(EVIL)
    page = report(net, codes(), title=EVIL, encrypted=False)
    parsed = Parsed(page.html)
    assert "script" not in [tag for tag, _ in parsed.tags]
    assert "<script>alert(1)</script>" in parsed.text
    assert "\x1b" not in page.html
    assert "\u202e" not in page.html
    plain = Parsed(report(residual("plain"), codes(), title="plain", encrypted=False).html)
    assert Counter(tag for tag, _ in parsed.tags) == Counter(tag for tag, _ in plain.tags)
    (frame,) = Parsed(page._repr_html_()).tags
    assert frame[0] == "iframe"
    assert frame[1]["srcdoc"] == page.html
    assert "\x1b" not in str(page)


def test_a_screen_reader_finds_names_for_everything() -> None:
    tags = Parsed(report(residual(), codes(), encrypted=False).html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in tags
    for tag, attributes in tags:
        if tag == "svg":
            named = str(attributes.get("aria-labelledby")).split()
            assert attributes.get("aria-hidden") == "true" or set(named) <= set(ids)
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
        if tag == "a":
            assert str(attributes["href"])[1:] in ids
        if attributes.get("role") == "region":
            assert attributes.get("aria-label")
    count = Counter(tag for tag, _ in tags)
    assert count["table"] == count["caption"] == count["thead"]
    assert (count["h1"], count["main"], count["header"], count["footer"]) == (1, 1, 1, 1)
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels))


def contrast(a: str, b: str) -> float:
    """Of two colours #rrggbb, by WCAG 2.1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_can_be_told_apart(scheme: int) -> None:
    source = files("refqnn.report").joinpath("page.html.j2").read_text()
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in source.split(":root {")]
    colours = schemes[1 + scheme]
    for text in ("ink", "soft"):
        for paper in ("paper", "card", *(k for k in colours if k.endswith("-fill"))):
            assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
    assert contrast(colours["sum"], colours["paper"]) >= 4.5  # links
    for mark in ("reached", "observed", "threshold", "sum"):
        assert contrast(colours[mark], colours["card"]) >= 3, mark


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    net, target = residual(), tmp_path / "page.html"
    net.save(tmp_path / "net")
    np.save(tmp_path / "X.npy", codes())
    words = ["report", tmp_path / "net", "-o", target, "--inputs", tmp_path / "X.npy", "--no-fhe"]
    result = CliRunner().invoke(refqnn, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert target.read_text() == net.report(codes(), title="net", encrypted=False).html


def test_without_the_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from refqnn import extras

    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"refqnn\[report\]"):
        extras.require("report")


# --- in a browser -----------------------------------------------------------------------------

MEASURE = """<!doctype html><meta charset="utf-8"><title>none</title>
<iframe style="border:0;width:{width}px;height:2400px" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const size = text => parseFloat(page.defaultView.getComputedStyle(text).fontSize);
  const texts = [...page.querySelectorAll("p, dd, dt, h1, h2, h3, li, caption, td, th")];
  document.title = JSON.stringify({{
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    paper: page.defaultView.getComputedStyle(page.body).backgroundColor,
    smallest: Math.min(...texts.map(size)),
    scripts: page.scripts.length,
    cut: Math.max(...[...page.querySelectorAll(".scroll")].map(t => t.scrollWidth - t.clientWidth)),
  }});
}});
</script>"""


def browse(*words: object) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    browser = browser or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on PATH")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0")
    command = [browser, *flags, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("width", "scheme", "paper"),
    [
        (390, "0", "rgb(20, 23, 27)"),
        (1280, "1", "rgb(251, 251, 249)"),
        pytest.param(390, "1", "rgb(251, 251, 249)", marks=pytest.mark.slow),
        pytest.param(1280, "0", "rgb(20, 23, 27)", marks=pytest.mark.slow),
    ],
)
def test_a_browser_shows_it(width: int, scheme: str, paper: str, tmp_path: Path) -> None:
    """No line is wider than the window, dark and light are followed, nothing is complained of."""
    page = report(residual(EVIL), codes(), title=EVIL, encrypted=False).html
    measured = tmp_path / "measured.html"
    measured.write_text(MEASURE.format(width=width, page=entities.escape(page, quote=True)))
    colours = f"--blink-settings=preferredColorScheme={scheme}"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    size = f"--window-size={max(width, 500)},2400"
    result = browse("--dump-dom", colours, profile, size, measured.as_uri())
    assert "CONSOLE" not in result.stderr, result.stderr
    (title,) = re.findall(r"<title>(\{.*?\})</title>", result.stdout)
    told = json.loads(entities.unescape(title))
    assert told["overflow"] == 0
    assert told["paper"] == {"0": "rgb(20, 23, 27)", "1": "rgb(251, 251, 249)"}[scheme]
    assert told["smallest"] >= 12
    assert told["scripts"] == 0
    shot = tmp_path / "shot.png"
    (tmp_path / "page.html").write_text(page)
    words = (f"--screenshot={shot}", colours, profile, size, (tmp_path / "page.html").as_uri())
    assert "CONSOLE" not in browse(*words).stderr
    assert shot.read_bytes().startswith(b"\x89PNG")


def test_a_long_name_hides_no_column(tmp_path: Path) -> None:
    """As converters make them, of all that they fused; reads beside names, or "the row above"."""
    html = report(residual("model/fused;" * 25), codes(), encrypted=False).html
    assert '<td class="text">the row above</td>' in html
    (tmp_path / "measured.html").write_text(
        MEASURE.format(width=1280, page=entities.escape(html, quote=True))
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    result = browse("--dump-dom", profile, (tmp_path / "measured.html").as_uri())
    (title,) = re.findall(r"<title>(\{.*?\})</title>", result.stdout)
    assert json.loads(entities.unescape(title))["cut"] == 0


def test_the_page_counts_ties_where_the_scale_is_known() -> None:
    act = Requantize.from_scale(0.1, 0.3, IntFormat(4, False), "half_even", bias=0.05)
    nodes = [Node("fc", Linear([[3, -2]])), Node("act", act)]
    net = Network(nodes, input_shape=(2,), input_format=IntFormat(8, signed=False))
    row = describe(net)[-1]
    assert row.ties
    assert f"<td>{row.ties}</td><td>{row.float_ties}</td>" in report(net, encrypted=False).html
    assert "float ties" not in Parsed(report(residual(), encrypted=False).html).text


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0712, "0.071 s"), (99.4, "99 s"), (99.6, "1.7 min"), (2700, "45 min"), (36000, "10.0 h")],
)
def test_seconds_are_told_as_people_count_them(seconds: float, told: str) -> None:
    assert _duration(seconds) == told
