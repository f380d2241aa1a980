"""LiteRT as a peer: a program of its own, for an operator that it refuses ends its process.

python litert.py WORK: reads the jobs in WORK/jobs.json, [{model, inputs, resolver}], and writes
WORK/0.npz, 1.npz, ...: every tensor by its index, [n, ...].
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

RESOLVERS = {
    "tflite_ref": "BUILTIN_REF",
    "tflite_optimized": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "xnnpack": "BUILTIN",
}


def run(folder: Path, jobs: list[tuple[bytes, np.ndarray, str]]) -> list[dict[int, np.ndarray]]:
    """The tensors of (model, inputs [n, ...], runtime), each by its index."""
    listed = []
    for i, (model, inputs, runtime) in enumerate(jobs):
        (folder / f"{i}.tflite").write_bytes(model)
        np.save(folder / f"{i}.npy", inputs)
        listed.append(RESOLVERS[runtime])
    (folder / "jobs.json").write_text(json.dumps(listed))
    process = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    results = []
    for i in range(len(jobs)):
        with np.load(folder / f"{i}.npz") as arrays:
            results.append({int(k): arrays[k] for k in arrays.files})
    return results


def _one(folder: Path, i: int, resolver: str) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_path=str(folder / f"{i}.tflite"),
        experimental_op_resolver_type=getattr(OpResolverType, resolver),
        experimental_preserve_all_tensors=True,
        num_threads=1,
    )
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    values: dict[str, list[Any]] = {}
    for x in np.load(folder / f"{i}.npy"):
        interpreter.set_tensor(entry["index"], x[None].astype(entry["dtype"]))
        interpreter.invoke()
        for detail in interpreter.get_tensor_details():
            if len(detail["shape"]) and detail["dtype"] in (np.int8, np.uint8, np.int16):
                value = _value(interpreter, detail["index"])
                if value is not None and value.shape[0] == 1:
                    values.setdefault(str(detail["index"]), []).append(value)
    np.savez(folder / f"{i}.npz", **{k: np.concatenate(v) for k, v in values.items()})


def _value(interpreter: Any, index: int) -> Any:
    try:
        return interpreter.get_tensor(index).copy()
    except ValueError:
        return None  # a tensor that a delegate left out


if __name__ == "__main__":
    work = Path(sys.argv[1])
    for number, name in enumerate(json.loads((work / "jobs.json").read_text())):
        _one(work, number, name)
