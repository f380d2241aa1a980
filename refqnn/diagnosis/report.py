"""What a diagnosis says, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from refqnn.display import Shown
from refqnn.network import Difference

__all__ = ["Applied", "Diagnosis", "Explanation", "Finding"]

_CERTAIN_FROM = 8  # values for each deviation that an explanation gets right and the node does not
_SHOWN = 20  # explanations in words
_NO_PROFILE = "none of the profiles alone"

Json: TypeAlias = "str | int | bool | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True)
class Applied:
    """A deviation in force at a node.

    Attributes:
        node, name: which deviation, and where.
        sentence: what the other implementation does.
        found: its constants in words, "" where it has none.
    """

    node: str
    name: str
    sentence: str
    found: str = ""

    def __str__(self) -> str:
        return f"{self.node}: it {self.sentence} [{self.name}]" + (
            f" ({self.found})" if self.found else ""
        )


Explanation = tuple[Applied, ...]


@dataclass(frozen=True)
class Finding:
    """A given value that parts from ours.

    Attributes:
        node: the value.
        difference: where it parts first.
        explanations: the smallest sets of deviations that reproduce every given integer of it; more
            than one cannot be told apart here; none is "none of mine".
        exhausted: were all pairs tried, where no deviation alone will do?
        tried: how many sets of deviations were compared.
        support: how many of the wrong values stand in samples that repeat no other, and in channels
            that hold more than one value; of none given, all of them.
        open: nodes before it that are not given, where constants that would explain it as well
            were not looked for: they are fitted to what is given.
        simplest: how many of the explanations stand in front: the others have constants of their
            own where these have fewer or none.
        reasons: why the only explanation is not certain though no other was found: inputs that are
            constant in the samples, channels that are stuck, another machine that does the same.
    """

    node: str
    difference: Difference | str
    wrong: int
    total: int
    explanations: tuple[Explanation, ...]
    tried: int
    exhausted: bool = True
    support: int | None = None
    open: tuple[str, ...] = ()
    simplest: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def certain(self) -> bool:
        """One explanation alone, after all were tried, and eight wrong values for each of its
        deviations.  Constants in front of a rounding or behind it, and scales, count as others."""
        support = self.wrong if self.support is None else self.support
        tried = self.exhausted and not self.open and not self.reasons
        needed = _CERTAIN_FROM * max(map(len, self.explanations), default=1)
        return len(self.explanations) == 1 and tried and support >= needed

    @property
    def names(self) -> frozenset[str]:
        """The deviations of explanations that need one alone."""
        return _alone(self.explanations)

    def lines(self) -> list[str]:
        """The finding in words."""
        said = [str(self.difference)]
        if not self.explanations:
            more = "" if self.exhausted else "; the time ran out before all pairs were tried"
            if self.open:
                more += f"; the dump lacks {', '.join(self.open)}, where constants were not tried"
            return [*said, f"  none of mine: {self.tried:,} deviations tried{more}"]
        if self.certain:
            heading = "explained by"
        elif len(self.explanations) > 1:
            heading = f"one of {len(self.explanations)} that cannot be told apart here:"
        else:
            doubts = list(self.reasons)
            if self.open:
                doubts.append(f"the dump lacks {', '.join(self.open)}, where it may be as well")
            if not self.exhausted:
                doubts.append("the time ran out before all pairs were tried")
            heading = f"fits; {'; '.join(doubts)}:" if doubts else "fits, on few values:"
        said.append(
            f"  {heading} (all {self.total:,} values reproduced, {self.wrong:,} of them wrong here)"
        )
        shown = [f"    {'; and '.join(map(str, e))}" for e in self.explanations]
        if len(shown) > _SHOWN:
            shown[_SHOWN:] = [f"    and {len(shown) - _SHOWN} more"]
        return said + shown


def _alone(explanations: tuple[Explanation, ...]) -> frozenset[str]:
    return frozenset(e[0].name for e in explanations if len(e) == 1)


@dataclass(frozen=True)
class Diagnosis(Shown):
    """What `refqnn.diagnose` found.

    Attributes:
        findings: the values that part, in the order of the program; each was computed from the
            given values before it.
        equal: names of the given values that are as they should be.
        unchecked: names of given values whose inputs are not known.
        notes: how tensors had to be read.
        profiles: given value -> the profiles that make it out of the given values before it, where
            `diagnose` was asked about profiles: those that the samples do not tell apart.
    """

    findings: tuple[Finding, ...]
    equal: tuple[str, ...]
    unchecked: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Does nothing part?"""
        return not self.findings

    @cached_property
    def common(self) -> frozenset[str]:
        """Deviations among the simplest of every finding: one cause may be enough for all."""
        if not self.findings:
            return frozenset()
        names = (_alone(finding.explanations[: finding.simplest]) for finding in self.findings)
        return frozenset.intersection(*names)

    @property
    def followed(self) -> tuple[str, ...]:
        """The profiles that make every value which could be checked."""
        first, *rest = self.profiles.values() or [()]
        return tuple(name for name in first if all(name in names for names in rest))

    def profile_lines(self) -> list[str]:
        """Which profiles each value follows, in words; no lines where none were asked about."""
        if not self.profiles:
            return []
        every = {**self.profiles, f"all {len(self.profiles):,} values": self.followed}
        return [f"{value}: {', '.join(names) or _NO_PROFILE}" for value, names in every.items()]

    def __str__(self) -> str:
        lines = [f"{name}: {note}" for name, note in self.notes.items()]
        lines += [f"{name}: not checked, its inputs are not given" for name in self.unchecked]
        lines += [line for finding in self.findings for line in finding.lines()]
        if len(self.findings) > 1 and self.common:
            lines.append(f"one cause would do for all: {', '.join(sorted(self.common))}")
        lines.append(f"equal: {', '.join(self.equal) or 'none'}")
        lines += [f"follows {line}" for line in self.profile_lines()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Json]:
        """The same for programs: strings, integers, lists."""
        return {
            "ok": self.ok,
            "equal": list(self.equal),
            "unchecked": list(self.unchecked),
            "common": list[Json](sorted(self.common)),
            "notes": dict[str, Json](self.notes),
            "profiles": {value: list[Json](names) for value, names in self.profiles.items()},
            "followed": list[Json](self.followed),
            "findings": [
                {
                    "node": f.node,
                    "difference": str(f.difference),
                    "wrong": f.wrong,
                    "total": f.total,
                    "certain": f.certain,
                    "tried": f.tried,
                    "exhausted": f.exhausted,
                    "support": f.support,
                    "open": list[Json](f.open),
                    "reasons": list[Json](f.reasons),
                    "explanations": [[dict[str, Json](vars(a)) for a in e] for e in f.explanations],
                }
                for f in self.findings
            ],
        }
