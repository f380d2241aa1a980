"""The sign-split accumulator budget of `refqnn.pruning`, inside training.

The forward pass uses the projected integers, the backward pass is straight-through: a weight that
the budget holds back still receives its gradient and may win its place from another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from refqnn.emulate import Accumulator
from refqnn.errors import InvalidArgument, mismatch
from refqnn.pruning import Register, registers

Budget = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # P, N of each row -> P_max, N_max

__all__ = ["SignSplit", "project_ste", "projected", "shrink_"]


def project_ste(
    weight: Tensor, bias: Tensor | None, input_range: tuple[int, int], bits: int | Accumulator
) -> Tensor:
    """`projected`, straight-through: value of the projection, gradient of the identity."""
    return weight + (projected(weight, bias, input_range, bits) - weight).detach()


@torch.no_grad()
def projected(
    weight: Tensor, bias: Tensor | None, input_range: tuple[int, int], bits: int | Accumulator
) -> Tensor:
    """Integer weights whose accumulators fit signed `bits`; `refqnn.pruning.project` for tensors.

    Args:
        weight: floats [out, ...] in units of the integer weights.
        bias: integer-valued [out], in units of the accumulator, or None.  A bias that does not fit
            by itself leaves an empty budget.
        input_range: inclusive (lo, hi) of every input.
        bits: two's complement width, 2 to 53; or an `Accumulator` of such widths.

    Returns: integer values in the dtype and shape of weight.

    >>> projected(torch.tensor([[3.0, 2.6, -3.0, 0.4]]), torch.tensor([10.0]), (0, 7), 6)
    tensor([[ 2.,  1., -3.,  0.]])
    """
    fitted = _in_tiles(weight, bias, input_range, bits, _projected)
    return fitted.to(weight.dtype).view_as(weight)


@torch.no_grad()
def shrink_(
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    input_range: tuple[int, int],
    bits: int | Accumulator,
) -> None:
    """Pull real weights into their budget, in place, without rounding: call it after each step.

    Projected gradient descent: the weights stay near the integers that the forward pass makes of
    them, which keeps the straight-through gradient honest.

    Args:
        weight: floats [out, ...].
        scale: value of one integer step, a scalar or [out, 1, ...].
        bias, input_range, bits: as for `projected`.
    """
    fitted = _in_tiles(weight / scale, bias, input_range, bits, _shrunk)
    weight.copy_(fitted.to(weight.dtype).view_as(weight) * scale)


def _in_tiles(
    weight: Tensor,
    bias: Tensor | None,
    input_range: tuple[int, int],
    bits: int | Accumulator,
    fit: Callable[[Tensor, Budget], Tensor],
) -> Tensor:
    """Rows [out, K] that every register holds, the innermost first."""
    rows = weight.detach().flatten(1).double()
    terms = rows.shape[1]
    order = torch.arange(terms)
    if isinstance(bits, Accumulator):
        order = torch.from_numpy(bits.places(terms, weight.shape[1]).copy())
    elif not 2 <= bits <= 53:
        raise InvalidArgument(mismatch("bits", bits, "an integer from 2 to 53"))
    rows = rows[:, order]
    for register in registers(bits):
        size = register.products or terms
        tiles = pad(rows, (0, -terms % size)).view(-1, size)
        b = torch.zeros(len(tiles), dtype=torch.float64)
        if register.products is None and bias is not None:
            b = bias.detach().double()
        budget = partial(_budgets, room=_room(register, b), input_range=input_range)
        rows = fit(tiles, budget).view(len(rows), -1)[:, :terms]
    return torch.empty_like(rows).index_copy_(1, order, rows)


def _room(register: Register, bias: Tensor) -> tuple[Tensor, Tensor]:
    """See `Register.room`; an empty budget where the bias does not fit by itself."""
    q_min, q_max = float(register.q_min), float(register.q_max)
    b = torch.zeros_like(bias) if register.bias == "none" else bias
    up, down = q_max - b, b - q_min
    if register.bias == "any":
        up, down = up.clamp(max=q_max), down.clamp(max=-q_min)
    return up.clamp(min=0), down.clamp(min=0)


def _projected(rows: Tensor, budget: Budget) -> Tensor:
    codes = rows.round()
    P, N = codes.clamp(min=0).sum(1), (-codes).clamp(min=0).sum(1)
    P_max, N_max = budget(P, N)
    positive = torch.where(
        (P_max >= P)[:, None], codes.clamp(min=0), _fit(rows.clamp(min=0), P_max)
    )
    negative = torch.where(
        (N_max >= N)[:, None], (-codes).clamp(min=0), _fit((-rows).clamp(min=0), N_max)
    )
    return positive - negative


def _shrunk(rows: Tensor, budget: Budget) -> Tensor:
    positive, negative = rows.clamp(min=0), (-rows).clamp(min=0)
    P_max, N_max = budget(positive.sum(1).ceil(), negative.sum(1).ceil())
    return _onto_simplex(positive, P_max) - _onto_simplex(negative, N_max)


def _budgets(
    P: Tensor, N: Tensor, room: tuple[Tensor, Tensor], input_range: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """See `refqnn.pruning.sign_budgets`; float64 holds every integer here."""
    s, t = float(max(0, -input_range[0])), float(max(0, input_range[1]))
    up, down = room
    fits = (t * P + s * N <= up) & (s * P + t * N <= down)
    if s == 0 and t == 0:
        return P, N
    if s == 0:
        P_max, N_max = (up / t).floor(), (down / t).floor()
    elif t == 0:
        P_max, N_max = (down / s).floor(), (up / s).floor()
    else:
        P_max, N_max = P, N
        for limit, need in ((up, t * P + s * N), (down, s * P + t * N)):
            binds = need > limit
            P_max = torch.where(binds, torch.minimum(P_max, _share(P, limit, need)), P_max)
            N_max = torch.where(binds, torch.minimum(N_max, _share(N, limit, need)), N_max)
    return torch.where(fits, P, torch.minimum(P, P_max)), torch.where(
        fits, N, torch.minimum(N, N_max)
    )


def _share(sums: Tensor, limit: Tensor, need: Tensor) -> Tensor:
    """floor(sums * limit / need); at times one less where float64 does not hold the product."""
    product, need = sums * limit, need.clamp(min=1)
    exact = torch.div(product, need, rounding_mode="floor")
    below = (product / need * (1 - 2.0**-50)).floor()
    return torch.where(product <= 2.0**53, exact, below)


def _fit(part: Tensor, budget: Tensor) -> Tensor:
    """The integers nearest to each row whose rounded sum exceeds its budget, with that sum.

    K v - T stands for v - tau: where float64 holds it, equal remainders are equal and the result is
    that of `refqnn.pruning.project`.
    """
    T, K = _simplex(part, budget)
    shifted = (K * part - T).clamp(min=0)
    down = torch.div(shifted, K, rounding_mode="floor")
    remainder = shifted - K * down
    missing = (budget - down.sum(1))[:, None]
    rank = (-remainder).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    result = down + ((rank < missing) & (remainder > 0))
    excess = (result.sum(1) - budget)[:, None]  # of sums that float64 did not hold
    order = torch.where(result > 0, result, torch.full_like(result, torch.inf))
    rank = order.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return result - ((rank < excess) & (result > 0)).to(result.dtype)


def _onto_simplex(part: Tensor, budget: Tensor) -> Tensor:
    """Each row's nearest point with non-negative entries and a sum of at most its budget."""
    T, K = _simplex(part, budget)
    return (part - T / K).clamp(min=0)


