r"""Instructions that a program can check, with partial credit for each.

A requirement is a mapping of the keys below, the English set of Light-IF (arXiv:2508.03178).
`Score.points` is the sum of the credit of the instructions that are met; `Score.right` says that
all are. A row may carry every key and ask for nothing by its value: -1 for a number, "" for a text,
[] for a list, null for any; a missing key says the same. What is not asked is neither met nor
unmet: a row that asks for nothing is worth 0 points, and every response to it is right.

Bounds come in pairs `low_*`, `max_*`:

    low > 0, max > low   a range          low = max > 0   exactly
    low > 0, max < low   at least low     low <= 0 < max  at most max
    both <= 0            none at all of a keyword or a letter; nothing is asked of words, capitals

    prompt_to_repeat                        the response begins with the prompt          0.1
    num_highlights                          at least, *so* or _so_                       0.05
    low_word_cnt, max_word_cnt              words                           0.1, one bound 0.05
    num_placeholders                        at least, [so], with something in it         0.05
    num_bullets                             lines that begin with "* ", exactly          0.1
    low_capital_cnt, max_capital_cnt        pieces between blanks of two or more characters whose
                                            letters are capitals            0.1, one bound 0.05
    keywords, keywords_num                  each (low, max) times           0.1, one bound 0.05
    num_sentences, sentences_style          by . ! ?  0 exactly 0.2; -1 fewer, 1 more    0.05
    letter, low_letter_num, max_letter_num  one character             0.05, none at all  0.2
    paragraphs, paragraphs_num              separator, exactly                           0.1
    end_phrase                              ends with it                                 0.1
    nth_paragraph, first_word               paragraph n begins with the word             0.1

`sentences_style` -1 is also what a missing key says; a style other than these three asks for
nothing. Of a response that begins with the prompt as it was asked to, the rest alone is looked at.
Counting is case-sensitive, and a keyword may be part of a longer word. No response can raise an
exception; a requirement that cannot be met, such as an unknown separator, is unmet.

Differs from the official code (IF.py): a highlight ends with its line, theirs may run over several,
so that a list of two bullets is one.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entrolab.verify import Verdict

SEPARATORS = ("\n\n", "\n\n\n", "***")
KEYS = frozenset(
    "prompt_to_repeat num_highlights low_word_cnt max_word_cnt num_placeholders num_bullets "
    "low_capital_cnt max_capital_cnt keywords keywords_num num_sentences sentences_style letter "
    "low_letter_num max_letter_num paragraphs paragraphs_num end_phrase nth_paragraph first_word"
    .split())


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
  """An instruction as one response meets it or not."""
  name: str  # its key in the requirement; of keywords also the word
  met: bool  # whether the response meets it
  credit: float  # added to the points if it is met


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
  """What a response is worth."""
  points: float  # sum of the credit of the instructions that are met
  right: bool  # whether all are met
  checks: tuple[Check, ...] = ()  # empty for a response that does not end its reasoning

  @property
  def total(self) -> float:
    """points, and 1 more if right."""
    return self.points + float(self.right)


def within(count: int, low: int, high: int) -> bool:
  """Whether a count lies within its bounds, by the five conventions of this file's header."""
  if low > 0 and high >= low:
    return low <= count <= high
  if low > 0:
    return count >= low
  return count <= max(high, 0)


def _credit(low: int, high: int) -> float:
  """A range, which chance meets less often, is worth more than a single bound."""
  return 0.1 if 0 < low <= high else 0.05


def _bounds(require: Mapping[str, Any], name: str) -> tuple[int, int]:
  return require.get(f"low_{name}", -1), require.get(f"max_{name}", -1)


def _asked(require: Mapping[str, Any], name: str) -> bool:
  """Whether a number asks for anything: above 0."""
  return require.get(name, -1) > 0


def _text(require: Mapping[str, Any], name: str) -> str:
  """A text of a requirement without blanks around it; "" asks for nothing."""
  return require.get(name, "").strip()


def _parts(text: str, marks: str) -> list[str]:
  return [part.strip() for part in re.split(marks, text) if part.strip()]


