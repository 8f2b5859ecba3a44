"""Symbolic comparison of two answers by math-verify, in the child of a verifier worker.

Only a worker imports math-verify; other processes call `available()`. The time limits of
math-verify are switched off, since they need signals of the main thread: the worker bounds the
time.
"""

import importlib.util
import math

INSTALL = "pip install 'entrolab[verify]' (math-verify)"


def available() -> bool:
  """Whether math-verify is installed; does not import it."""
  return importlib.util.find_spec("math_verify") is not None


def load() -> None:
  """Imports math-verify and runs it once, so that forked children share what that loads."""
  compare(r"\frac{1}{2}+x", r"x+\frac{2}{4}", 6)


def _parse(text: str) -> tuple[list, list]:
  """(symbolic readings, textual readings) of an answer."""
  from math_verify import LatexExtractionConfig, parse
  found = parse(f"${text}$", [LatexExtractionConfig(boxed_match_priority=0)],
                parsing_timeout=None, raise_on_error=True)  # pyright: ignore
  return [x for x in found if not isinstance(x, str)], [x for x in found if isinstance(x, str)]


def _differ_at_a_point(gold, answer, digits: int) -> bool:
  """Whether two expressions differ at an arbitrary point by more than rounding explains.

  True proves that they differ, without costly simplification; False decides nothing. Symbols take
  positive values, where the root of a square is the number itself. Percentages and single symbols
  are left to math-verify, which does not read them strictly as numbers.
  """
  from sympy import Expr, Float, Rational, Symbol, UnevaluatedExpr
  if not all(isinstance(x, Expr) and not isinstance(x, Symbol) and not x.has(UnevaluatedExpr)
             for x in (gold, answer)):
    return False
  symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
  point = {symbol: Rational(400 + 618 * at % 1000, 1000) for at, symbol in enumerate(symbols, 1)}
  try:
    a, b = (complex(x.evalf(30, subs=point)) for x in (gold, answer))
    gap = abs(a - b)
    size = abs(a) + abs(b)
  except (TypeError, ValueError, ArithmeticError, AttributeError):
    return False  # no number: an undefined function, 1/0
  rounded = any(x.has(Float) for x in (gold, answer))
  # terms that cancel exactly leave less than 1e-25 of the 30 digits
  tolerance = 2.0 * 10.0 ** -digits if rounded else 1e-25
  return math.isfinite(size) and gap > tolerance and gap > 1e-9 * size


def compare(gold: str, answer: str, digits: int) -> tuple[str, str]:
  """(status, reason) of canonical `answer` against canonical `gold`.

  digits: decimals to which rounded numbers must agree. The status is "unknown" when math-verify
  cannot read the reference or raises.
  """
  from math_verify import verify
  golds, gold_texts = _parse(gold)
  answers, answer_texts = _parse(answer)
  if not golds and not gold_texts:
    return "unknown", "math-verify cannot read the reference"
  failed = ""  # the first error
  differ = False
  # symbolic readings are compared with each other, and textual ones with each other
  pairs = [(g, a) for g in golds for a in answers]
  pairs += [(g, a) for g in gold_texts for a in answer_texts]
  for g, a in pairs:
    try:
      if not isinstance(g, str) and _differ_at_a_point(g, a, digits):
        differ = True
        continue
      if verify([g], [a], float_rounding=digits, allow_set_relation_comp=True,
                timeout_seconds=None, raise_on_error=True):
        return "right", "math-verify: equal"
    except Exception as error:  # whatever the library raises, this pair was not compared
      failed = failed or f"math-verify raised {type(error).__name__}"
  if failed:
    return "unknown", failed
  if not golds and answers:
    return "unknown", "math-verify cannot read the reference"
  if differ:
    return "wrong", "different values"
  return "wrong", "math-verify: different" if answers else "the answer is not mathematics"
