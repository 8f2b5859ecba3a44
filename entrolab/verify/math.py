r"""Mathematical answers: exact text, integers and rationals first, then math-verify in a pool.

Text goes through `extract`, both sides through `canonical`. What two exact numbers decide is
decided here, in microseconds; what `costly` refuses is unknown; the rest is compared
symbolically by killable workers (extra [verify]).
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from entrolab.verify import Verdict
from entrolab.verify.canonical import canonical, decimals, number, unit
from entrolab.verify.extract import Answer, Require, extract
from entrolab.verify.symbolic import compare as symbolic
from entrolab.verify.symbolic.cost import costly
from entrolab.verify.symbolic.pool import Job, Pool, shared

_DELIMITED = re.compile(r"\$|\\[(\[]|\\{1,2}(?:boxed|fbox)|####")
_RATIO = re.compile(r"(\d{1,9}):(\d{1,9})")


def reference(answer: str) -> str:
  """The reference answer proper: bare LaTeX as it stands, or out of the text that delimits it."""
  found = extract(answer) if _DELIMITED.search(answer[-10_000:]) else Answer("", "none")
  return found.text or answer.strip()


def _percent(text: str) -> str:
  return text.removesuffix("%").removesuffix("\\").rstrip()


def _numbers(gold: str, answer: str, digits: int) -> Verdict | None:
  """What exact arithmetic says; None where either side is no number, or rounding decides."""
  a, b = number(_percent(answer)), number(_percent(gold))
  if b is not None and not re.search(r"[\d\\]", answer):
    return Verdict("wrong", "the answer is no number")
  if a is None or b is None:
    return None
  if unit(answer) != unit(gold) and unit(answer) and unit(gold):
    return Verdict("wrong", "different units")
  if a == b:
    return Verdict("right", "equal numbers")
  if answer.endswith("%") != gold.endswith("%"):
    return None                                    # 25% against 0.25
  close = abs(a - b) <= Fraction(1, 10 ** digits) and decimals(gold + " " + answer)
  return None if close else Verdict("wrong", "different numbers")


def quick(gold: str, answer: str, digits: int = 6) -> Verdict | None:
  """What needs no symbolic algebra for canonical `gold` and `answer`; None for the rest."""
  if not answer:
    return Verdict("wrong", "the answer is empty")
  if answer == gold:
    return Verdict("right", "exact")
  refused = costly(answer, gold)
  if refused:
    return Verdict("unknown", f"refused: {refused}")
  refused = costly(gold, gold)
  if refused:
    return Verdict("unknown", f"reference refused: {refused}")
  for comma, point in ((gold, answer), (answer, gold)):   # a decimal comma
    if re.fullmatch(r"\d{1,99},\d{1,99}", comma) and comma.replace(",", ".") == point:
      return Verdict("right", "equal numbers")
  ratios = _RATIO.fullmatch(gold), _RATIO.fullmatch(answer)
  if ratios[0] and ratios[1] and (int(ratios[0][2]) == 0 or int(ratios[1][2]) == 0):
    return Verdict("wrong", "different times")            # 12:00 is no division
  return _numbers(gold, answer, digits)


def require_math_verify(where: str) -> None:
  """Raises ImportError, saying how to install it, when math-verify is absent."""
  if not symbolic.available():
    raise ImportError(f"{where} needs symbolic comparison: {symbolic.INSTALL}")


def _noted(verdict: Verdict, note: str) -> Verdict:
  return Verdict(verdict.status, f"{verdict.why}; {note}") if note else verdict


def verify(texts: Sequence[str], answers: Sequence[str], *, pool: Pool | None = None,
           require: Require = "any", digits: int = 6) -> list[Verdict]:
  r"""One verdict for each response in `texts` against the reference at the same place.

  answers: bare LaTeX, or text that delimits it by $, \boxed{} or ####; pool: where symbolic
  comparisons run (default: one for the process, started when first needed); require: what
  counts as an answer (see `extract`); digits: decimals to which a float must agree.

  Raises ValueError when lengths differ or a reference is empty, TypeError for what is not text,
  ImportError when a symbolic comparison is needed and math-verify is absent.
  """
  if len(texts) != len(answers):
    raise ValueError(f"{len(texts)} texts for {len(answers)} reference answers")
  for at, (text, answer) in enumerate(zip(texts, answers, strict=True)):
    if not isinstance(text, str) or not isinstance(answer, str):
      raise TypeError(f"row {at}: text and answer must be str, not {type(text).__name__} and "
                      f"{type(answer).__name__}")
  golds = {answer: canonical(reference(answer)) for answer in dict.fromkeys(answers)}
  for answer, gold in golds.items():
    if not gold:
      raise ValueError(f"row {answers.index(answer)}: the reference {answer[:40]!r} is empty")
  found = [extract(text, require) for text in texts]
  verdicts: dict[int, Verdict] = {}
  jobs: dict[Job, list[int]] = {}
  for at, (one, answer) in enumerate(zip(found, answers, strict=True)):
    gold, text = golds[answer], canonical(one.text)
    verdict = Verdict("wrong", one.note) if one.how == "none" else quick(gold, text, digits)
    if verdict is None:
      jobs.setdefault((gold, text, digits), []).append(at)
    else:
      verdicts[at] = verdict
  if jobs:
    gold, text, _ = next(iter(jobs))
    require_math_verify(f"comparing {text[:40]!r} with {gold[:40]!r}")
    for job, verdict in zip(jobs, (pool or shared()).run(list(jobs)), strict=True):
      verdicts.update(dict.fromkeys(jobs[job], verdict))
  return [verdicts[at] if one.how == "none" else _noted(verdicts[at], one.note)
          for at, one in enumerate(found)]
