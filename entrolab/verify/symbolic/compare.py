r"""Symbolic comparison of two answers by math-verify, in the child of a verifier worker.

Only a worker imports math-verify; other processes call `available()`. The time limits of
math-verify are switched off, since they need signals of the main thread: the worker bounds the
time.
"""

import functools
import importlib.util
import re
from typing import Any, NamedTuple

from entrolab.verify import numerals, reading

INSTALL = "pip install 'entrolab[verify]' (math-verify)"


def available() -> bool:
  """Whether math-verify is installed; does not import it."""
  return importlib.util.find_spec("math_verify") is not None


def load() -> None:
  """Imports math-verify and runs it once, so that forked children share what that loads."""
  compare(r"\frac{1}{2}+x", r"x+\frac{2}{4}", 6)


_DECIMAL = re.compile(r"(?<![\w.^_])(\d{0,300})\.(\d{1,300})(?![\d.])")
_NUMBER = re.compile(r"(\\[A-Za-z]+\s?|[_^]\s?)?(?<![\d.])\d+(?:\.\d+)? (?=\d)")
_DIGITS = (30, 250)  # to which constants are evaluated: few decide nearly all, many the rest


class Reading(NamedTuple):
  """What math-verify reads in a text."""
  symbolic: list[Any]  # expressions, sets, relations, matrices
  textual: list[str]  # as text, which is compared where there is nothing symbolic
  digits: int  # significant digits of the shortest decimal; 0 without decimals


def _exact_text(text: str) -> tuple[str, int]:
  """(`text` with exact fractions for its decimals, digits of the shortest of them)."""
  lengths = [len((whole + rest).lstrip("0")) for whole, rest in _DECIMAL.findall(text)]
  exact = _DECIMAL.sub(lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}",
                       numerals.in_fractions(text))
  return exact.replace(r"\$", "").replace("…", r"\ldots"), min(lengths, default=0)


def _parted(text: str) -> bool:
  """Whether digits stand side by side with a blank between them: no number, and no product."""
  return any(not before for before in _NUMBER.findall(text))


@functools.lru_cache(maxsize=64)
def _read(text: str) -> Reading:
  """Reads a canonical text; `i` is the imaginary unit, and a decimal a fraction."""
  from latex2sympy2_extended import NormalizationConfig
  from math_verify import LatexExtractionConfig, parse
  exact, digits = _exact_text(text)
  # units are read before: the library drops letters such as t, h and `b -` as if they were some
  as_written = NormalizationConfig(units=False, malformed_operators=True, nits=True)
  config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=as_written)
  found = parse(f"${exact}$", [config], parsing_timeout=None,  # pyright: ignore
                raise_on_error=True)
  symbolic = [_imaginary(x) for x in found if not isinstance(x, str)]
  return Reading(symbolic, [x for x in found if isinstance(x, str)], digits)


def _imaginary(expression: Any) -> Any:
  """`expression` with i as the imaginary unit, and the other symbols real, as they are without i.
  """
  from sympy import I, Symbol
  symbols = expression.free_symbols
  if not any(symbol.name == "i" for symbol in symbols):
    return expression
  return expression.xreplace({symbol: I if symbol.name == "i" else Symbol(symbol.name, real=True)
                              for symbol in symbols})


def _evaluated(expression: Any, digits: int) -> tuple[Any, Any]:
  """(value, largest term) of an expression without symbols, to so many digits.

  Raises ValueError where it has no finite value.
  """
  from sympy import Add
  value = expression.evalf(digits)
  if not value.is_number or value.is_finite is not True:
    raise ValueError(f"no finite value: {value}")
  terms = expression.args if isinstance(expression, Add) else (expression,)
  return value, max(abs(term.evalf(digits)) for term in terms)


def _is_expression(x: Any) -> bool:
  """Whether x is an expression that may be evaluated.

  Percentages and single symbols are left to math-verify, which does not read them as numbers.
  """
  from sympy import Expr, Symbol, UnevaluatedExpr
  return isinstance(x, Expr) and not isinstance(x, Symbol) and not x.has(UnevaluatedExpr)


def _constants(gold: Any, answer: Any) -> bool | None:
  """Whether two expressions without symbols are equal, to 240 digits of their terms, at any scale.

  None where one has no finite value.
  """
  from sympy import S
  try:
    gold, answer = gold.doit(), answer.doit()
    if gold.is_Rational and answer.is_Rational:
      return bool(gold == answer)
    for digits in _DIGITS:
      (a, a_terms), (b, b_terms) = _evaluated(gold, digits), _evaluated(answer, digits)
      gap = abs(a - b).evalf(digits)
      # terms that cancel leave an error of their own size
      if gap > max(a_terms, b_terms) * S(10) ** (10 - digits):
        return False
    return True
  except (TypeError, ValueError, ArithmeticError, AttributeError):
    return None


