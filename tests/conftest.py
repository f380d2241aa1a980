"""The one conftest: two modules of that name shadow each other when doctests are collected."""

from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("refqnn", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refqnn")

# What a folder of tests cannot be without; where it is missing they are not collected.
_NEEDED = {"fhe/*": "concrete", "tflite_files/*": "tflite"}
collect_ignore_glob = [tests for tests, package in _NEEDED.items() if find_spec(package) is None]
# A script for Atheris, which is no dependency.
collect_ignore_glob += ["fuzz/coverage_guided.py"]

PROCESSES = 2


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A run of everything takes two processes (pytest-xdist); a run of chosen tests takes one."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    alone = config.option.collectonly or config.option.usepdb
    if not everything or alone or not config.pluginmanager.hasplugin("xdist"):
        return
    if config.option.numprocesses is None and config.option.dist == "no":
        config.option.numprocesses, config.option.dist = PROCESSES, "loadfile"
