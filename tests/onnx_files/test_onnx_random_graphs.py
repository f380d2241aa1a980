"""Random small graphs of every operator of the reader, against onnxruntime and onnx's reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto
from onnx_networks import run_onnxruntime
from onnx_random_graphs import RandomGraph
from onnx_random_images import RandomImage

from refqnn.errors import NotCovered
from refqnn.onnx import from_onnx
from refqnn.onnx.operators import TABLE

WINDOWS = {
    "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "GlobalMaxPool", "MaxPool",
    "QLinearConv",
}  # fmt: skip
GENERATORS = {"values": RandomGraph, "images": RandomImage}

# What a random graph may be refused for; every reason is checked to be one of these.
REASONS = (
    "too many to list", "more than 32 bits", "quantize it first", "are not all in",
    "different ways", "does not depend on x", "quantize each operand first",
    "varies inside a channel", "no code stands for", "times a matrix",
    "scales of their own",
)  # fmt: skip


FAILURES = {  # of its optimizer
    "does not match y_zero_point type": "moves a quantizer and loses its type",
    "int4)' of input parameter": "moves a quantizer of 4 bits",
    "Unexpected data type for QuantizeLinear": "knows no quantizer of 4 bits",
    "Unexpected data type for Clip": "does not fuse Relu and Clip of integers",
}


def optimized(model: Any, X: np.ndarray) -> np.ndarray | str:
    """With all optimizations; a float bias that one of them rounds is left alone."""
    return runtime(model, X, "ORT_ENABLE_ALL", ("WeightBiasQuantization",))


def runtime(
    model: Any, X: np.ndarray, level: str = "ORT_DISABLE_ALL", disabled: tuple[str, ...] = ()
) -> np.ndarray | str:
    """What onnxruntime computes, or why it does not."""
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    try:
        return run_onnxruntime(model, X, level, disabled)
    except states.NotImplemented:
        return "lacks an operator"
    except (states.Fail, states.InvalidGraph) as error:
        assert level == "ORT_ENABLE_ALL"
        return next(answer for told, answer in FAILURES.items() if told in str(error))


def reference(model: Any, X: np.ndarray) -> np.ndarray | str:
    """What onnx's reference evaluator computes, or why it does not."""
    from onnx.reference import ReferenceEvaluator

    kinds = {node.op_type for node in model.graph.node}
    if "QLinearMatMul" in kinds:
        return "rounds QLinearMatMul otherwise"  # it adds the zero point before: other ties
    if kinds & WINDOWS:  # other shapes with auto_pad, the least code as NaN, keepdims lost
        return "computes windows otherwise"
    try:
        return ReferenceEvaluator(model).run(None, {"x": X})[0]
    except NotImplementedError:
        return "lacks an operator"


def clips_64_bits(model: Any) -> bool:
    """The runtime clips 64-bit integers by their lowest 32 bits: 4294966189 in [32, 43] is 32.

    So do its Min and Max, at some places of a tensor: of 2**31 and 32767 the least is 2**31.
    """
    to = [node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"]
    return TensorProto.INT64 in to and any(
        node.op_type in ("Clip", "Min", "Max") for node in model.graph.node
    )


def quantizes_32_bits(model: Any) -> bool:
    """The reference quantizes floats by way of int32: 3e9 becomes the code of -2**31."""
    wide = (TensorProto.UINT32, TensorProto.INT64)
    nodes = model.graph.node
    made = any(n.op_type == "Cast" and n.attribute[0].i in wide for n in nodes)
    return made and any(n.op_type == "QuantizeLinear" for n in nodes)


PEERS: dict[str, Callable[..., np.ndarray | str]] = {
    "runtime": runtime,
    "optimized": optimized,
    "reference": reference,
}


def ending(generator: type[RandomGraph], seed: int, counts: Counter[str]) -> None:
    """Counts how a random graph ends: equal in each peer that computes it, or refused and why."""
    rng = np.random.default_rng(seed)
    graph = generator(rng, int(rng.integers(1, 7)))
    model, X = graph.model(), graph.samples(60)
    try:
        network = from_onnx(model)
    except NotCovered as error:
        counts[next((r for r in REASONS if r in str(error)), f"{seed}: {error}")] += 1
        return
    acc = network.forward(X)
    ours = network.dequantize_output(acc) if graph.dtype == "FLOAT" else acc
    for peer, run in PEERS.items():
        answer = run(model, X)
        if not isinstance(answer, str):
            narrow = peer != "reference" and clips_64_bits(model)
            if narrow and not np.array_equal(ours, answer):
                np.testing.assert_array_equal(ours, reference(model, X), f"seed {seed}")
                answer = "clips integers beyond 32 bits otherwise"
            elif peer == "reference" and quantizes_32_bits(model) and (ours != answer).any():
                answer = "quantizes floats beyond 32 bits otherwise"
            else:
                np.testing.assert_array_equal(ours, answer, f"seed {seed}, {peer}")
                answer = "equal"
        counts[f"{peer}: {answer}"] += 1


@pytest.mark.parametrize("count", [150, pytest.param(50_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", GENERATORS)
def test_random_graphs(kind, count):
    counts: Counter[str] = Counter()
    for seed in range(count):
        ending(GENERATORS[kind], seed, counts)
    print(kind, dict(counts))
    refused = {k: n for k, n in counts.items() if k.partition(":")[0] not in PEERS}
    assert set(refused) <= set(REASONS)
    assert sum(refused.values()) < 0.02 * count
    assert min(counts["runtime: equal"], counts["optimized: equal"]) > 0.9 * count
    if kind == "values":
        assert counts["reference: equal"] > 0.75 * count


# Operators that the runtime has not, or that are left out behind the output; tested elsewhere.
NOT_DRAWN = {
    *(key for key in TABLE if key.startswith("qonnx.")), "RequantShift", "PACTOps.RequantShift",
    "ArgMax", "ArgMin", "Hardmax", "LogSoftmax", "Softmax", "TopK", "com.microsoft.QLinearSoftmax",
    "Upsample",  # of files of 2018
}  # fmt: skip


def test_every_operator_of_the_reader_is_drawn():
    drawn: Counter[str] = Counter()
    for generator in GENERATORS.values():
        for seed in range(1500):
            nodes = generator(np.random.default_rng(seed), 8).nodes
            drawn.update({f"{n.domain}.{n.op_type}".lstrip(".") for n in nodes})
    assert {*TABLE} - NOT_DRAWN <= {*drawn}
    assert min(drawn[key] for key in {*TABLE} - NOT_DRAWN) > 5, drawn
