"""The input quantizer is found by its function, not by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from brevitas.core.function_wrapper import (
    CeilSte,
    DPURoundSte,
    FloorSte,
    Identity,
    RoundSte,
    RoundToZeroSte,
)
from brevitas.core.quant import IntQuant
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refqnn.brevitas.door import _first_floats, input_quantizer
from refqnn.errors import NotCovered
from refqnn.formats import IntFormat
from refqnn.training.quantizers import HalfUpRoundSte

ROUNDINGS = {
    "half_even": RoundSte,
    "half_up": HalfUpRoundSte,
    "floor": FloorSte,
    "ceil": CeilSte,
    "toward_zero": RoundToZeroSte,
}


def brevitas_codes(fmt: IntFormat, rounding: Any, scale: float, zero_point: int) -> Any:
    """Brevitas's own arithmetic as a function from float32 to codes."""
    quant = IntQuant(
        signed=fmt.signed,
        narrow_range=fmt.narrow,
        input_view_impl=Identity(),
        float_to_int_impl=rounding(),
    )
    s, z, b = torch.tensor(scale), torch.tensor(float(zero_point)), torch.tensor(float(fmt.bits))

    def function(x: Tensor) -> Tensor:
        return quant.to_int(s, z, b, x).to(torch.int64)

    return function


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    bits=st.integers(2, 8),
    signed=st.booleans(),
    narrow=st.booleans(),
    mode=st.sampled_from(sorted(ROUNDINGS)),
    scale=st.one_of(
        st.floats(2.0**-20, 2.0**20, width=32), st.integers(-20, 20).map(lambda e: 2.0**e)
    ),
    named=st.sampled_from([None, "ROUND", "FLOOR", "CEIL"]),
)
def test_every_mode_is_recognised(
    data: Any, bits: int, signed: bool, narrow: bool, mode: str, scale: float, named: str | None
) -> None:
    fmt = IntFormat(bits, signed, narrow)
    zero_point = data.draw(st.sampled_from([0, fmt.q_max // 2]))
    theirs = brevitas_codes(fmt, ROUNDINGS[mode], scale, zero_point)
    found = input_quantizer(
        theirs, scale, zero_point, fmt, named=named, layer="quant", proxy="proxy"
    )
    rng = np.random.default_rng(0)
    halves = np.arange(2 * fmt.q_min - 4, 2 * fmt.q_max + 4) / 2 * np.float32(scale)
    x = np.concatenate([halves, rng.normal(0, fmt.q_max * scale, 500)]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), -x, [0.0, -0.0, 3e38, -3e38]])
    x = x.astype(np.float32)
    assert np.array_equal(found.quantize(x), theirs(torch.from_numpy(x)).numpy())


def test_a_function_of_no_mode_is_refused() -> None:
    fmt = IntFormat(4, signed=True)
    with pytest.raises(NotCovered, match=r"^quant \(proxy\)"):
        input_quantizer(
            brevitas_codes(fmt, DPURoundSte, 0.5, 0),
            0.5,
            0,
            fmt,
            named="DPU",
            layer="quant",
            proxy="proxy",
        )


def test_first_floats_of_a_step_function() -> None:
    fmt = IntFormat(2, signed=False)
    first = _first_floats(lambda x: np.clip(np.floor(x), 0, 3).astype(np.int64), fmt)
    assert first.tolist() == [1.0, 2.0, 3.0]
