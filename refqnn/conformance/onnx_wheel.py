"""The old path of `refqnn.conformance.making.onnx_wheel`."""

from refqnn.conformance.making.onnx_wheel import *  # noqa: F403
