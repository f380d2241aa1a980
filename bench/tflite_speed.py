"""How fast is the integer program of a TFLite model, beside the runtime that it is made for?

Network.forward of `from_tflite(path, runtime="xnnpack")` and of "tflite_ref" against LiteRT's
interpreter with XNNPACK and with its reference kernels, one thread each, at batch 1 and 64, int8
codes in and out; the least of five turns.  Before anything is timed, all outputs are compared with
those of the kernels that the profile describes.

    python bench/tflite_speed.py MODEL.tflite ...   # seconds a model; names and ratios written
"""

# ruff: noqa: E402

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy is loaded

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from common import Call, seconds, write_results
from numpy.typing import NDArray

import refqnn

BATCHES, TURNS = (1, 64), 5
KERNELS = {"xnnpack": OpResolverType.BUILTIN, "tflite_ref": OpResolverType.BUILTIN_REF}


def interpreter(path: Path, runtime: str, batch: int) -> Interpreter:
    made = Interpreter(str(path), num_threads=1, experimental_op_resolver_type=KERNELS[runtime])
    (one,) = made.get_input_details()
    made.resize_tensor_input(one["index"], [batch, *one["shape"][1:]])
    made.allocate_tensors()
    return made


def called(made: Interpreter, codes: NDArray[np.int8]) -> NDArray[np.int8]:
    made.set_tensor(made.get_input_details()[0]["index"], codes)
    made.invoke()
    return np.array(made.get_tensor(made.get_output_details()[0]["index"]))


def compared(path: Path) -> list[dict[str, Any]]:
    """Of one model: a result for each runtime and batch."""
    results = []
    for runtime in KERNELS:
        network = refqnn.from_tflite(path, runtime=runtime)
        for batch in BATCHES:
            made = interpreter(path, runtime, batch)
            (one,) = made.get_input_details()
            rng = np.random.default_rng(0)
            codes = rng.integers(-128, 128, (batch, *one["shape"][1:])).astype(np.int8)
            ours = codes.reshape(batch, *network.input_shape)
            expected = called(made, codes).reshape(batch, -1)
            agreement = np.mean(network.forward(ours).reshape(batch, -1) == expected)
            calls: dict[str, Call] = {
                "refqnn": lambda network=network, ours=ours: network.forward(ours),
                "LiteRT": lambda made=made, codes=codes: called(made, codes),
            }
            best = {
                name: min(seconds(call)[0] for _ in range(TURNS)) for name, call in calls.items()
            }
            results.append(
                {
                    "model": path.stem,
                    "runtime": runtime,
                    "batch": batch,
                    "agreement": float(agreement),
                    "seconds": best,
                    "ratio": best["refqnn"] / best["LiteRT"],
                }
            )
            times = ", ".join(f"{name} {1e3 * t:.3f} ms" for name, t in best.items())
            print(
                f"{path.stem} {runtime} batch {batch}: {times}, "
                f"ratio {results[-1]['ratio']:.2f}, equal {agreement:.3f}"
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="int8 models")
    models = parser.parse_args().models
    results = [result for path in models for result in compared(path)]
    write_results("tflite_speed", {"what": __doc__.splitlines()[0], "results": results})


if __name__ == "__main__":
    main()