def _simplex(part: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
    """T and K of tau = T / K >= 0, see `refqnn.pruning`; [out, 1] each."""
    descending = part.sort(dim=1, descending=True).values
    count = torch.arange(1, part.shape[1] + 1, dtype=part.dtype)
    excess = descending.cumsum(1) - budget[:, None]
    best = (excess / count).argmax(1, keepdim=True)
    return excess.gather(1, best).clamp(min=0), count[best]


class SignSplit(nn.Module):
    """Weight transform: project each row so that its accumulator fits, straight-through.

    Add it with `refqnn.training.quantizers.add_weight_transform`, last: what it returns is an
    integer multiple of the scale, which the layer's quantizer leaves alone as long as that scale is
    the same and no code leaves the format.

    Args:
        scale: returns the scale of the quantized weights, a scalar or [out, 1, ...].
        input_range: inclusive (lo, hi) of the input codes.
        bits: two's complement width of the accumulator, or an `Accumulator`.
        bias: returns the integer bias [out] in units of the accumulator; None: there is none.
        weight_range: (lo, hi) of the weight codes; values are clamped to it first.

    >>> budget = SignSplit(lambda: torch.tensor(0.5), (0, 7), 6)
    >>> budget(torch.tensor([[1.5, 1.5, -1.5]]))
    tensor([[ 1.0000,  1.0000, -1.5000]])
    """

    def __init__(
        self,
        scale: Callable[[], Tensor],
        input_range: tuple[int, int],
        bits: int | Accumulator,
        *,
        bias: Callable[[], Tensor] | None = None,
        weight_range: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.input_range = input_range
        self.bits = bits
        self.bias = bias
        self.weight_range = weight_range

    def forward(self, weight: Tensor) -> Tensor:
        scale = self.scale().detach()
        codes = weight / scale
        if self.weight_range is not None:
            codes = codes.clamp(*self.weight_range)
        bias = None if self.bias is None else self.bias()
        fitted = projected(codes, bias, self.input_range, self.bits) * scale
        return weight + (fitted - weight).detach()
