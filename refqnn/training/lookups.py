"""Networks whose only encrypted work is one narrow table lookup for each hidden neuron.

    bit_i  = [feature >= threshold]                           in clear, at the input door
    sum_j  = sum of k = 2**b - 1 bits, each with sign + or -  b bits wide, whatever the bits are
    code_j = table_j[sum_j]                                   any function: the one lookup
    output = sum_j weight_j code_j + bias                     no lookup

A table holds any function of its sum, monotone or not, so there is neither rounding nor a tie; and
which k of all comparisons a neuron reads is learned: it reads those of the largest trained weights,
of which every one, read or not, gets its gradient as though it were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from refqnn.doors import Comparisons
from refqnn.formats import IntFormat
from refqnn.graph import Node
from refqnn.network import Network
from refqnn.ops import Linear, Lookup
from refqnn.quantizers import Dequantizer, float_thresholds
from refqnn.training.quantizers import check_integer

__all__ = ["LookupNet", "Settings", "distill", "grid"]

CODE_BITS = 3  # of what a table gives
_WEIGHTS = 256  # number of neurons times largest weight, about
_CLIP = 2.5  # where the largest weight of the last layer stands, in mean magnitudes

Standardise = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def grid(X: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """Thresholds [features, levels]: quantiles of the distinct values of each feature; +inf where
    there are fewer."""
    thresholds = np.full((X.shape[1], levels), np.inf, dtype=np.float32)
    for row, column in zip(thresholds, X.T):
        values = np.unique(column)
        middles = (values[1:] + values[:-1]) / 2
        if len(middles):
            kept = np.unique(np.linspace(0, len(middles) - 1, levels + 2)[1:-1].round().astype(int))
            row[: len(kept)] = middles[kept]
    return thresholds


class LookupNet(nn.Module):
    """The finished network: integers held in floats, in evaluation mode alone.

    Args:
        input_dim, hidden_sizes, n_outputs: features, (neurons,), outputs.
        table_bits: width of the hidden sums; a neuron reads 2**table_bits - 1 comparisons.
        levels: thresholds of each feature.

    Shape: ``[N, input_dim]`` float32 to ``[N, n_outputs]`` float32.
    """

    power_of_two_scaling = True  # its floats are exact, as those of such networks
    n_a_bits = CODE_BITS
    grid: Tensor
    rows: Tensor
    tables: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(
        self,
        input_dim: int,
        hidden_sizes: tuple[int, ...],
        n_outputs: int,
        table_bits: int = 3,
        levels: int = 4,
    ) -> None:
        super().__init__()
        (hidden,) = hidden_sizes
        self.arguments = {
            "input_dim": check_integer("input_dim", input_dim),
            "hidden_sizes": (check_integer("hidden_sizes", hidden),),
            "n_outputs": check_integer("n_outputs", n_outputs),
            "table_bits": check_integer("table_bits", table_bits, 1, 4),
            "levels": check_integer("levels", levels),
        }
        shapes = {
            "grid": (input_dim, levels),
            "rows": (hidden, input_dim * levels),  # -1, 0, 1
            "tables": (hidden, 2**table_bits),
            "weight": (n_outputs, hidden),
            "bias": (n_outputs,),
            "scale": (),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of standardised rows."""
        sums = _sums(_bits(x, self.grid), self.rows)
        codes = _Looked.apply(sums, self.tables)
        return self.scale * (codes @ self.weight.T + self.bias)

    def network(
        self,
        standardise: Standardise = np.asarray,
        output_door: Callable[[Dequantizer], Dequantizer] = lambda door: door,
        names: tuple[str, ...] | None = None,
    ) -> Network:
        """The integer network, from raw rows of features to outputs.

        Args:
            standardise: float32 [rows, features] to what the module takes, nondecreasing in each.
            output_door: the door to use in place of a plain scale.
            names: of the features.
        """
        features, levels = self.grid.shape
        edges = self.grid.numpy()

        def codes(columns: NDArray[np.float32]) -> NDArray[np.int64]:
            reached = standardise(columns.T)[:, :, None] >= edges
            found: NDArray[np.int64] = reached.sum(axis=2).T
            return found

        thresholds = float_thresholds(codes, np.tile(np.arange(1, levels + 1), (features, 1)))
        rows = self.rows.numpy().astype(np.int64)
        read = np.flatnonzero(rows.any(axis=0))
        door = Comparisons(
            thresholds.reshape(-1, 1)[read],
            IntFormat(1, signed=False),
            axis=1,
            names=names,
            columns=read // levels,
            n_features=features,
        )
        integers = [a.numpy().astype(np.int64) for a in (self.tables, self.weight, self.bias)]
        tables, weight, bias = integers
        table = Lookup(tables, 0, IntFormat(CODE_BITS, signed=False))
        nodes = [
            Node("fc1", Linear(rows[:, read], (rows < 0).sum(axis=1))),
            Node("table1", table),
            Node("fc2", Linear(weight, bias)),
        ]
        return Network(
            nodes,
            input_shape=(len(read),),
            input_quantizer=door,
            output_dequantizer=output_door(Dequantizer(float(self.scale))),
        )


