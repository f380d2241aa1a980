"""`refqnn bench`: what is listed, what is run, and each bench's --quick."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from refqnn import limits
from refqnn.cli import refqnn
from refqnn.commands import bench as benches
from refqnn.errors import InvalidArgument

ROOT = Path(__file__).parents[1]
OURS = ("checkerboard", "classifier_comparison", "defaults")

SCRIPT = '''"""What it measures.

More.

    python bench/{name}.py            # 7 minutes on one core
    python bench/{name}.py --quick    # seconds
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    Path("arguments").write_text(" ".join(sys.argv[1:]))
    sys.exit(3)
'''


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory is a checkout of two benches; the package is installed elsewhere."""
    folder = tmp_path / "bench"
    folder.mkdir()
    (tmp_path / "pyproject.toml").touch()
    (folder / "common.py").write_text('"""What they share."""\n')
    (folder / "speed.py").write_text(SCRIPT.format(name="speed"))
    (folder / "test_latency.py").write_text('"""How late."""\n\n\ndef test_one():\n    pass\n')
    monkeypatch.chdir(tmp_path)
    installed = tmp_path / "site-packages" / "refqnn" / "commands" / "x.py"
    monkeypatch.setattr(benches, "__file__", str(installed))
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(refqnn, ["bench", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_list_names_durations_and_summaries(checkout: Path) -> None:
    latency, speed = benches.benches()
    assert (latency.name, latency.summary, latency.duration) == ("latency", "How late.", "")
    assert latency.of_pytest
    assert not speed.of_pytest
    text = run()
    for part in ("speed", "7 minutes on one core", "What it measures.", "latency", "How late."):
        assert part in text
    assert "common" not in text


def test_arguments_reach_the_bench_and_its_exit_code_us(checkout: Path) -> None:
    run("speed", "--quick", "--help", "x y", code=3)
    assert (checkout / "arguments").read_text() == "--quick --help x y"
    run("speed.py", code=3)
    assert (checkout / "arguments").read_text() == ""


def test_a_bench_of_pytest_runs_enabled_slow_tests_too(checkout: Path) -> None:
    (latency, _) = benches.benches()
    runner = [sys.executable, "-m", "pytest", str(latency.path)]
    enabled = [*runner, "--benchmark-enable", "-m", ""]
    assert benches.command(latency) == enabled
    assert benches.command(latency, ["-k", "one"]) == [*enabled, "-k", "one"]
    quick = benches.command(latency, ["--quick", "--output", "out"])
    json = f"--benchmark-json={Path('out') / 'latency.json'}"
    assert quick == [*runner, "--benchmark-disable", "-m", "", json]
    with pytest.raises(InvalidArgument, match="folder"):
        benches.command(latency, ["--output"])


def test_a_script_and_a_pytest_bench_of_one_name(checkout: Path) -> None:
    (checkout / "bench" / "test_speed.py").write_text('"""Timed."""\n')
    assert [bench.name for bench in benches.benches()] == ["latency", "speed", "test_speed"]
    run("speed", code=3)  # the script


def test_unknown_bench_lists_those_there_are(checkout: Path) -> None:
    assert "one of latency, speed" in run("weather", code=2)


def test_an_installed_package_says_to_clone(tmp_path: Path, checkout: Path) -> None:
    (checkout / "bench" / "common.py").unlink()
    text = run("speed", code=2)
    assert "clone the repository" in text
    assert "Traceback" not in text


def test_every_bench_of_ours_says_what_it_is_and_how_long_it_takes() -> None:
    found = {bench.name: bench for bench in benches.benches(ROOT / "bench")}
    assert {*OURS, "accumulator_training"} <= set(found)
    assert not {"common", "fhe_peer"} & set(found)
    for name in OURS:
        assert found[name].summary.endswith((".", "?"))
        assert "minute" in found[name].duration


def test_constants_are_read_from_their_homes_and_can_be_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each way at its smallest size: a constant that moves or is renamed fails here."""
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")  # as the bench does, but not for other tests
    monkeypatch.syspath_prepend(ROOT / "bench")
    constants = importlib.import_module("constants")
    names = re.findall(
        r'(?:fastest|crossing|amount)\(\s*"(\w+)"', inspect.getsource(constants.core)
    )
    assert len(names) >= 13
    for name in names:
        assert constants.value(name) == getattr(limits, name)
        with constants.set_to(name, 1):
            assert getattr(limits, name) == 1
    for ways in (constants.compared(1), constants.by_table(2**10), constants.enumerated(2**6, 1)):
        for way in ways:
            way()
    for measured in (constants.making_a_table, constants.fitting_lines, constants.walking):
        call, units = measured(2**6)
        call()
        assert units >= 2**6
    for call in constants.forwards(quick=True):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_quick_run_ends_in_a_table_and_writes_nothing(name: str, tmp_path: Path) -> None:
    for module in ("brevitas", "skorch", "matplotlib", "concrete.fhe"):
        pytest.importorskip(module)
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "bench").glob("*.*")}
    command = [sys.executable, "-m", "refqnn", "bench", name, "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ours" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert before == {path: path.stat().st_mtime_ns for path in (ROOT / "bench").glob("*.*")}


def test_every_limit_is_measured_or_says_why_it_was_chosen() -> None:
    """limits: "`refqnn bench constants` measures again what came from a measurement; the others
    were chosen, and say why"."""
    measured = (ROOT / "bench" / "constants.py").read_text(encoding="utf-8")
    text = Path(limits.__file__).read_text(encoding="utf-8")
    told = re.findall(r'^((?:[A-Z_]+ = [^\n]*\n)+)"""(.*?)"""', text, re.MULTILINE | re.DOTALL)
    names = {name for lines, _ in told for name in re.findall(r"^[A-Z_]+", lines, re.MULTILINE)}
    assert names == {name for name in vars(limits) if name.isupper()}
    for lines, why in told:
        for name in re.findall(r"^[A-Z_]+", lines, re.MULTILINE):
            assert (f'"{name}"' in measured) != ("Chosen: " in why), name
