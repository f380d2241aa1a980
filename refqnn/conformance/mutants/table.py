"""The table of mutants, and how one is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from refqnn.conformance.operations import Function

__all__ = ["KERNELS", "MUTANTS", "Mutant", "mutants_of", "of"]


@dataclass(frozen=True)
class Mutant:
    """One wrong implementation.

    Args:
        operation: what it implements.
        name: unique within the operation.
        flag: the kind of bug, a key of `NOTES`.
        description: what it does instead.
        function: called with the arguments of a vector, as any implementation.
        equivalent: why no vector can kill it; "" for those that must be killed.
    """

    operation: str
    name: str
    flag: str
    description: str
    function: Function
    equivalent: str = ""

    @property
    def id(self) -> str:
        """operation/name."""
        return f"{self.operation}/{self.name}"

    def __str__(self) -> str:
        return f"{self.id}: {self.description}"


KERNELS: dict[str, Function] = {}
MUTANTS: list[Mutant] = []


def mutants_of(operation: str) -> Iterator[Mutant]:
    """The mutants of one operation."""
    return (mutant for mutant in MUTANTS if mutant.operation == operation)


def of(*kernels: Function) -> Callable[..., None]:
    """What writes down the same mutant of each of these kernels: its name, its flag, what it does,
    why no vector tells it apart (where that is so), and the hooks it replaces."""

    def write_down(
        name: str, flag: str, description: str, equivalent: str = "", **hooks: Any
    ) -> None:
        for kernel in kernels:
            wrong = partial(kernel, **hooks)
            MUTANTS.append(Mutant(kernel.__name__, name, flag, description, wrong, equivalent))

    return write_down
