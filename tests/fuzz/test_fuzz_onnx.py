"""ONNX models whose bytes or whose messages were changed: a network that computes, or our error."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pytest
from fuzzing import fuzz, mutated_bytes

from refqnn import (
    Conv2d,
    Dequantizer,
    Flatten,
    IntFormat,
    Linear,
    Network,
    Node,
    PowerOfTwoQuantizer,
    Requantize,
)

pytest.importorskip("onnx")

from refqnn.onnx import FLAVOURS, from_onnx, to_onnx

SPEEDS = [False, pytest.param(True, marks=pytest.mark.slow)]


@functools.cache
def models() -> tuple[Any, ...]:
    fmt = IntFormat(3, signed=False)
    network = Network(
        [
            Node("conv", Conv2d([[[[1, -1], [2, 1]]]], [1], padding=1)),
            Node("act", Requantize.from_shift(2, IntFormat(2, signed=False))),
            Node("flat", Flatten()),
            Node("fc", Linear(np.arange(-9, 9).reshape(2, 9) % 5 - 2)),
        ],
        input_shape=(1, 2, 2),
        input_quantizer=PowerOfTwoQuantizer(-1, fmt, "half_even"),
        output_dequantizer=Dequantizer(0.5, [0.0, 1.0]),
    )
    return tuple(to_onnx(network, flavour=flavour) for flavour in FLAVOURS)


@functools.cache
def serialized() -> tuple[bytes, ...]:
    return tuple(model.SerializeToString() for model in models())


def messages_of(message: Any) -> list[Any]:
    """The message and all inside."""
    found, waiting = [], [message]
    while waiting:
        item = waiting.pop()
        found.append(item)
        for field, value in item.ListFields():
            if field.type != field.TYPE_MESSAGE:
                continue
            waiting += [value] if hasattr(value, "ListFields") else list(value)
    return found


NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 32, 2**20, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63))
FLOATS = (0.0, 1.0, -1.0, 0.5, 0.3, 1e-45, 1e38, float("inf"), float("nan"))


def mutated_message(model: Any, rng: random.Random) -> Any:
    model = type(model).FromString(model.SerializeToString())
    for _ in range(rng.randint(1, 3)):
        parts = messages_of(model)
        message = rng.choice(parts)
        fields = [(f, v) for f, v in message.ListFields()]
        if not fields:
            continue
        field, value = rng.choice(fields)
        many = not isinstance(value, (int, float, str, bytes)) and not hasattr(value, "ListFields")
        if rng.random() < 0.15:
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            alike = [p for p in parts if type(p) is (type(value[0]) if many else type(value))]
            other = rng.choice(alike).SerializeToString()
            target = rng.choice(value) if many else value
            if many and rng.random() < 0.3:
                target = value.add()
            elif many and rng.random() < 0.3:
                del value[rng.randrange(len(value))]
                continue
            target.ParseFromString(other)
        else:
            old = value[rng.randrange(len(value))] if many else value
            new = replacement(old, parts, rng)
            try:
                if not many:
                    setattr(message, field.name, new)
                elif rng.random() < 0.7:
                    value[rng.randrange(len(value))] = new
                elif rng.random() < 0.5:
                    value.append(new)
                else:
                    del value[rng.randrange(len(value))]
            except (ValueError, TypeError):
                continue  # the field cannot hold it
    return model


def replacement(old: Any, parts: list[Any], rng: random.Random) -> Any:
    if isinstance(old, int):
        return rng.choice((old + 1, old - 1, *NUMBERS))
    if isinstance(old, float):
        return rng.choice((old * 2, -old, *FLOATS))
    if isinstance(old, bytes):
        return mutated_bytes(old, rng)
    names = [p.name for p in parts if getattr(p, "name", "")]
    kinds = [p.op_type for p in parts if hasattr(p, "op_type")]
    return rng.choice(
        [*names, *kinds, "", "Relu", "Add", "Sigmoid", "Reshape", "Transpose", "\x00"]
    )


def check(network: Network) -> None:
    if max(np.prod(shape, dtype=float) for shape in network.shapes.values()) > 1e4:
        return
    fmt = network.input_format
    codes = np.full((1, *network.input_shape), fmt.q_max)
    assert network.forward(codes).shape[1:] == network.shapes[network.output]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("slow", SPEEDS)
def test_bytes(slow: bool) -> None:
    def make(rng: random.Random) -> bytes:
        return mutated_bytes(rng.choice(serialized()), rng)

    fuzz("ONNX bytes", slow, make, lambda data: check(from_onnx(data)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("slow", SPEEDS)
def test_messages(slow: bool) -> None:
    def make(rng: random.Random) -> Any:
        return mutated_message(rng.choice(models()), rng)

    ends = fuzz("ONNX message", slow, make, lambda model: check(from_onnx(model)))
    assert ends["accepted"] > 0
    assert ends["NotCovered"] > 0
