r"""Multiple choice: the letter that a response commits to, compared with the right one.

Read in this order: the last \boxed{}; the last "answer is (B)" or "answer: B"; a letter that
begins the response and stands for itself ("B", "(B)", "B. because ..."); the only letter that
stands alone anywhere, in parentheses or as "option B". Two different letters at one of these
places are no answer: hedging does not pay.
"""

import re
from collections.abc import Sequence

from entrolab.verify import Verdict
from entrolab.verify.extract import boxes, clean, strip_reasoning

LETTERS = "ABCDE"
_LONGEST = 20_000

_WRAP = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{|[{}$*\\]")
_ALONE = r"(?<![A-Za-z0-9'])\(?([{0}])\)?(?![A-Za-z0-9'])"
_PHRASE = (r"(?i:\banswer\b|\bchoice\b|\boption\b)[^\nA-Z]{{0,30}}?(?:(?i:\bis\b)|:)?"
           r"[\s*(:]{{0,4}}([{0}])(?![A-Za-z'])((?:\)?\s?(?:,|/|or|and)\s?\(?[{0}](?![A-Za-z']))*)")
_FIRST = (r"[\s*(]*([{0}])(?:[).:*]|\s*$|\s*\n)(?!\s{{0,4}}(?:or|and|,|/)\s{{0,4}}"
          r"\(?[{0}](?![A-Za-z]))")
_MARKED = r"\(([{0}])\)|\b(?i:option|choice)\s([{0}])(?![A-Za-z])"


def _only(found: Sequence[str]) -> str | None:
  return found[0] if len(set(found)) == 1 else None


def letter(text: str, letters: str = LETTERS) -> str | None:
  """The letter of `letters` that a response answers with, or None.

  Raises ValueError unless `letters` are different capitals.
  """
  if not letters.isascii() or not letters.isupper() or len(set(letters)) != len(letters):
    raise ValueError(f"letters={letters!r}: different capital letters, such as {LETTERS!r}")
  text = clean(strip_reasoning(text)[0][-_LONGEST:])
  found, _ = boxes(text)
  if found:
    inside = _WRAP.sub("", found[-1][2]).strip()
    return _only(re.findall(_ALONE.format(letters), inside))
  text = text.replace("*", "")
  phrases = re.findall(_PHRASE.format(letters), text)
  if phrases:
    return _only([phrases[-1][0], *re.findall(f"[{letters}]", phrases[-1][1])])
  first = re.match(_FIRST.format(letters), text)
  if first:
    return first[1]
  marked = re.findall(_MARKED.format(letters), text)
  if marked:
    return _only([a or b for a, b in marked])
  # "A" and "I" are words: a letter that merely stands alone must be another one.
  return _only(re.findall(_ALONE.format(letters.translate({65: None, 73: None}) or letters), text))


def verify(texts: Sequence[str], answers: Sequence[str], *,
           letters: str = LETTERS) -> list[Verdict]:
  """One verdict for each response against its right letter; no committed letter is wrong.

  letters: the choices, "ABCDE" unless a task has more. Raises ValueError when lengths differ or
  an answer is not among `letters`.
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
