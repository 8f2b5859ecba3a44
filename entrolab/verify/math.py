r"""Mathematical answers: exact text, integers and rationals first, then math-verify in a pool.

The answer of a response is found by `extract`; it and the reference are brought into one spelling
by `canonical`. Equal text and exact numbers are decided here, in microseconds. What `costly`
refuses is unknown. The rest is compared symbolically by killable workers (extra [verify]).
"""

import re
from collections.abc import Sequence

from entrolab.verify import Verdict, numerals, reading
from entrolab.verify.canonical import MAX_CHARACTERS
from entrolab.verify.extract import Answer, Require, extract
from entrolab.verify.symbolic import compare as symbolic
from entrolab.verify.symbolic.cost import costly
from entrolab.verify.symbolic.pool import Job, Pool, shared

_DELIMITED = re.compile(r"(?<!\\)\$|\\[(\[]|\\{1,2}(?:boxed|fbox)|####")
_RATIO = re.compile(r"(\d{1,9}):(\d{1,9})")
_INTEGER = re.compile(r"-?\d{1,300}")
_WORD = re.compile(r"[A-Za-z' -]{3,60}")

def reference(answer: str) -> str:
  """The reference answer itself: bare LaTeX as it is, or taken from the text that delimits it."""
  found = extract(answer) if _DELIMITED.search(answer[-10_000:]) else Answer("", "none")
  return found.text or answer.strip()


def _without_algebra(gold: str, answer: str, digits: int) -> bool | None:
  """Whether two texts that are no two numbers are equal, as far as that needs no algebra."""
  del digits
  if _WORD.fullmatch(gold) and gold.casefold() == answer.casefold():
    return True
  # without a digit or a command (\pi, \frac) the answer cannot equal a number
  if not re.search(r"[\d\\]", answer) and numerals.read(gold) is not None:
    return False
  return None


def quick(gold: str, answer: str, digits: int = 6) -> Verdict | None:
  """The verdict on canonical `gold` and `answer` where it needs no symbolic algebra, else None."""
  if not answer:
    return Verdict("wrong", "the answer is empty")
  if answer == gold:
    return Verdict("right", "exact")
  if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
    return _EQUAL if int(gold) == int(answer) else _DIFFERENT
  if max(len(gold), len(answer)) <= MAX_CHARACTERS:  # numbers cost nothing, whatever their size
    same = reading.equal_numbers(gold, answer, digits)
    if same is not None:
      return _EQUAL if same else _DIFFERENT
  refused = costly(answer, gold)
  if refused:
    return Verdict("unknown", f"refused: {refused}")
  refused = costly(gold, gold)
  if refused:
    return Verdict("unknown", f"reference refused: {refused}")
  gold_ratio, answer_ratio = _RATIO.fullmatch(gold), _RATIO.fullmatch(answer)
  if gold_ratio and answer_ratio and (int(gold_ratio[2]) == 0 or int(answer_ratio[2]) == 0):
    return Verdict("wrong", "different times")  # 12:00 is no division by zero
  same = reading.equal(gold, answer, digits, _without_algebra)
  if same is None:
    return None
  return _EQUAL if same else _DIFFERENT


_EQUAL = Verdict("right", "equal numbers")
_DIFFERENT = Verdict("wrong", "different numbers")


def require_math_verify(where: str) -> None:
  """Raises ImportError with the command that installs math-verify when it is absent."""
  if not symbolic.available():
    raise ImportError(f"{where} needs symbolic comparison: {symbolic.INSTALL}")


def _noted(verdict: Verdict, note: str) -> Verdict:
  return Verdict(verdict.status, f"{verdict.why}; {note}") if note else verdict


def verify(texts: Sequence[str], answers: Sequence[str], *, pool: Pool | None = None,
           require: Require = "any", digits: int = 6) -> list[Verdict]:
  r"""A verdict for each response in `texts` against the reference at the same position.

  answers: the references, bare LaTeX, or text that delimits it by $, \boxed{} or ####.
  pool: where symbolic comparisons run; None: the pool of this process, started when first needed.
  require: what counts as an answer (see `extract`).
  digits: decimals to which a rounded number must agree.

  Raises ValueError when lengths differ or a reference is empty, TypeError for what is not text,
  ImportError when a symbolic comparison is needed and math-verify is absent.
  """
  if len(texts) != len(answers):
    raise ValueError(f"{len(texts)} texts for {len(answers)} reference answers")
  for at, (text, answer) in enumerate(zip(texts, answers, strict=True)):
    if not isinstance(text, str) or not isinstance(answer, str):
      raise TypeError(f"row {at}: text and answer must be str, not {type(text).__name__} and "
                      f"{type(answer).__name__}")
  golds = {answer: reading.spelled(reference(answer)) for answer in dict.fromkeys(answers)}
  for answer, gold in golds.items():
    if not gold:
      raise ValueError(f"row {answers.index(answer)}: the reference {answer[:40]!r} is empty")
  found = [extract(text, require) for text in texts]
  verdicts: dict[int, Verdict] = {}  # by row
  jobs: dict[Job, list[int]] = {}  # the rows of each comparison: a group often repeats an answer
  for row, (extracted, answer) in enumerate(zip(found, answers, strict=True)):
    gold, text = golds[answer], reading.answer(extracted.text, extracted.after)
    if extracted.how == "none":
      verdict = Verdict("wrong", extracted.note)
    else:
      verdict = quick(gold, text, digits)
    if verdict is None:
      jobs.setdefault((gold, text, digits), []).append(row)
    else:
      verdicts[row] = verdict
  if jobs:
    gold, text, _ = next(iter(jobs))
    require_math_verify(f"comparing {text[:40]!r} with {gold[:40]!r}")
    for job, verdict in zip(jobs, (pool or shared()).run(list(jobs)), strict=True):
      verdicts.update(dict.fromkeys(jobs[job], verdict))
  return [verdicts[row] if extracted.how == "none" else _noted(verdicts[row], extracted.note)
          for row, extracted in enumerate(found)]
