"""What a module writes in place, and what its trace does not show: refused by name.

A trace has no order of its own: a tensor that is written to after it was made, and read again,
would be read as it was.  So its reader is refused, with the name of the operation that wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import pytest
import torch
import torch.nn.functional as F
from strict_parts import STRICT, Forward, assert_exact, ready, signed
from torch import Tensor, nn

from refqnn.brevitas import from_brevitas
from refqnn.errors import NotCovered


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def fc_like(n: int) -> nn.Module:
    return qnn.QuantLinear(n, 2, **STRICT)


# --- every method of a tensor that writes in place ----------------------------------------------

# Of these, what does not write the values.
HARMLESS = {"requires_grad_", "detach_", "share_memory_", "retain_grad_", "rename_"}
METHODS = sorted(n for n in dir(Tensor) if n.endswith("_") and not n.startswith("_"))
FEW = torch.tensor([0, 1])
# Arguments to try, until the method takes them on [3, 2].
ARGUMENTS: tuple[tuple[Any, ...], ...] = (
    (),
    (0.5,),
    (2,),
    (0.25, 0.75),
    (0, 1),
    (1, FEW, 0.5),
    (1, FEW[:1], torch.ones(3, 1)),
    (1, FEW.repeat(3, 1), 0.5),
    (1, FEW.repeat(3, 1), torch.ones(3, 2)),
    (1, FEW.repeat(3, 1), torch.ones(3, 2), "sum"),
    (1, FEW[:1], torch.ones(3, 1), "mean"),
    (torch.ones(3, 2),),
    (torch.ones(3, 2, dtype=torch.bool),),
    (torch.ones(3, 2, dtype=torch.bool), 0.5),
    (torch.ones(3, 2, dtype=torch.bool), torch.ones(6)),
    (torch.ones(3, 2), torch.ones(3, 2)),
    (torch.ones(3, 2), 0.5),
    (torch.ones(3, 3), torch.ones(3, 2)),
    (torch.ones(3), torch.ones(2)),
    (FEW, torch.ones(2)),
    ((FEW, FEW), torch.ones(2)),
    ((3, 2), (2, 1)),
    ((1, 0),),
    ("reciprocal",),
)


def arguments_of(method: str) -> tuple[Any, ...] | None:
    """The first arguments that the method takes."""
    for arguments in ARGUMENTS:
        try:
            getattr(torch.zeros(3, 2), method)(*arguments)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            continue
        return arguments
    return None


TAKEN = {m: a for m in METHODS if (a := arguments_of(m)) is not None}


def test_nearly_every_method_is_called() -> None:
    """The others want integers, a sparse tensor, or two names."""
    assert len(TAKEN) > 100
    assert {
        "add_",
        "mul_",
        "relu_",
        "clamp_",
        "zero_",
        "copy_",
        "masked_fill_",
        "t_",
    } <= TAKEN.keys()


def written(method: str) -> Callable[[Any, Tensor], Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.act(m.fc(m.quant(x)))
        getattr(a, method)(*TAKEN[method])
        return m.out(a)

    return forward


def written_and_read_twice(method: str) -> Callable[[Any, Tensor], Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.act(m.fc(m.quant(x)))
        b = getattr(a, method)(*TAKEN[method])
        return m.out(b) + m.out(a)

    return forward


EVERY = [(written_and_read_twice, method) for method in sorted(TAKEN.keys() - HARMLESS)]
SOME = [(written, m) for m in ("add_", "clamp_", "copy_", "fill_", "masked_fill_", "neg_", "t_")]


@pytest.mark.parametrize(("forward", "method"), EVERY + SOME)
def test_a_tensor_that_a_method_has_written_to_is_refused_by_name(
    forward: Callable[[str], Callable[..., Tensor]], method: str
) -> None:
    module = Forward(forward(method), **_in_place_parts()).eval()
    with pytest.raises(NotCovered, match=f"{method}\\b"):
        from_brevitas(module, torch.randn(3, 4))


@pytest.mark.parametrize("method", TAKEN.keys() & {"requires_grad_", "detach_", "share_memory_"})
def test_what_writes_nothing_is_read(method: str) -> None:
    assert_exact(*ready(Forward(written(method), **_in_place_parts()), 4))


# --- and every other way to write ---------------------------------------------------------------


class Doubling(nn.Module):
    """Writes, without a word of it in its arguments."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] *= 2
        return x


def _assigned(m: Any, a: Tensor) -> Tensor:
    a[:, 0] = 0
    return m.out(a)


def _assigned_to_a_view(m: Any, a: Tensor) -> Tensor:
    a[:, :1][:, 0] = 0
    return m.out(a)


def _added(m: Any, a: Tensor) -> Tensor:
    b = a
    a += 1
    return m.out(a) + m.out(b)


def _raised(m: Any, a: Tensor) -> Tensor:
    b = a.view(-1, 2)
    b **= 2
    return m.out(a)


def _by_position(m: Any, a: Tensor) -> Tensor:
    return m.out(F.relu(a, True)) + m.out(a)