def _counts(answer: str, require: Mapping[str, Any]) -> Iterator[Check]:
  """Checks that count: words, capitals, keywords, sentences, letters."""
  low, high = _bounds(require, "word_cnt")
  if low > 0 or high > 0:
    words = len(re.findall(r"\w+", answer))
    yield Check("word_cnt", within(words, low, high), _credit(low, high))
  low, high = _bounds(require, "capital_cnt")
  if low > 0 or high > 0:
    capitals = sum(len(piece) > 1 and piece.isupper() for piece in answer.split())
    yield Check("capital_cnt", within(capitals, low, high), _credit(low, high))
  keywords = require.get("keywords", ())
  for word, (low, high) in zip(keywords, require.get("keywords_num", ()), strict=True):
    if word:
      yield Check(f"keyword {word!r}", within(answer.count(word), low, high), _credit(low, high))
  style = require.get("sentences_style", -1)
  if _asked(require, "num_sentences") and style in (-1, 0, 1):
    more = len(_parts(answer, "[.!?]+")) - require["num_sentences"]
    met = {-1: more < 0, 0: more == 0, 1: more > 0}[style]
    yield Check("num_sentences", met, 0.05 if style else 0.2)
  if letter := require.get("letter", ""):
    low, high = _bounds(require, "letter_num")
    yield Check("letter", within(answer.count(letter), low, high),
                0.2 if max(low, high) <= 0 else 0.05)


def _format(answer: str, require: Mapping[str, Any]) -> Iterator[Check]:
  """Checks of form: marks, bullets, paragraphs, first and last words."""
  marks = (("num_highlights", r"\*[^*\n]+\*|_[^_\n]+_"), ("num_placeholders", r"\[[^\[\]]+\]"))
  for name, pattern in marks:
    if _asked(require, name):
      yield Check(name, len(re.findall(pattern, answer)) >= require[name], 0.05)
  if _asked(require, "num_bullets"):
    bullets = sum(line.startswith("* ") for line in answer.splitlines())
    yield Check("num_bullets", bullets == require["num_bullets"], 0.1)
  separator = require.get("paragraphs", "")
  known = separator in SEPARATORS
  if _asked(require, "paragraphs_num") and separator:
    count = len(_parts(answer, re.escape(separator))) if known else -1
    yield Check("paragraphs_num", count == require["paragraphs_num"], 0.1)
  if phrase := _text(require, "end_phrase"):
    yield Check("end_phrase", answer.endswith(phrase), 0.1)
  word = _text(require, "first_word")
  if word and _asked(require, "nth_paragraph"):
    # a row that does not ask for a number of paragraphs names no separator: a blank line
    mark = separator if known else SEPARATORS[0]
    parts = _parts(answer, re.escape(mark)) if known or not separator else []
    n = require["nth_paragraph"]
    yield Check("first_word", n <= len(parts) and parts[n - 1].startswith(word), 0.1)


def _repeated(answer: str, require: Mapping[str, Any], prompt: str) -> tuple[list[Check], str]:
  """(the check that the answer begins with the prompt, the answer without it where it does)."""
  prompt = prompt.strip()
  if not (_asked(require, "prompt_to_repeat") and prompt):
    return [], answer
  met = answer.startswith(prompt)
  return [Check("prompt_to_repeat", met, 0.1)], answer.removeprefix(prompt).strip()


def score(answer: str, require: Mapping[str, Any], *, prompt: str = "") -> Score:
  """The score of an answer. Raises ValueError for an unknown key, or keywords without bounds."""
  unknown = sorted(require.keys() - KEYS)
  if unknown:
    raise ValueError(f"requirement {unknown[0]!r}; choices: {', '.join(sorted(KEYS))}")
  require = {name: value for name, value in require.items() if value is not None}
  repeated, rest = _repeated(answer.strip(), require, prompt)
  checks = (*repeated, *_format(rest, require), *_counts(rest, require))
  points = sum(check.credit for check in checks if check.met)
  return Score(points, all(check.met for check in checks), checks)


def answer_of(text: str) -> str | None:
  """What follows the last </think>; None where there is none."""
  _, mark, answer = text.rpartition("</think>")
  return answer.strip() if mark else None


def verify(texts: Sequence[str], requires: Sequence[Mapping[str, Any]],
           prompts: Sequence[str]) -> list[tuple[Verdict, Score]]:
  """A verdict, right when every instruction is met, and the score of each response.

  A response that does not end its reasoning is wrong and has no points. Raises ValueError when
  lengths differ, and as `score` does.
  """
  if not len(texts) == len(requires) == len(prompts):
    raise ValueError(f"{len(texts)} texts, {len(requires)} requirements, {len(prompts)} prompts")
  out = []
  for text, require, prompt in zip(texts, requires, prompts, strict=True):
    answer = answer_of(text)
    if answer is None:
      out.append((Verdict("wrong", "no </think>"), Score(0.0, False)))
      continue
    result = score(answer, require, prompt=prompt)
    unmet = ", ".join(check.name for check in result.checks if not check.met)
    why = f"unmet: {unmet}" if unmet else f"{len(result.checks)} met"
    out.append((Verdict("right" if result.right else "wrong", why), result))
  return out
