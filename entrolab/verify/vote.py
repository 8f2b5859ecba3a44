"""Majority vote over several responses to a problem, by classes of equal answers.

`None` stands for a response without an answer. It belongs to no class and has no vote, so that
responses without an answer never win, even when they are the majority.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from entrolab.verify import reading
from entrolab.verify.extract import Require, extract

Ties = Literal["first", "reached"]


def key(text: str, require: Require = "any") -> str | None:
  """The canonical answer of a response, the same text for equal numbers; None without an answer.

  The comparison is exact: x+1 and 1+x have different keys. `cluster` with a symbolic `same` puts
  such answers into one class.
  """
  found = extract(text, require)
  return reading.key(found.text, found.after)


def cluster(answers: Sequence[str | None],
            same: Callable[[str, str], bool] = str.__eq__) -> list[int | None]:
  """The class of each answer: the position of the first answer that is the same; None for None.

  Each answer is compared with the first member of every earlier class, in order, so that the result
  is defined even if `same` is not transitive.
  """
  firsts: list[int] = []
  classes: list[int | None] = []
  for at, answer in enumerate(answers):
    if answer is None:
      classes.append(None)
      continue
    found = next((first for first in firsts if same(answers[first] or "", answer)), None)
    if found is None:
      firsts.append(at)
    classes.append(at if found is None else found)
  return classes


def majority(classes: Sequence[int | str | None], ties: Ties = "first") -> int | None:
  """Position of the first member of the largest class; None when every entry is None.

  ties: between classes of equal size, "first" takes the class that appears first, "reached" the
  class that is first to reach that size. Raises ValueError for another choice.
  """
  if ties not in ("first", "reached"):
    raise ValueError(f"ties={ties!r}; choices: first, reached")
  members: dict[int | str, list[int]] = {}
  for position, label in enumerate(classes):
    if label is not None:
      members.setdefault(label, []).append(position)
  if not members:
    return None
  largest = max(map(len, members.values()))
  best = [positions for positions in members.values() if len(positions) == largest]
  deciding = 0 if ties == "first" else -1
  return min(best, key=lambda positions: positions[deciding])[0]
