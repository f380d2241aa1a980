"""What every bench shares: where results go, what machine made them, the trained networks.

A bench is one module of this folder.  `python bench/NAME.py` or `refqnn bench NAME` runs it; it
says how long it takes, shows progress, and writes NAME.json and NAME.png beside itself.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from refqnn.container import write_atomically

FOLDER = Path(__file__).parent
PACKAGES = (
    "refqnn",
    "numpy",
    "torch",
    "brevitas",
    "concrete-python",
    "scikit-learn",
    "onnxruntime",
    "qonnx",
)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, interpreter and package versions: what a figure depends on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def write_results(name: str, results: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write `folder`/`name`.json."""
    path = folder / f"{name}.json"
    content = {**results, "machine": machine()}
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
