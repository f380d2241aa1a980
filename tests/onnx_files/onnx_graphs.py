"""Small graphs in the words of onnx.helper, for the reader's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


class Graph:
    """Nodes appended one after the other; the last tensor is the output."""

    def __init__(self, shape: tuple[int, ...], elem_type: int = FLOAT, opset: int = 21) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.input = helper.make_tensor_value_info("x", elem_type, ["n", *shape])
        self.last = "x"
        self.opset = opset
        self.annotations: list[Any] = []

    def const(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        proto = (
            values
            if hasattr(values, "dims")
            else numpy_helper.from_array(np.asarray(values, dtype=dtype))
        )
        proto.name = name
        self.initializers.append(proto)
        return name

    def add(
        self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> str:
        names = [f"t{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        feeds = [self.last, *inputs] if not inputs or inputs[0] != "" else list(inputs[1:])
        self.nodes.append(
            helper.make_node(
                op, feeds, names, name=f"{op}_{len(self.nodes)}", domain=domain, **attributes
            )
        )
        self.last = names[0]
        return self.last

    def quantize(
        self, scale: Any, zero: Any = 0, dtype: Any = np.int8, clip: Any = None, **kw: Any
    ) -> str:
        """QuantizeLinear, Clip, DequantizeLinear."""
        s, z = self.const(scale), self.const(np.broadcast_to(zero, np.shape(scale)), dtype)
        self.add("QuantizeLinear", s, z, **kw)
        if clip is not None:
            self.add("Clip", *(self.const(c, dtype) for c in clip))
        return self.add("DequantizeLinear", s, z, **kw)

    def codes(self, scale: float, zero: int = 0, dtype: Any = np.int8) -> str:
        """The output: the codes of a last QuantizeLinear."""
        return self.add("QuantizeLinear", self.const(scale), self.const(zero, dtype))

    def model(self, output_type: int = TensorProto.INT8, output: str | None = None) -> Any:
        result = helper.make_empty_tensor_value_info(output or self.last)
        if output_type:
            result.type.tensor_type.elem_type = output_type
        graph = helper.make_graph(self.nodes, "g", [self.input], [result], self.initializers)
        graph.quantization_annotation.extend(self.annotations)
        opsets = [helper.make_opsetid("", self.opset)]
        domains = {n.domain for n in self.nodes} - {""}
        opsets += [helper.make_opsetid(d, 1) for d in domains]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
