"""Who is to blame when a run stands still: pure reasoning on what the ranks say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# How many ranks a message names.
_NAMED = 4


@dataclass(frozen=True)
class Whereabouts:
    """What a rank says of itself.

    Attributes:
        phase: as in ``parallel.phase``.
        step: the one it works at; None before the first.
        seconds: how long it has been in the phase.
        collectives: how many it has entered since it joined, over all groups.
    """

    phase: str
    step: int | None
    seconds: float
    collectives: int

    def __str__(self) -> str:
        at = "" if self.step is None else f" at step {self.step}"
        return f"in {self.phase} since {self.seconds:.0f} s{at}"


@dataclass(frozen=True)
class Verdict:
    """
    Attributes:
        ranks: that hang.
        message: one sentence.
    """

    ranks: Sequence[int]
    message: str


def judge(answers: Mapping[int, Whereabouts], silent: Sequence[int]) -> Verdict:
    """All ranks enter the same collectives in the same order. So who has entered the fewest is who the others wait for,
    wherever it is; and who does not even answer is gone or stopped.

    Args:
        answers: by rank, at least one.
        silent: ranks that did not answer.
    """
    if silent:
        longest = max(answers, key=lambda rank: answers[rank].seconds)
        return Verdict(
            silent,
            f"{_listed(silent)} not answer (stopped, or the node is gone); rank {longest} is {answers[longest]}",
        )
    fewest = min(answer.collectives for answer in answers.values())
    behind = [rank for rank, answer in sorted(answers.items()) if answer.collectives == fewest]
    message = ", ".join(f"rank {rank} hangs {answers[rank]}" for rank in behind[:_NAMED])
    if len(behind) > _NAMED:
        message += f" and {len(behind) - _NAMED} more"
    if len(behind) < len(answers):
        message += " (the others wait for it)" if len(behind) == 1 else " (the others wait for them)"
    elif len(answers) > 1:
        message += ": none is behind the others, so look at what they all use (network, storage, devices)"
    return Verdict(behind, message)


def _listed(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} does"
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"ranks {', '.join(map(str, ranks[:_NAMED]))}{more} do"
