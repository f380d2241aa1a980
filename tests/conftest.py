"""The one conftest: two modules of that name shadow each other when doctests are collected."""

from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure.  Random cases: few by default, many with -m "slow or not slow".
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("refqnn", max_examples=40, **QUIET)
settings.register_profile("slow", max_examples=400, **QUIET)


def pytest_configure(config: pytest.Config) -> None:
    everything = config.option.markexpr == "slow or not slow"
    settings.load_profile("slow" if everything else "refqnn")


# What a folder of tests cannot be without; where it is missing they are not collected.
_NEEDED = {"fhe/*": "concrete", "tflite_files/*": "tflite"}
collect_ignore_glob = [tests for tests, package in _NEEDED.items() if find_spec(package) is None]
# A script for Atheris, which is no dependency.
collect_ignore_glob += ["fuzz/coverage_guided.py"]


@pytest.fixture
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what asks nothing of the accuracy that an estimator reaches."""
    for package in ("brevitas", "skorch"):  # without them what is asked is skipped as well
        pytest.importorskip(package)
    monkeypatch.setattr("refqnn.training.progress.STEPS_PER_EPOCH", 4)
