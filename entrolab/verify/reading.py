r"""What an answer says: numbers with units, times of day, inequalities, and lists of these.

References, answers and votes are read here and nowhere else, before any algebra. Where graders
differ, this is the rule. Numbers are compared exactly; a decimal of enough digits stands for what
rounds to it if that has no finite decimals. A missing unit or currency stands for the asked one, a
different one is another quantity. 25\% is 25 as well as 0.25, 30^\circ is 30 as well as \pi/6, and
neither is the other. A list counts its members. math-verify decides the rest in worker processes.
"""

import functools
import re
from collections.abc import Callable
from fractions import Fraction

from entrolab.verify import numerals, structure, units
from entrolab.verify.canonical import MAX_CHARACTERS, canonical
from entrolab.verify.characters import clean
from entrolab.verify.numerals import Number
from entrolab.verify.structure import Parts
from entrolab.verify.units import Unit

# Whether two texts that are no numbers are equal: (gold, answer, digits) -> True, False or None.
Algebra = Callable[[str, str, int], bool | None]

_PERCENT = (("%", 1),)
_DEGREE = (("°", 1),)
_HALVES = ({"a.m.": 1}, {"p.m.": 1})
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_VARIABLE = r"((?:[A-Za-z]|\\[a-z]{2,8})(?:_(?:\{[^{}]{1,9}\}|\w))?)"
_COMPARED = r"(\\[lg]e(?![A-Za-z])|[<>]=?)"
_SIDE = r"((?:(?!\\[lg]e(?![A-Za-z])|\\ne|\\in(?![A-Za-z]))[^<>=])+?)"
_INEQUALITY = re.compile(rf"{_VARIABLE}\s?{_COMPARED}\s?{_SIDE}")
_BACKWARDS = re.compile(rf"{_SIDE}\s?{_COMPARED}\s?{_VARIABLE}")
_OPERATORS = {r"\le": "<=", "<=": "<=", r"\ge": ">=", ">=": ">=", "<": "<", ">": ">"}
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def spelled(text: str) -> str:
  """The canonical spelling of a reference or answer in any characters; long ones are only stripped.
  """
  return _spelled(text) if len(text) <= MAX_CHARACTERS else text.strip()


@functools.lru_cache(maxsize=4096)
def _spelled(text: str) -> str:
  # a group repeats its reference in every row, and most of its answers
  return canonical(clean(text))


def answer(text: str, after: str) -> str:
  """The canonical spelling of an extracted answer, with the unit that `after` begins with."""
  return spelled(units.behind(text, after) if after else text)


def _is_number(text: str) -> bool:
  """Whether a text is a number or a time of day."""
  return numerals.read(text) is not None or _CLOCK.fullmatch(text) is not None


def quantity(text: str, *, comma: bool = False) -> tuple[Number | None, Unit]:
  """(the number, its unit) of a canonical text; words of scale are multiplied in.

  comma: whether `1,5` is a decimal.
  """
  number = numerals.read(text, comma=comma)
  if number is not None:
    return number, units.NONE
  text, unit = units.split(text, _is_number)
  number = numerals.read(text, comma=comma)
  return (None if number is None else number.times(unit.scale)), unit


class _Comparison:
  """Compares canonical texts, with algebra for what is no number."""

  def __init__(self, digits: int, algebra: Algebra) -> None:
    self.digits = digits  # significant digits of a decimal that stands for a number
    self.algebra = algebra

  def whole(self, gold: str, text: str) -> bool | None:
    """Two whole answers: 1,5 is a decimal where the other side is none, and a list where it is one.
    """
    for comma, point in ((gold, text), (text, gold)):
      if "," in comma and "," not in point:
        number, unit = quantity(comma, comma=True)
        other, other_unit = quantity(point)
        if number is not None and other is not None and number.digits:
          return self.numbers(other, other_unit, number, unit)
    return structure.same(structure.parse(gold), structure.parse(text), self.values)

  def numbers(self, gold: Number, gold_unit: Unit, number: Number, unit: Unit) -> bool:
    """Two numbers with their units."""
    ratio = units.ratio(gold_unit, unit)
    if ratio is None:
      return False
    number = number.times(ratio)
    if numerals.same(gold, number, self.digits):
      return True
    # 25\% is 25 of the asked per cent, and 0.25
    if gold_unit.dimension == _PERCENT and not unit.dimension:
      return numerals.same(gold.times(Fraction(1, 100)), number, self.digits)
    if unit.dimension == _PERCENT and not gold_unit.dimension:
      return numerals.same(gold, number.times(Fraction(1, 100)), self.digits)
    return False

  def values(self, gold: str, text: str) -> bool | None:
    """Two texts without structure."""
    if gold == text:
      return True
    gold_number, gold_unit = quantity(gold)
    number, unit = quantity(text)
    if gold_number is not None and number is not None:
      return self.numbers(gold_number, gold_unit, number, unit)
    return self.expressions(gold, text)

  def expressions(self, gold: str, text: str) -> bool | None:
    """Two texts of which at least one is no number: units and times first, then algebra."""
    gold, gold_unit = units.split(gold, _is_number)
    text, unit = units.split(text, _is_number)
    ratio = units.ratio(gold_unit, unit)
    if ratio is None:
      return False
    at_the_same_time = _clock(gold, gold_unit, text, unit)
    if at_the_same_time is not None:
      return at_the_same_time
    factor = ratio * unit.scale / gold_unit.scale
    if factor != 1:
      text = rf"\frac{{{factor.numerator}}}{{{factor.denominator}}} ({text})"
    if gold == text:
      return True
    sides, others = _inequality(gold), _inequality(text)
    if sides and others and sides[:2] == others[:2]:
      return structure.same(structure.parse(sides[2]), structure.parse(others[2]), self.values)
    equal = self.algebra(gold, text, self.digits)
    if equal is False and gold_unit.dimension in _FACTORS and not unit.dimension:
      return self.algebra(gold + _FACTORS[gold_unit.dimension], text, self.digits)
    if equal is False and unit.dimension in _FACTORS and not gold_unit.dimension:
      return self.algebra(gold, text + _FACTORS[unit.dimension], self.digits)
    return equal


