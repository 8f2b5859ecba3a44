"""Exact comparison of a completion: of the whole text, or of its first integer."""

import re
from collections.abc import Sequence

from entrolab.verify import Verdict
from entrolab.verify.characters import plain

_INTEGER = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?![\d,])|[-+]?\d+", re.ASCII)
_MAX_DIGITS = 4_000  # int() takes quadratic time, and refuses more than 4,300 digits by default


def first_integer(text: str) -> int | None:
  """The first integer in `text`, with or without thousands commas, in digits and signs of Unicode.

  None when there is none or it has over 4,000 digits. The first integer of "3.7" is 3: use
  `verify_text` where decimals matter.
  """
  match = _INTEGER.search(plain(text))
  return int(match[0].replace(",", "")) if match and len(match[0]) <= _MAX_DIGITS else None


def key(text: str) -> str | None:
  """What a vote compares: the integer that `verify_integer` reads."""
  found = first_integer(text)
  return None if found is None else str(found)


def text_key(text: str) -> str | None:
  """What a vote compares: the text that `verify_text` reads."""
  return text.strip() or None


def _pairs(texts: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str]]:
  if len(texts) != len(answers):
    raise ValueError(f"{len(texts)} texts for {len(answers)} answers")
  return list(zip(texts, answers, strict=True))


def verify_text(texts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
  """Right where text and answer are equal apart from surrounding white space.

  Raises ValueError when lengths differ.
  """
  return [Verdict("right", "exact") if text.strip() == answer.strip()
          else Verdict("wrong", "different text") for text, answer in _pairs(texts, answers)]


def verify_integer(texts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
  """Right where the first integer of the text is the answer's.

  Raises ValueError when lengths differ or an answer has no integer.
  """
  verdicts = []
  for at, (text, answer) in enumerate(_pairs(texts, answers)):
    expected, given = first_integer(answer), first_integer(text)
    if expected is None:
      raise ValueError(f"row {at}: answer {answer[:40]!r} has no integer")
    if given is None:
      verdicts.append(Verdict("wrong", "no integer"))
    else:
      verdicts.append(Verdict("right", "equal integers") if given == expected
                      else Verdict("wrong", "different integers"))
  return verdicts
