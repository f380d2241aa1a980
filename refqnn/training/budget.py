"""The sign-split accumulator budget of `refqnn.pruning`, inside training.

The forward pass uses the projected integers, the backward pass is straight-through: a weight that
the budget holds back still receives its gradient and may win its place from another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from refqnn.errors import InvalidArgument, mismatch

__all__ = ["SignSplit", "project_ste", "projected", "shrink_"]


def project_ste(
    weight: Tensor, bias: Tensor | None, input_range: tuple[int, int], bits: int
) -> Tensor:
    """`projected`, straight-through: value of the projection, gradient of the identity."""
    return weight + (projected(weight, bias, input_range, bits) - weight).detach()


@torch.no_grad()
def projected(
    weight: Tensor, bias: Tensor | None, input_range: tuple[int, int], bits: int
) -> Tensor:
    """Integer weights whose accumulators fit signed `bits`; `refqnn.pruning.project` for tensors.

    Args:
        weight: floats [out, ...] in units of the integer weights.
        bias: integer-valued [out], in units of the accumulator, or None.  A bias that does not fit
            by itself leaves an empty budget.
        input_range: inclusive (lo, hi) of every input.
        bits: two's complement width, 2 to 53.

    Returns: integer values in the dtype and shape of weight.

    >>> projected(torch.tensor([[3.0, 2.6, -3.0, 0.4]]), torch.tensor([10.0]), (0, 7), 6)
    tensor([[ 2.,  1., -3.,  0.]])
    """
    rows = weight.detach().flatten(1).double()
    codes = rows.round()
    P, N = codes.clamp(min=0).sum(1), (-codes).clamp(min=0).sum(1)
    P_max, N_max = _budgets(P, N, bias, input_range, bits)
    positive = torch.where(
        (P_max >= P)[:, None], codes.clamp(min=0), _fit(rows.clamp(min=0), P_max)
    )
    negative = torch.where(
        (N_max >= N)[:, None], (-codes).clamp(min=0), _fit((-rows).clamp(min=0), N_max)
    )
    return (positive - negative).to(weight.dtype).view_as(weight)


@torch.no_grad()
def shrink_(
    weight: Tensor, scale: Tensor, bias: Tensor | None, input_range: tuple[int, int], bits: int
) -> None:
    """Pull real weights into their budget, in place, without rounding: call it after each step.

    Projected gradient descent: the weights stay near the integers that the forward pass makes of
    them, which keeps the straight-through gradient honest.

    Args:
        weight: floats [out, ...].
        scale: value of one integer step, a scalar or [out, 1, ...].
        bias, input_range, bits: as for `projected`.
    """
    rows = (weight / scale).flatten(1).double()
    positive, negative = rows.clamp(min=0), (-rows).clamp(min=0)
    P, N = positive.sum(1).ceil(), negative.sum(1).ceil()
    P_max, N_max = _budgets(P, N, bias, input_range, bits)
    fitted = _onto_simplex(positive, P_max) - _onto_simplex(negative, N_max)
    weight.copy_(fitted.to(weight.dtype).view_as(weight) * scale)


def _budgets(
    P: Tensor, N: Tensor, bias: Tensor | None, input_range: tuple[int, int], bits: int
) -> tuple[Tensor, Tensor]:
    """See `refqnn.pruning.sign_budgets`; float64 holds every integer here."""
    if not 2 <= bits <= 53:
        raise InvalidArgument(mismatch("bits", bits, "an integer from 2 to 53"))
    s, t = float(max(0, -input_range[0])), float(max(0, input_range[1]))
    b = torch.zeros_like(P) if bias is None else bias.detach().double()
    up = (2.0 ** (bits - 1) - 1 - b).clamp(min=0)
    down = (2.0 ** (bits - 1) + b).clamp(min=0)
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
        bits: two's complement width of the accumulator.
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
        bits: int,
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
