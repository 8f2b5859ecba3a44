"""Completions that must be exactly right: the text itself, or its first integer."""

import re
from collections.abc import Sequence

from entrolab.verify import Verdict

_INTEGER = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?![\d,])|[-+]?\d+", re.ASCII)
_LONGEST = 4_000   # digits that int() reads in a moment


def first_integer(text: str) -> int | None:
  """The first integer in `text`, thousands commas allowed; None without one, or over 4,000
  digits. "3.7" begins with 3: ask for exact text where decimals matter."""
  match = _INTEGER.search(text)
  return int(match[0].replace(",", "")) if match and len(match[0]) <= _LONGEST else None


def _pairs(texts: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str]]:
  if len(texts) != len(answers):
    raise ValueError(f"{len(texts)} texts for {len(answers)} answers")
  return list(zip(texts, answers, strict=True))


def verify_text(texts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
  """Right where text and answer are equal up to white space around them.

  Raises ValueError when lengths differ.
  """
  return [Verdict("right", "exact") if text.strip() == answer.strip()
          else Verdict("wrong", "different text") for text, answer in _pairs(texts, answers)]


def verify_integer(texts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
  """Right where the first integer of the text is the answer's.

  Raises ValueError when lengths differ or an answer holds no integer.
  """
  verdicts = []
  for at, (text, answer) in enumerate(_pairs(texts, answers)):
    expected, given = first_integer(answer), first_integer(text)
    if expected is None:
      raise ValueError(f"row {at}: answer {answer[:40]!r} holds no integer")
    if given is None:
      verdicts.append(Verdict("wrong", "no integer"))
    else:
      verdicts.append(Verdict("right", "equal integers") if given == expected
                      else Verdict("wrong", "different integers"))
  return verdicts
