"""Two answers, symbolically: math-verify in the child of a verifier worker, without its alarms.

Only a worker imports this file's subject; a parent asks `available()`. Nothing here bounds time.
"""

import importlib.util
import math

INSTALL = "pip install 'entrolab[verify]' (math-verify)"


def available() -> bool:
  """Whether math-verify can be imported, found out without importing it."""
  return importlib.util.find_spec("math_verify") is not None


def load() -> None:
  """Imports math-verify and runs it once, so that a forked child starts warm."""
  compare(r"\frac{1}{2}+x", r"x+\frac{2}{4}", 6)


def _parse(text: str) -> tuple[list, list]:
  """(symbolic readings, textual readings) of an answer."""
  from math_verify import LatexExtractionConfig, parse
  found = parse(f"${text}$", [LatexExtractionConfig(boxed_match_priority=0)],
                parsing_timeout=None, raise_on_error=True)  # pyright: ignore
  return [x for x in found if not isinstance(x, str)], [x for x in found if isinstance(x, str)]


def _apart(gold, answer, digits: int) -> bool:
  """Whether two expressions differ at one arbitrary point, by more than rounding explains.

  A certificate of difference that spares simplification; False decides nothing. Symbols take
  positive values, where roots of squares are plain. Percentages and single symbols, which
  math-verify reads more loosely than as numbers, are left to it.
  """
  from sympy import Expr, Float, Rational, Symbol, UnevaluatedExpr
  if not all(isinstance(x, Expr) and not isinstance(x, Symbol) and not x.has(UnevaluatedExpr)
             for x in (gold, answer)):
    return False
  symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
  point = {symbol: Rational(400 + 618 * at % 1000, 1000) for at, symbol in enumerate(symbols, 1)}
  try:
    a, b = (complex(x.evalf(30, subs=point)) for x in (gold, answer))
    gap, size = abs(a - b), abs(a) + abs(b)
  except (TypeError, ValueError, ArithmeticError, AttributeError):
    return False                                   # no number: a function without a name, 1/0
  rounded = any(x.has(Float) for x in (gold, answer))
  least = 2.0 * 10.0 ** -digits if rounded else 1e-25    # 1e-25: what cancels to zero stays under
  return math.isfinite(size) and gap > least and gap > 1e-9 * size


def compare(gold: str, answer: str, digits: int) -> tuple[str, str]:
  """(status, why) of `answer` against `gold`, both canonical; floats agree to `digits` decimals.

  A reference that math-verify cannot read, or an error inside it, gives unknown.
  """
  from math_verify import verify
  golds, gold_texts = _parse(gold)
  answers, answer_texts = _parse(answer)
  if not golds and not gold_texts:
    return "unknown", "math-verify cannot read the reference"
  failed, apart = "", False
  pairs = [(g, a) for g in golds for a in answers] + [
      (g, a) for g in gold_texts for a in answer_texts]
  for g, a in pairs:
    try:
      if not isinstance(g, str) and _apart(g, a, digits):
        apart = True
        continue
      if verify([g], [a], float_rounding=digits, allow_set_relation_comp=True,
                timeout_seconds=None, raise_on_error=True):
        return "right", "math-verify: equal"
    except Exception as error:  # a library's any error is a comparison that was not made
      failed = failed or f"math-verify raised {type(error).__name__}"
  if failed:
    return "unknown", failed
  if not golds and answers:
    return "unknown", "math-verify cannot read the reference"
  if apart:
    return "wrong", "different values"
  return "wrong", "math-verify: different" if answers else "the answer is not mathematics"
