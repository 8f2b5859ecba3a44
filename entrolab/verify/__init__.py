"""Strings to verdicts, on the host alone: nothing here imports jax.

right    compared with the reference and equal
wrong    compared and different, or there is no answer to compare
unknown  not compared: refused as too costly, over its deadline, a worker died, or the reference
         itself cannot be read

Unknown is not wrong: a response of unknown verdict is left out of training, evaluation and votes as
if it had not been drawn, and is counted and shown.
"""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Literal

RIGHT, WRONG, UNKNOWN = 1, 0, -1
CODES = {"right": RIGHT, "wrong": WRONG, "unknown": UNKNOWN}


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
  """The decision on one response. Raises ValueError for a status that is none of the three."""
  status: Literal["right", "wrong", "unknown"]  # as above
  why: str  # the reason, for logs and alarms; no reward depends on it

  def __post_init__(self) -> None:
    if self.status not in CODES:
      raise ValueError(f"verdict {self.status!r}; choices: {', '.join(CODES)}")

  @property
  def code(self) -> int:
    """right 1, wrong 0, unknown -1: the integer in a batch's verdict column."""
    return CODES[self.status]


def codes(verdicts: Iterable[Verdict]) -> list[int]:
  """The verdict column: right 1, wrong 0, unknown -1."""
  return [verdict.code for verdict in verdicts]


def unknown_share(verdicts: Iterable[Verdict]) -> float:
  """Fraction of unknown verdicts, in [0, 1]; 0 for an empty batch."""
  column = codes(verdicts)
  return column.count(UNKNOWN) / max(len(column), 1)


def unknown_reasons(verdicts: Iterable[Verdict], most: int = 5) -> list[tuple[str, int]]:
  """At most `most` reasons for unknown, the commonest first, with their counts."""
  reasons = collections.Counter(v.why for v in verdicts if v.status == "unknown")
  return reasons.most_common(most)
