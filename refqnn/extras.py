"""The optional dependencies: which packages each extra brings, what it is for, what is here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from refqnn.errors import MissingExtra

__all__ = ["EXTRAS", "PURPOSES", "here", "installed", "require"]

# Of each extra: the package that is installed -> the module that is imported.
EXTRAS: dict[str, dict[str, str]] = {
    "train": {
        "torch": "torch",
        "brevitas": "brevitas",
        "scikit-learn": "sklearn",
        "skorch": "skorch",
        "mlxtend": "mlxtend",
    },
    "fhe": {"concrete-python": "concrete", "joblib": "joblib"},
    "dask": {"dask": "dask", "distributed": "distributed"},
    "onnx": {"onnx": "onnx", "ml_dtypes": "ml_dtypes"},
    "tflite": {"tflite": "tflite", "flatbuffers": "flatbuffers"},
    "report": {"jinja2": "jinja2", "networkx": "networkx"},
    "verify": {"ortools": "ortools"},
    "plot": {"matplotlib": "matplotlib"},
    "cli": {"click": "click", "rich": "rich"},
    "test": {"pytest": "pytest", "hypothesis": "hypothesis", "pandas": "pandas"},
}

PURPOSES = {
    "train": "training, Brevitas modules, data sets",
    "fhe": "encrypted inference",
    "dask": "encrypted inference on a cluster",
    "onnx": "ONNX files",
    "tflite": "TFLite files",
    "report": "reports as HTML pages",
    "verify": "proofs by a solver",
    "plot": "figures",
    "cli": "this command line",
    "test": "the tests",
}


def installed(package: str) -> str | None:
    """The version of a package that is here, or None.

    >>> installed("numpy") is not None, installed("no-such-package")
    (True, None)
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def here(extra: str) -> bool:
    """Are all packages of an extra here?  None is imported."""
    return not list(_absent(EXTRAS[extra].items()))


def require(*extras: str) -> None:
    """Raises: MissingExtra that names every absent package, and one command for all of them."""
    absent = {extra: list(_absent(EXTRAS[extra].items())) for extra in extras}
    lacking = [extra for extra in extras if absent[extra]]
    if lacking:
        packages = ", ".join(package for extra in lacking for package in absent[extra])
        raise MissingExtra(",".join(lacking), packages)


def _absent(packages: Iterable[tuple[str, str]]) -> Iterable[str]:
    for package, module in packages:
        try:
            found = find_spec(module)
        except ValueError:  # a module that was set to None
            found = None
        if found is None:
            yield package