def _rounds(gold: Any, answer: Any, digits: int) -> bool:
  """Whether two constants are equal relative to their size, to so many digits."""
  from sympy import S
  try:
    (a, _), (b, _) = _evaluated(gold.doit(), 30), _evaluated(answer.doit(), 30)
    return bool(abs(a - b) <= abs(a) * S(10) ** -digits)
  except (TypeError, ValueError, ArithmeticError, AttributeError):
    return False


def _differ_at_a_point(gold: Any, answer: Any) -> bool:
  """Whether two expressions differ at an arbitrary point by more than rounding explains.

  True proves that they differ, without costly simplification; False decides nothing. Symbols take
  positive values, where the root of a square is the number itself.
  """
  from sympy import Rational
  symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
  point = {symbol: Rational(400 + 618 * at % 1000, 1000) for at, symbol in enumerate(symbols, 1)}
  try:
    return _constants(gold.xreplace(point), answer.xreplace(point)) is False
  except (TypeError, ValueError, ArithmeticError, AttributeError):
    return False  # no number: an undefined function, 1/0


def _pair(gold: Any, answer: Any, digits: int) -> bool | None:
  """Whether two symbolic readings are equal where numbers decide it, else None."""
  if not (_is_expression(gold) and _is_expression(answer)):
    return None
  if gold.free_symbols or answer.free_symbols:
    return False if _differ_at_a_point(gold, answer) else None
  equal = _constants(gold, answer)
  # a decimal of enough digits stands for what it is the decimal of
  return equal or (equal is not None and digits > 0 and _rounds(gold, answer, digits))


class _Algebra:
  """Compares texts that are no numbers, and remembers why one could not be compared."""

  def __init__(self) -> None:
    self.failed = ""  # the first reason why a comparison is unknown
    self.mathematics = True  # whether every answer could be read

  def __call__(self, gold: str, answer: str, digits: int) -> bool | None:
    """Whether two texts are equal; None where that is unknown."""
    if _parted(answer) and not _parted(gold):
      return False
    golds, answers = _read(gold), _read(answer)
    if not golds.symbolic and not golds.textual:
      self.failed = self.failed or "math-verify cannot read the reference"
      return None
    if not answers.symbolic:
      self.mathematics = False
    if bool(golds.digits) == bool(answers.digits) or max(golds.digits, answers.digits) < digits:
      digits_of_decimal = 0  # both sides are exact, or the decimal is too short to stand for more
    else:
      digits_of_decimal = digits
    return self.pairs(golds, answers, digits_of_decimal, (gold, answer))

  def pairs(self, golds: Reading, answers: Reading, digits: int, texts: tuple[str, str]
            ) -> bool | None:
    """Symbolic readings are compared with each other, and textual ones with each other."""
    failed = ""
    for g in golds.symbolic:
      for a in answers.symbolic:
        try:
          equal = _pair(g, a, digits)
          if equal is None:
            equal = _verified(g, a)
          if equal:
            return True
        except Exception as error:  # whatever the library raises, this pair was not compared
          failed = failed or f"math-verify raised {type(error).__name__}"
    if texts[0] == texts[1] or any(_verified(g, a) for g in golds.textual for a in answers.textual):
      return True
    if not golds.symbolic and answers.symbolic:
      failed = failed or "math-verify cannot read the reference"
    self.failed = self.failed or failed
    return None if failed else False


def _verified(gold: Any, answer: Any) -> bool:
  """The decision of math-verify."""
  from math_verify import verify
  return verify([gold], [answer], float_rounding=50, allow_set_relation_comp=True,
                timeout_seconds=None, raise_on_error=True)


def compare(gold: str, answer: str, digits: int) -> tuple[str, str]:
  """(status, reason) of canonical `answer` against canonical `gold`.

  digits: significant digits which a decimal has that stands for a number without finite decimals.
  The status is "unknown" when math-verify cannot read the reference or raises.
  """
  algebra = _Algebra()
  same = reading.equal(gold, answer, digits, algebra)
  if same is None and not algebra.failed:  # the parts do not decide it: the whole
    same = algebra(gold, answer, digits)
  if same:
    return "right", "math-verify: equal"
  if same is None or algebra.failed:
    return "unknown", algebra.failed
  return "wrong", "different values" if algebra.mathematics else "the answer is not mathematics"
