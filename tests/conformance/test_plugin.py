"""The pytest plugin, run as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

MINE = """
def flatten(x):
    return x.reshape(len(x), -1)

def add(operands, multipliers):
    if len({v.shape for v in operands}) != 1:
        raise ValueError("shapes")
    return sum(operands[1:], operands[0])

other = {"flatten": flatten}
"""


def run_pytest(folder: Path, *options: str, others: bool = False) -> tuple[int, str]:
    """Without the other plugins that are installed: those take longer to load than ours to run."""
    (folder / "mine.py").write_text(MINE)
    installed = any(e.value == "refqnn.conformance.plugin" for e in entry_points(group="pytest11"))
    plugin = [] if installed and others else ["-p", "refqnn.conformance.plugin"]
    env = {**os.environ} if others else {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", *plugin, "--pyargs", "refqnn.conformance"]
    command += ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder), *options]
    root = Path(__file__).parents[2]
    # As the script `pytest` starts: without the current folder on the path.
    bootstrap = f"import sys; sys.path[:] = [{str(root)!r}, *filter(None, sys.path)]"
    code = f"{bootstrap}; import pytest; sys.exit(pytest.main({command[3:]!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )
    return result.returncode, result.stdout + result.stderr


def test_one_test_per_vector(tmp_path: Path) -> None:
    options = ("--refqnn-impl=mine", "--refqnn-operation=flatten", "-v")
    code, text = run_pytest(tmp_path, *options, others=True)
    assert code == 0, text
    assert "test_vector[flatten-image] PASSED" in text
    assert "impl=mine" in text


def test_a_mapping_in_a_module_and_operations_that_are_missing(tmp_path: Path) -> None:
    code, text = run_pytest(tmp_path, "--refqnn-impl=mine:other", "--refqnn-operation=add", "-rs")
    assert code == 0
    assert "skipped" in text
    assert "no such function" in text


def test_failures_tell_what_and_why(tmp_path: Path) -> None:
    code, text = run_pytest(tmp_path, "--refqnn-impl=mine", "--refqnn-operation=add")
    assert code == 1
    assert "add/multipliers_ignored" in text
    assert "reproduce:" in text


def test_expected_failures(tmp_path: Path) -> None:
    xfails = tmp_path / "xfails.txt"
    options = ("--refqnn-impl=mine", "--refqnn-operation=add", f"--refqnn-xfails={xfails}")

    xfails.write_text("# mine\nadd-subtract has no multipliers\n")
    _, text = run_pytest(tmp_path, *options, "-rx")
    assert "1 xfailed" in text
    assert "has no multipliers" in text

    xfails.write_text("add-shapes passes, in fact\n")
    code, text = run_pytest(tmp_path, *options)
    assert code == 1
    assert "XPASS(strict)" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("add-subtrakt why", "no vector has the id"),
        ("add-subtract", "expected a reason"),
        ("add-subtract a\nadd-subtract b", "named twice"),
    ],
)
def test_bad_files_of_expected_failures(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "xfails.txt").write_text(line)
    code, text = run_pytest(tmp_path, "--refqnn-impl=mine", "--refqnn-xfails=xfails.txt")
    assert code != 0
    assert message in text


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    code, text = run_pytest(tmp_path, "--refqnn-impl=yours")
    assert code != 0
    assert "cannot load 'yours'" in text
    code, text = run_pytest(tmp_path, "--refqnn-impl=mine", "--refqnn-profile=half_upp")
    assert code != 0
    assert "half_upp" in text
