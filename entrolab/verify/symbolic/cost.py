"""Which answers would take too long to compare symbolically, by their text, in linear time.

Worker processes bound the time of every comparison; refusing hopeless ones saves that time. The
limits lie well above every answer in the usual mathematics data sets (at most 188 characters,
brackets 4 deep, 10 operators, 47 commas).
"""

import math
import re

from entrolab.verify.canonical import MAX_CHARACTERS

MAX_DEPTH = 8  # of nested brackets
MAX_POWER_DIGITS = 4  # of an exponent, and of the argument of a factorial

# name -> (pattern, how often it may occur)
_COUNTED = {name: (re.compile(pattern), most) for name, (pattern, most) in {
    "commas": (r"[,;]", 60), "equals signs": ("=", 8), "powers": (r"\^", 24),
    "factorials": ("!", 4), "operators": (r"[-+*/]", 40), "commands": (r"\\", 60),
    "unions": (r"\\(?:cup|cap)", 10), "floors": (r"\\[lr]?(?:floor|ceil)", 6), "bars": (r"\|", 8),
    "subscripts": ("_", 20), "roots": (r"\\sqrt", 12), "fractions": (r"\\frac", 16),
    "relations": (r"[<>]|\\(?:le|ge|lt|gt|ne)", 6),
    "functions": (r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|ln|log|exp|det)", 8)}.items()}
_UNEVALUATED = re.compile(r"\\(?:i{1,3}nt|oint|sum|prod|lim)(?![A-Za-z])")
_DIGITS = re.compile(r"\d{21,}")
_POWER = re.compile(r"\^\s*\(?\{?\s*-?\s*\(?(\d+)")
_BARE_POWER = re.compile(r"\^\s*-?(?:\d+|[A-Za-z])\s*$")
_BASE = re.compile(r"(\d+)[\s)}]*$")
_FACTORIAL = re.compile(r"(\d*)([)}\]]?)\s*(!+)")
_STEEP = re.compile(r"\\(?:[dt]?binom|Gamma)(?![A-Za-z])")
_OPEN, _CLOSE = "([{", ")]}"


def _depth(text: str) -> int:
  """The deepest nesting of brackets."""
  depth = deepest = 0
  for char in text:
    if char in _OPEN:
      depth += 1
      deepest = max(deepest, depth)
    elif char in _CLOSE:
      depth = max(depth - 1, 0)
  return deepest


def _tall(text: str) -> bool:
  """Whether `text` has a tower of powers that is not small, with braces or without."""
  levels: list[int] = [0]  # of each open bracket: in how many exponents it lies
  for at, char in enumerate(text):
    if char in _OPEN:
      raised = text[:at].rstrip().endswith("^") if levels[-1] < 3 else False
      levels.append(levels[-1] + raised)
    elif char in _CLOSE and len(levels) > 1:
      levels.pop()
    elif char == "^":
      before = text[max(at - 12, 0):at]  # a window, so that the whole stays linear
      height = levels[-1] + (_BARE_POWER.search(before) is not None) + 1
      if height > 2:
        return True
      base, power = _BASE.search(before), _POWER.match(text[at:at + 16])
      if height == 2 and base and power and (
          len(base[1]) > 3 or len(power[1]) > 2
          or int(base[1]) ** int(power[1]) >= 10 ** MAX_POWER_DIGITS):
        return True
  return False


def _powers(text: str) -> str | None:
  """Why the powers in `text` are too large to write out, or None."""
  exponents = [run.lstrip("0") for run in _POWER.findall(text)]
  digits = max(map(len, exponents), default=0)
  if digits > MAX_POWER_DIGITS:
    return f"exponent of {digits} digits"
  if _tall(text):
    return "tower of powers"
  outer = [int(run or "0") for run in re.findall(r"[)\]}]\s*\^[\s{(]*(\d{1,4})", text)]
  if len(outer) > 1 and math.prod(outer) * max(int(run or "0") for run in exponents) > 10 ** 6:
    return "powers of powers"
  return None


def _factorials(text: str) -> str | None:
  """Why the factorials in `text` are too large to write out, or None."""
  large = max((len(run.lstrip("0")) for run in re.findall(r"\d+", text)), default=0)
  for digits, bracket, marks in _FACTORIAL.findall(text):
    if len(marks) > 2 or len(digits.lstrip("0")) > MAX_POWER_DIGITS:
      return "factorial of a large number"
    if bracket and (large > MAX_POWER_DIGITS or re.search(r"\d\s*\^|![\s)}\]]+!", text)):
      return "factorial of an expression"
  return None


def costly(text: str, reference: str = "") -> str | None:
  """Why a symbolic comparison of canonical `text` may never end, or None.

  An integral, sum, product or limit is refused unless `reference` has one too.
  """
  if len(text) > MAX_CHARACTERS:
    return f"{len(text)} characters, at most {MAX_CHARACTERS} are read"
  depth = _depth(text)
  if depth > MAX_DEPTH:
    return f"brackets nested {depth} deep, at most {MAX_DEPTH} are read"
  for name, (pattern, most) in _COUNTED.items():
    count = len(pattern.findall(text))
    if count > most:
      return f"{count} {name}, at most {most} are read"
  left = _UNEVALUATED.search(text)
  if left and not _UNEVALUATED.search(reference):
    return f"{left[0]} is left to evaluate"
  if _DIGITS.search(text) and ("^" in text or "!" in text):
    return "power or factorial of a number over 20 digits"
  if _STEEP.search(text) and re.search(r"\d\s*\^|\d{5}", text):
    return "binomial or gamma function of a large number"
  if re.search(r"\\det|vmatrix", text) and text.count("&") > 9:
    return "determinant of more than 3 rows"
  return _powers(text) or _factorials(text)