def _into_out(m: Any, a: Tensor) -> Tensor:
    b = a.clone()
    torch.mul(a, 2.0, out=b)
    return m.out(b)


def _by_a_function(m: Any, a: Tensor) -> Tensor:
    return m.out(F.relu_(a)) + m.out(a)


def _by_a_part(m: Any, a: Tensor) -> Tensor:
    return m.out(m.doubling(a)) + m.out(a)


def _through_another_name(m: Any, a: Tensor) -> Tensor:
    a.to(torch.float32).mul_(2.0)
    return m.out(a)


def _into_a_constant(m: Any, a: Tensor) -> Tensor:
    return m.out(a + torch.ones(3, 2).mul_(a))


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (_assigned, "setitem"),
        (_assigned_to_a_view, "setitem"),
        (_added, "iadd"),
        (_raised, "ipow"),
        (_by_position, "relu"),
        (_into_out, "mul"),
        (_by_a_function, "relu_"),
        (_by_a_part, "doubling"),
        (_through_another_name, "mul_"),
        (_into_a_constant, "mul_"),
    ],
)
def test_every_other_way_to_write_is_refused_by_name(
    forward: Callable[[Any, Tensor], Tensor], name: str
) -> None:
    module = Forward(
        lambda m, x: forward(m, m.act(m.fc(m.quant(x)))),
        doubling=Doubling(),
        **_in_place_parts(),
    )
    with pytest.raises(
        NotCovered, match=rf"\b{name}\b.*(has changed in place|writes|two quantized)"
    ):
        from_brevitas(module.eval(), torch.randn(3, 4))


def test_copies_are_no_views() -> None:
    """What has moved to memory of its own may be written to."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.act(m.fc(m.quant(x)))
        b = a.flip(1)
        b += 1
        return m.out(b) + m.out(a)

    assert_exact(*ready(Forward(forward, **_in_place_parts()), 4))


# --- one by one ---------------------------------------------------------------------------------


def _clamped(m: Any, x: Tensor) -> Tensor:
    a = m.act(m.fc(m.quant(x)))
    a.clamp_(min=0)
    return m.out(a)


def _view_changed(m: Any, x: Tensor) -> Tensor:
    a = m.act(m.fc(m.quant(x)))
    a.view(-1, 2).mul_(2.0)
    return m.out(a)


def _changed_by_a_module(m: Any, x: Tensor) -> Tensor:
    a = m.act(m.fc(m.quant(x)))
    b = m.relu(a)
    return m.out(a) + m.out(b)


def _masked(m: Any, x: Tensor) -> Tensor:
    a = m.act(m.fc(m.quant(x)))
    y = torch.zeros_like(a)
    y[a > 0.5] = 1.0
    return m.out(y)


def _changed_inside_a_part(m: Any, x: Tensor) -> Tensor:
    a = m.act(m.fc(m.quant(x)))
    b = m.part(a)
    return m.out(b) + m.out(a)


def _in_place_parts() -> dict[str, nn.Module]:
    def part(m: Any, x: Tensor) -> Tensor:
        return m.inner(x.mul_(0.5))

    plain = qnn.QuantIdentity(bq.Int8ActPerTensorFixedPoint, bit_width=4)
    return {
        "quant": signed(),
        "fc": fc_like(4),
        "act": plain,
        "out": signed(),
        "relu": nn.ReLU(inplace=True),
        "part": Forward(part, inner=signed()),
    }


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (_clamped, "^out .*clamp_ has changed in place"),
        (_view_changed, "^out .*mul_ has changed in place"),
        (_changed_by_a_module, "^out .*relu has changed in place"),
        (_masked, "^out .*setitem has changed in place"),
        (_changed_inside_a_part, "^out.*mul_ has changed in place"),
    ],
)
def test_reading_what_was_overwritten_is_refused(forward: Any, message: str) -> None:
    module = Forward(forward, **_in_place_parts()).eval()
    for sample in (torch.zeros(1, 4), torch.randn(50, 4) * 3):
        with pytest.raises(NotCovered, match=message):
            from_brevitas(module, sample)


def test_results_in_place_are_read() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.act(m.fc(m.quant(x)))
        b = a.clone()
        a = a.clamp_(min=0)
        a += b
        return m.out(a)

    module, x = ready(Forward(forward, **_in_place_parts()), 4)
    before = x.clone()
    assert_exact(module, x)
    assert torch.equal(x, before)


# --- what the trace does not show ---------------------------------------------------------------


def test_one_example_does_not_hide_what_another_shows() -> None:
    """A hook that acts on large values only."""
    module, _ = ready(nn.Sequential(signed(), fc_like(4), signed(), fc_like(2)), 4)
    module[1].register_forward_hook(lambda part, inputs, y: torch.where(y > y.std(), y + 9.0, y))
    with pytest.raises(NotCovered, match=r"^2: .*its trace does not show"):
        from_brevitas(module, torch.zeros(1, 4))
