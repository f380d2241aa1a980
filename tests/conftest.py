"""The one conftest: two modules of that name shadow each other when doctests are collected."""

from importlib.util import find_spec

from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("refqnn", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refqnn")

# What a folder of tests cannot be without; where it is missing they are not collected.
_NEEDED = {"fhe/*": "concrete", "tflite_files/*": "tflite"}
collect_ignore_glob = [tests for tests, package in _NEEDED.items() if find_spec(package) is None]
# A script for Atheris, which is no dependency.
collect_ignore_glob += ["fuzz/coverage_guided.py"]
