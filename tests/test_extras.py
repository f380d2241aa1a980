"""Without an extra, what needs it raises MissingExtra with the pip command; the rest works."""

from __future__ import annotations

import subprocess
import sys

import pytest

CASES = {
    "train, brevitas": ("brevitas", "import refqnn; refqnn.from_brevitas", "train"),
    "train, torch": ("torch", "import refqnn; refqnn.brevitas", "train"),
    "train, module": ("torch", "import refqnn; refqnn.training", "train"),
    "train, data": ("sklearn", "import refqnn; refqnn.datasets.load('iris')", "train"),
    "fhe": ("concrete", "import refqnn; refqnn.fhe", "fhe"),
    "onnx": ("onnx", "import refqnn; refqnn.from_onnx('net.onnx')", "onnx"),
    "plot": ("matplotlib", "import refqnn; refqnn.plotting.figure()", "plot"),
    "test": ("hypothesis", "import refqnn; refqnn.testing", "test"),
    "cli": ("click", "from refqnn.__main__ import main; main()", "cli"),
}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", CASES)
def test_a_missing_extra_names_the_pip_command(case: str) -> None:
    package, use, extra = CASES[case]
    result = python(f"import sys; sys.modules[{package!r}] = None; {use}")
    assert f"python -m pip install 'refqnn[{extra}]'" in result.stderr
    assert result.returncode == (2 if extra == "cli" else 1)  # 1 is "differs" of the commands


def test_import_loads_numpy_and_the_standard_library_only() -> None:
    code = (
        "import sys; import numpy; before = set(sys.modules); import refqnn; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(new - set(sys.stdlib_module_names) - {'numpy', 'refqnn'}))"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_import_loads_nothing_of_ours_before_it_is_used() -> None:
    """Names come when they are first asked for; bench/clear_speed.py has the times."""
    result = python("import sys, refqnn; print(*(n for n in sys.modules if 'refqnn' in n))")
    assert result.stdout.split() == ["refqnn"]
    late = ("refqnn.accumulator", "refqnn.plan", "refqnn.emulate", "refqnn.storage", "refqnn.exact")
    result = python("import sys; from refqnn import Network, Linear, simplify; print(*sys.modules)")
    assert not [name for name in result.stdout.split() if name.startswith(late)]
    names = ("certify", "Certificate", "Accumulator", "find_overflow", "accumulator.bounds")
    assert python("import refqnn; " + "; ".join(f"refqnn.{n}" for n in names)).returncode == 0


def test_simplify_is_the_function_when_its_module_was_imported_first() -> None:
    for first in ("", "import refqnn.simplify; ", "from refqnn.simplify import simplify; "):
        result = python(f"{first}import refqnn; print(refqnn.simplify.__name__)")
        assert result.stdout.split() == ["simplify"], result.stderr


def test_a_name_that_is_not_there_is_said_to_be_missing() -> None:
    code = "import refqnn; getattr(refqnn, 'nothing')"
    assert "module 'refqnn' has no attribute 'nothing'" in python(code).stderr
    assert "cannot import name 'nothing'" in python("from refqnn import nothing").stderr
    assert python("import refqnn; refqnn.ops, refqnn.errors, refqnn.formats").returncode == 0


ALONE = ("brevitas", "concrete", "jinja2", "hypothesis")


@pytest.mark.parametrize(
    "missing",
    [["torch"], [*ALONE], *(pytest.param([p], marks=pytest.mark.slow) for p in ALONE)],
    ids=" ".join,
)
def test_what_dir_lists_can_be_had(missing: list[str]) -> None:
    """`help(refqnn)`, completion and `inspect.getmembers` take every name that `dir` gives."""
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import refqnn, inspect; "
    result = python(code + "print(*(name for name, _ in inspect.getmembers(refqnn)))")
    assert result.returncode == 0, result.stderr
    assert {"Network", "certify", "from_onnx", "conformance"} <= set(result.stdout.split())
