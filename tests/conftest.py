"""The one conftest: two modules of that name shadow each other when doctests are collected."""

from importlib.util import find_spec

from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("refqnn", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refqnn")

# Encrypted tests need the `fhe` extra; without it they are not collected.
collect_ignore_glob = [] if find_spec("concrete") is not None else ["fhe/*"]
# A script for Atheris, which is no dependency.
collect_ignore_glob += ["fuzz/coverage_guided.py"]
