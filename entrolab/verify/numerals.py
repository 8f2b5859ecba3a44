r"""The exact value of a number in canonical spelling, whatever way it is written.

Read are integers, decimals with a point or a comma, recurring decimals, fractions, ratios, mixed
numbers, powers of ten and other bases, with a sign, of at most 999 digits. Two
numbers are compared exactly. Only where one is a decimal and the other has no finite decimals, the
decimal stands for what rounds to it at its last digit: no tolerance has a scale of its own.
"""

import dataclasses
import re
from fractions import Fraction

MAX_EXPONENT = 999  # of a power of ten

_DECIMAL = r"(?:\d{1,999}(?:\.\d{0,999})?|\.\d{1,999})"
_SIGN = r"([-+]?)\s?"
_PLAIN = re.compile(rf"{_SIGN}({_DECIMAL})")
_ENCLOSED = re.compile(r"\(\s?([^()]*?)\s?\)")
_COMMA = re.compile(rf"{_SIGN}(\d{{1,3}}(?:\.\d{{3}}){{1,99}}|\d{{1,999}}),(\d{{1,999}})")
_OVER = (rf"(?:\\frac\s?(?:\{{\s?([-+]?{_DECIMAL})\s?\}}|(\d))\s?(?:\{{\s?([-+]?{_DECIMAL})\s?\}}"
         rf"|(\d))|([-+]?{_DECIMAL})\s?(?:/|\\div)\s?([-+]?{_DECIMAL}))")
_FRACTION = re.compile(rf"{_SIGN}{_OVER}")
# an integer before a proper fraction is a sum; `2\frac{2}{3}` needs no blank, `2 2/3` does
_MIXED = re.compile(rf"{_SIGN}(\d{{1,99}})(?:\s?\\frac\s?(?:\{{\s?(\d{{1,99}})\s?\}}|(\d))\s?"
                    r"(?:\{\s?(\d{1,99})\s?\}|(\d))| (\d{1,99})\s?/\s?(\d{1,99}))")
_TIMES_TEN = re.compile(rf"{_SIGN}(?:({_DECIMAL})\s?(?:\\times|\\cdot|\*|x)\s?)?10\s?\^\s?"
                        r"(?:\{\s?([-+]?\d{1,9})\s?\}|(\d))")
# the digits before the point, those after it that do not recur, and the period
_RECURRING = re.compile(
    _SIGN + r"(\d{0,300})\.(\d{0,300})"
    r"(?:\\(?:overline|bar|overbar|overdot)\s?(?:\{(\d{1,300})\}|(\d))|\((\d{1,300})\)"
    r"|\\dot\s?(?:\{(\d{1,300})\}|(\d))(?:(\d{0,300})\\dot\s?(?:\{(\d)\}|(\d)))?)")
_GOES_ON = re.compile(_SIGN + r"(\d{0,300})\.(\d{1,300})…")  # 0.333…
_PERIOD = re.compile(r"(\d)\1{2,99}$|(\d{2,9})\2{1,50}$")

_BASE_NAMES = {name: base for base, name in enumerate(
    "two three four five six seven eight nine ten eleven twelve".split(), 2)} | {
        "binary": 2, "ternary": 3, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16,
        "sixteen": 16}
_TEXT = re.compile(r"\\text\s?\{([^{}]*)\}")
_IN_BASE = re.compile(r"([-+]?)\s?[({]{0,3}([0-9A-Z.]{1,300}|[0-9a-f]{2,300})[)}]{0,3}\s?"
                      r"(?:_\s?|\(?(?:in )?(?=base))"
                      r"[{( ]{0,4}(?:base[ -]?)?(\d{1,2}|[a-z]{3,11})[)} ]{0,4}")
_PREFIXED = re.compile(r"([-+]?)0(?:[xX]([0-9A-Fa-f]{1,300})|[bB]([01]{1,999})|[oO]([0-7]{1,400}))")


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
  """A number that a text writes out."""
  value: Fraction  # exact
  digits: int = 0  # significant digits of a decimal; 0: written as an integer or fraction
  places: int = 0  # digits of a decimal after its point, fewer by the power of ten that multiplies

  def times(self, factor: Fraction | int) -> "Number":
    """The number of a multiple: of percent, of a unit, of millions."""
    return Number(self.value * factor, self.digits, self.places)


def _rational(text: str) -> Fraction:
  """The value of a decimal, which may begin or end with its point."""
  text = text.rstrip(".") if not text.lstrip("+-").startswith(".") else text.replace(".", "0.", 1)
  return Fraction(text)


def _decimal(sign: str, text: str, power: int = 0) -> Number:
  """A decimal times a power of ten."""
  value = _rational(text) * Fraction(10) ** power
  whole, point, rest = text.partition(".")
  digits = len((whole + rest).lstrip("0")) if point and rest or power else 0
  return Number(-value if sign == "-" else value, digits, len(rest) - power)


def _signed(sign: str, value: Fraction) -> Number:
  return Number(-value if sign == "-" else value)


def _recurring(whole: str, fixed: str, period: str) -> Fraction:
  """whole.fixed(period): the period over as many nines as it has digits."""
  scale = 10 ** len(fixed)
  return (Fraction(int(whole + fixed or "0"), scale)
          + Fraction(int(period), scale * (10 ** len(period) - 1)))


