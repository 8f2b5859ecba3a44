"""Several answers to one problem: classes of equal ones, and the vote among them.

`None` means that a response gave no answer. It joins no class and has no vote, so a majority of
silent responses does not win; when nobody answers, nobody wins.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from entrolab.verify.canonical import canonical, number
from entrolab.verify.extract import Require, extract

Ties = Literal["first", "reached"]


def key(text: str, require: Require = "any") -> str | None:
  """The canonical answer of a response, alike for equal numbers however written; None without
  one. Exact only: x+1 and 1+x differ here, which `cluster` with a symbolic `same` mends."""
  answer = canonical(extract(text, require).text)
  value = number(answer)
  return (answer if value is None else str(value)) or None


def cluster(answers: Sequence[str | None],
            same: Callable[[str, str], bool] = str.__eq__) -> list[int | None]:
  """A class for each answer: the position of the first answer it is the same as; None for None.

  Each answer is compared with the first member of every earlier class, in order, so `same` need
  not be transitive for the result to be defined.
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

  ties: "first" gives them to the class that appears first, "reached" to the class that reaches
  the winning count first. Raises ValueError for another choice.
  """
  if ties not in ("first", "reached"):
    raise ValueError(f"ties={ties!r}; choices: first, reached")
  members: dict[int | str, list[int]] = {}
  for at, one in enumerate(classes):
    if one is not None:
      members.setdefault(one, []).append(at)
  if not members:
    return None
  most = max(map(len, members.values()))
  best = [places for places in members.values() if len(places) == most]
  return min(best, key=lambda places: places[0 if ties == "first" else -1])[0]
