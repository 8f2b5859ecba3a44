r"""Multiple choice: the letter that a response commits to, compared with the reference.

Read in this order: the last \boxed{}; the last "answer is (B)" or "answer: B"; a letter at the
start of the response ("B", "(B)", "B. because ..."); the only letter in parentheses or after
"option"; the only letter that stands alone anywhere. Two different letters at the same place are
no answer, so that hedging is not rewarded. A letter that is denied ("not B but C") is not read.
"""

import re
from collections.abc import Sequence

from entrolab.verify import Verdict
from entrolab.verify.characters import clean
from entrolab.verify.extract import boxes, strip_reasoning

LETTERS = "ABCDE"
_MAX_CHARACTERS = 20_000  # of a response, from its end

_WRAP = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{|[{}$*\\]")
_ALONE = r"(?<![A-Za-z0-9'])\(?([{0}])\)?(?![A-Za-z0-9'])"
_DENIED = (r"\b(?i:not|cannot|never|neither|rather than|instead of|except|isn't|can't)"
           r"(?:\s(?i:be))?(?:\s(?i:option|choice|answer))?\s{{1,3}}\(?[{0}]\)?(?![A-Za-z'])"
           r"(?:\s?(?:,|/|(?i:or|and|nor))\s?\(?[{0}]\)?(?![A-Za-z']))*")
_PHRASE = (r"(?i:\banswer\b|\bchoice\b|\boption\b)[^\nA-Z]{{0,30}}?(?:(?i:\bis\b)|:)?"
           r"[\s*(:]{{0,4}}([{0}])(?![A-Za-z'])((?:\)?\s?(?:,|/|or|and)\s?\(?[{0}](?![A-Za-z']))*)")
_FIRST = (r"[\s*(]*([{0}])(?:[).:*]|\s*$|\s*\n)(?!\s{{0,4}}(?:or|and|,|/)\s{{0,4}}"
          r"\(?[{0}](?![A-Za-z]))")
_MARKED = r"\(([{0}])\)|\b(?i:option|choice)\s([{0}])(?![A-Za-z])"


def _only(found: Sequence[str]) -> str | None:
  """The letter when all found are the same."""
  return found[0] if len(set(found)) == 1 else None


def letter(text: str, letters: str = LETTERS) -> str | None:
  """The letter of `letters` that a response commits to, or None.

  Raises ValueError unless `letters` are different capitals.
  """
  if not letters.isascii() or not letters.isupper() or len(set(letters)) != len(letters):
    raise ValueError(f"letters={letters!r}: different capital letters, such as {LETTERS!r}")
  text = clean(strip_reasoning(text)[0][-_MAX_CHARACTERS:])
  found, _ = boxes(text)
  if found:
    inside = re.sub(_DENIED.format(letters), "", _WRAP.sub("", found[-1][2])).strip()
    return _only(re.findall(_ALONE.format(letters), inside))
  text = text.replace("*", "")  # markdown around the letter
  text = re.sub(_DENIED.format(letters), "", text)
  phrases = re.findall(_PHRASE.format(letters), text)
  if phrases:
    first_letter, alternatives = phrases[-1]  # "answer is A or B" gives "A" and " or B"
    return _only([first_letter, *re.findall(f"[{letters}]", alternatives)])
  first = re.match(_FIRST.format(letters), text)
  if first:
    return first[1]
  marked = re.findall(_MARKED.format(letters), text)
  if marked:
    return _only([bracketed or named for bracketed, named in marked])
  # "A" and "I" are words, so a letter that merely stands alone must be another
  unambiguous = letters.translate({ord("A"): None, ord("I"): None}) or letters
  return _only(re.findall(_ALONE.format(unambiguous), text))


def verify(texts: Sequence[str], answers: Sequence[str], *,
           letters: str = LETTERS) -> list[Verdict]:
  """A verdict for each response; one that commits to no letter is wrong.

  answers: the reference letters; letters: the choices. Raises ValueError when lengths differ or an
  answer is not among `letters`.
  """
  if len(texts) != len(answers):
    raise ValueError(f"{len(texts)} texts for {len(answers)} answers")
  verdicts = []
  for at, (text, answer) in enumerate(zip(texts, answers, strict=True)):
    if len(answer) != 1 or answer not in letters:
      raise ValueError(f"row {at}: answer {answer!r} is not one of {letters}")
    given = letter(text, letters)
    if given is None:
      verdicts.append(Verdict("wrong", "the response commits to no letter"))
    else:
      verdicts.append(Verdict("right" if given == answer else "wrong", f"answers {given}"))
  return verdicts