def _repeating(text: str) -> Number | None:
  match = _RECURRING.fullmatch(text)
  if match:
    sign, whole, fixed, *periods = match.groups()
    return _signed(sign, _recurring(whole, fixed, "".join(part or "" for part in periods)))
  match = _GOES_ON.fullmatch(text)
  if match:
    sign, whole, digits = match.groups()
    found = _PERIOD.search(digits)
    if found:
      return _signed(sign, _recurring(whole, digits[:found.start()], found[1] or found[2]))
  return None


def _digits_in(base: int, sign: str, text: str) -> Number | None:
  """The value of digits in a base; None where a digit is not below it."""
  whole, _, rest = text.partition(".")
  try:
    value = Fraction(int(whole + rest, base), base ** len(rest))
  except ValueError:  # a digit that the base does not have
    return None
  return _signed(sign, value)


def _based(text: str) -> Number | None:
  """A number with its base as an index, in words, or as programs write it."""
  match = _PREFIXED.fullmatch(text)
  if match:
    sign, *forms = match.groups()
    base, digits = next((b, d) for b, d in zip((16, 2, 8), forms, strict=True) if d)
    return _digits_in(base, sign, digits)
  if "_" not in text and "base" not in text:
    return None
  match = _IN_BASE.fullmatch(_TEXT.sub(lambda m: m[1].strip(), text))
  if match is None:
    return None
  name = match[3]
  base = int(name) if name.isdigit() else _BASE_NAMES.get(name, 0)
  digits = match[2]
  if not 2 <= base <= 36 or not digits.strip("."):
    return None
  if base != 16 and digits != digits.upper():
    return None
  if not re.search(r"\d", digits) and (base < 11 or len(digits) < 2):
    return None  # A_2 is a variable with an index, AB_{16} a number
  return _digits_in(base, match[1], digits)


def _quotient(sign: str, over: str, under: str) -> Number | None:
  divisor = _rational(under)
  return _signed(sign, _rational(over) / divisor) if divisor else None


def read(text: str, *, comma: bool = False) -> Number | None:
  """The number that canonical `text` is as a whole, or None.

  comma: whether `1,5` is a decimal, which in a list it is not.
  """
  match = _PLAIN.fullmatch(text)
  if match:
    return _decimal(match[1], match[2])
  match = _ENCLOSED.fullmatch(text)
  if match:
    return read(match[1])
  match = _FRACTION.fullmatch(text)
  if match:
    sign, *parts = match.groups()
    over, under = [part for part in parts if part]
    return _quotient(sign, over, under)
  match = _MIXED.fullmatch(text)
  if match:
    sign, whole, *parts = match.groups()
    over, under = [int(part) for part in parts if part]
    return _signed(sign, whole_plus(int(whole), over, under)) if 0 < over < under else None
  match = _TIMES_TEN.fullmatch(text)
  if match:
    power = int(match[3] or match[4])
    return _decimal(match[1], match[2] or "1", power) if abs(power) <= MAX_EXPONENT else None
  match = _COMMA.fullmatch(text) if comma else None
  if match:
    return _decimal(match[1], f"{match[2].replace('.', '')}.{match[3]}")
  return _repeating(text) or _based(text)


def whole_plus(whole: int, over: int, under: int) -> Fraction:
  """A mixed number."""
  return whole + Fraction(over, under)


def _is_finite(value: Fraction) -> bool:
  """Whether a fraction has finitely many decimals."""
  denominator = value.denominator
  for prime in (2, 5):
    while denominator % prime == 0:
      denominator //= prime
  return denominator == 1


def rounds_to(value: Fraction, decimal: Number, digits: int) -> bool:
  """Whether `value` is the decimal at its last digit, of at least `digits` significant ones."""
  if decimal.digits < digits:
    return False
  return abs(value - decimal.value) * 2 <= Fraction(10) ** -decimal.places


def same(gold: Number, answer: Number, digits: int) -> bool:
  """Whether two numbers are equal: exactly, or one as the decimal that the other rounds to.

  digits: significant digits which such a decimal has at least.
  """
  if gold.value == answer.value:
    return True
  for exact, decimal in ((gold, answer), (answer, gold)):
    if decimal.digits and not exact.digits and not _is_finite(exact.value):
      return rounds_to(exact.value, decimal, digits)
  return False


# Numbers inside a longer text, which math-verify reads wrongly.
_INSIDE = (
    re.compile(r"(?<![\w.\\])\d{0,300}\.\d{0,300}(?:\\(?:overline|bar)\s?(?:\{\d{1,300}\}|\d)"
               r"|\(\d{1,300}\)|\\dot\s?(?:\{\d{1,300}\}|\d)(?:\d{0,300}\\dot\s?(?:\{\d\}|\d))?"
               r"|\d{1,300}…)"),
    re.compile(r"(?<![\w.\\{/^])\d{1,99} \d{1,99} ?/ ?\d{1,99}(?![\d.])"),
    re.compile(r"(?<![\w.\\])\d{1,300}_\s?(?:\{\s?\d{1,2}\s?\}|\d)"),
    re.compile(r"(?<![\w.\\])0[xX][0-9A-Fa-f]{1,99}(?!\w)"))


def in_fractions(text: str) -> str:
  """`text` with its recurring decimals, plain mixed numbers and other bases as fractions."""

  def fraction(match: re.Match[str]) -> str:
    number = read(match[0])
    if number is None:
      return match[0]
    value = number.value
    if value.denominator == 1:
      return str(value)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

  for pattern in _INSIDE:
    text = pattern.sub(fraction, text)
  return text