# what per cent and degrees multiply by where the other side has no unit
_FACTORS: dict[units.Dimension, str] = {_PERCENT: r" \cdot \frac{1}{100}",
                                        _DEGREE: r" \cdot \frac{\pi}{180}"}


def _clock(gold: str, gold_unit: Unit, text: str, unit: Unit) -> bool | None:
  """Whether two times of day are equal; None where either is none, or both are ratios."""
  if not any(dict(one.dimension) in _HALVES for one in (gold_unit, unit)):
    return None
  times, others = _times(gold, dict(gold_unit.dimension)), _times(text, dict(unit.dimension))
  return bool(times & others) if times and others else None


def _times(text: str, half: dict[str, int]) -> set[tuple[int, str, str]]:
  """The times of day that a text may say, as (hour of 24, minutes, seconds).

  The half of the day may be missing, or be said by an hour over 12.
  """
  match = _CLOCK.fullmatch(f"{text}:00" if half in _HALVES and text.isdecimal() else text)
  if match is None:
    return set()
  hour, rest = int(match[1]), (match[2], match[3] or "00")
  if half in _HALVES and hour <= 12:
    return {(hour % 12 + 12 * ("p.m." in half), *rest)}
  if half in _HALVES or hour > 12:
    return {(hour, *rest)}
  return {(hour % 12, *rest), (hour % 12 + 12, *rest)}


def _inequality(text: str) -> tuple[str, str, str] | None:
  """(variable, operator, value) of `x < 5` or `5 > x`."""
  match = _INEQUALITY.fullmatch(text)
  if match:
    return match[1], _OPERATORS[match[2]], match[3].strip()
  match = _BACKWARDS.fullmatch(text)
  return (match[3], _FLIPPED[_OPERATORS[match[2]]], match[1].strip()) if match else None


def equal_numbers(gold: str, text: str, digits: int) -> bool | None:
  """Whether two canonical texts are equal numbers, with their units; None where one is no number.
  """
  gold_number, gold_unit = quantity(gold)
  number, unit = quantity(text)
  if gold_number is None or number is None:
    return None
  return _Comparison(digits, lambda *texts: None).numbers(gold_number, gold_unit, number, unit)


def equal(gold: str, text: str, digits: int, algebra: Algebra) -> bool | None:
  """Whether two canonical texts are equal; None where the parts do not decide it.

  digits: significant digits which a decimal has that stands for a number without finite decimals.
  """
  return _Comparison(digits, algebra).whole(gold, text)


def key(text: str, after: str) -> str | None:
  """What a vote compares: the same text for extracted answers that need no algebra to be equal.

  Numbers are written by their exact value, lists and sets in one order; a unit is taken for the
  asked one. None for an empty answer.
  """
  said = answer(text, after)
  return _key(structure.parse(said)) or None if said else None


def _key(part: Parts) -> str:
  if part.kind == "value":
    text = str(part.items[0])
    number, _ = quantity(text)
    return text if number is None else str(number.value)
  keys = [_key(item) for item in structure.members(part.items)]
  if part.kind in ("tuple", "matrix"):
    return f"{part.kind}{part.brackets}({', '.join(keys)})"
  return ", ".join(sorted(set(keys) if part.kind == "set" else keys))