@dataclass(frozen=True)
class Settings:
    """How a `LookupNet` is trained."""

    hidden: int
    table_bits: int = 3
    levels: int = 4
    steps: int = 4000
    batch_size: int = 128
    lr: float = 0.02
    row_lr: float = 0.01
    rounded: float = 0.5  # fraction of the steps from which tables and weights are integers
    weight_decay: float = 0.0

    @property
    def largest_weight(self) -> int:
        """Of the last layer.  The noise that a lookup may leave is set by the sums that its code
        enters: with these, and the output shared out over parts, it stays the cheapest there is."""
        return min(max(_WEIGHTS // self.hidden, 3), 7)


def distill(
    X: NDArray[np.float32],
    targets: NDArray[np.float32],
    settings: Settings,
    *,
    edges: NDArray[np.float32],
    classify: bool,
    seed: int,
) -> LookupNet:
    """Train on rows X [n, features] toward targets: logits of the teacher, or values, [n, outputs].

    Adam with a one-cycle rate; the loss is the cross entropy with the teacher's probabilities, or
    the squared error.

    Args:
        edges: thresholds, as of `grid`.
    """
    generator = torch.Generator().manual_seed(seed)
    bits = _bits(torch.from_numpy(X), torch.from_numpy(edges))
    goal = torch.from_numpy(targets)
    goal = goal.softmax(dim=1) if classify else goal
    student = _Student(bits.shape[1], goal.shape[1], settings, generator)
    groups: list[dict[str, Any]] = [
        {"params": [student.rows], "lr": settings.row_lr},
        {"params": [student.tables, student.weight, student.bias], "lr": settings.lr},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=settings.steps, pct_start=0.1
    )
    loss_of = functional.cross_entropy if classify else functional.mse_loss
    for step in range(settings.steps):
        batch = torch.randint(len(bits), (settings.batch_size,), generator=generator)
        rounded = step >= settings.rounded * settings.steps
        loss = loss_of(student(bits[batch], rounded), goal[batch])
        if settings.weight_decay:
            loss = loss + settings.weight_decay * student.weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student.finished(edges)


class _Student(nn.Module):
    """A `LookupNet` in training."""

    def __init__(
        self, n_bits: int, n_outputs: int, settings: Settings, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.settings, hidden = settings, settings.hidden
        self.reads = min(n_bits, 2**settings.table_bits - 1)

        def normal(*shape: int, deviation: float) -> Tensor:
            return torch.randn(shape, generator=generator) * deviation

        ramp = torch.linspace(-1.0, 1.0, 2**settings.table_bits)
        size = 2**settings.table_bits
        self.rows = nn.Parameter(normal(hidden, n_bits, deviation=0.1))
        self.tables = nn.Parameter(ramp + normal(hidden, size, deviation=0.1))
        self.weight = nn.Parameter(normal(n_outputs, hidden, deviation=hidden**-0.5))
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, bits: Tensor, rounded: bool) -> Tensor:
        sums = _sums(bits, _Sparse.apply(self.rows, self.reads))
        if not rounded:
            return _Looked.apply(sums, self.tables) @ self.weight.T + self.bias
        tables, weight, bias, scale = self.integers()
        return scale * (_Looked.apply(sums, tables) @ weight.T + bias)

    def integers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes, weights and biases as integers, straight-through, and the value of one unit.

        A table's least and greatest entry become the least and the greatest code; its step and its
        least entry move into the weights and the bias.
        """
        top = 2**CODE_BITS - 1
        low, high = torch.aminmax(self.tables.detach(), dim=1, keepdim=True)
        step = (high - low).clamp(min=1e-6) / top
        weight = self.weight * step.T
        bias = self.bias + self.weight @ low[:, 0]
        largest = self.settings.largest_weight
        scale = (_CLIP * weight.detach().abs().mean() / largest).clamp(min=1e-9)
        codes = _rounded((self.tables - low) / step)
        integers = _rounded(weight / scale).clamp(-largest, largest)
        return codes, integers, _rounded(bias / scale), scale

    @torch.no_grad()
    def finished(self, edges: NDArray[np.float32]) -> LookupNet:
        """What has been learned, as integers; comparisons that no row weighs are left out."""
        settings = self.settings
        features, levels = edges.shape
        net = LookupNet(features, (settings.hidden,), len(self.weight), settings.table_bits, levels)
        tables, weight, bias, scale = self.integers()
        parts = {"grid": torch.from_numpy(edges), "rows": _Sparse.apply(self.rows, self.reads)}
        parts |= {"tables": tables, "weight": weight, "bias": bias, "scale": scale}
        net.load_state_dict(parts)
        return net.eval()


def _bits(x: Tensor, edges: Tensor) -> Tensor:
    """Which thresholds [features, levels] rows [n, features] reach: [n, features * levels]."""
    return (x[:, :, None] >= edges).flatten(1).to(torch.float32)


def _sums(bits: Tensor, rows: Tensor) -> Tensor:
    """Sums [n, neurons] that begin at 0: a bit with the sign - counts where it is not set."""
    return bits @ rows.T + (rows < 0).sum(dim=1)


def _rounded(x: Tensor) -> Tensor:
    return x + (torch.round(x) - x).detach()


class _Sparse(torch.autograd.Function):
    """The signs of the k largest weights of each row, 0 elsewhere; straight-through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, k: int) -> Tensor:
        largest = weight.abs().topk(k, dim=1).indices
        signs = torch.where(weight.gather(1, largest) < 0.0, -1.0, 1.0)
        return torch.zeros_like(weight).scatter_(1, largest, signs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Looked(torch.autograd.Function):
    """table[neuron, sum] of sums [n, neurons]; its slope in the sum is that of the neighbours."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, tables: Tensor) -> Tensor:
        size = tables.shape[1]
        place = sums.detach().long() + size * torch.arange(len(tables))
        ctx.save_for_backward(place, tables)
        return tables.reshape(-1)[place]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        place, tables = ctx.saved_tensors
        padded = functional.pad(tables[None], (1, 1), mode="replicate")[0]
        run = torch.full((tables.shape[1],), 2.0)
        run[0] = run[-1] = 1.0
        slopes = (padded[:, 2:] - padded[:, :-2]) / run
        to_tables = torch.zeros(tables.numel()).index_add_(
            0, place.reshape(-1), gradient.reshape(-1)
        )
        return gradient * slopes.reshape(-1)[place], to_tables.view_as(tables)
