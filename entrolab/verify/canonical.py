r"""One spelling of an answer, and its exact value when it is a number.

Policies, where graders differ: units in \text{} are dropped unless both sides abbreviate different
ones (5 cm is 5, not 5 m); a percent sign is dropped when one side has none (25\% equals 25 as well
as 0.25); a currency sign is dropped. Exact numbers are compared exactly. Left to math-verify, and
lenient there: a decimal within six places of an irrational or recurring value, 1:2 for a half, any
order of a list that no brackets order.
"""

import re
from fractions import Fraction

LONGEST = 1_000       # characters that are normalised

_MACROS = re.compile(r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|limits|boxed|fbox)"
                     r"(?![A-Za-z])")
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\}|,\\!|\\,)\s?(?=\d{3}(?!\d))")
_COMMAS = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?![\d,])")
_ABOUT = re.compile(r"^\s?(?:=|\\approx(?![A-Za-z])|\\sim(?![A-Za-z])|≈)\s?")
_GAP = re.compile(r"(?<!\\)\\(?:[,!;: ]|q?quad(?![A-Za-z]))|~")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|bf|rm)"
                      r"\s?\{([^{}]*)\}")
_UNIT = re.compile(r"(.*?\d\}?)\s*\\(?:text|mathrm|mbox|textrm)\s?\{([^{}]*)\}(?:\^\{?\d\}?)?",
                   re.DOTALL)
_MULTIPLIERS = re.compile(r"hundred|thousand|[mb]illion|dozen|percent|pct|\bor\b|\band\b|\bto\b|\d",
                          re.IGNORECASE)
_ABBREVIATED = frozenset("mm cm dm m km in ft yd mi mg g kg lb oz ms s min h ml cl l".split())
_PERCENT = re.compile(r"\s*(?:\\?%|\\?\bpercent(?:age)?\b|\bpct\b)")
_LETTER = re.compile(r"\(([A-Z])\)\.?")
_IMAGINARY = re.compile(r"(?<![A-Za-z\\_{])i\s?\^\s?(?:\{(\d{1,3})\}|(\d))")
_DEGREES = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(\d{1,6})\s*\^\s*"
                      r"(?:\{\s*\\circ\s*\}|\\circ)")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])([-+]?\d{1,30}(?:\.\d{1,30})?)[eE]([-+]?\d{1,3})(?!\w)")
_ROW = re.compile(r"(?<!\\)\\(?=[-\d.(])")
_SPACES = re.compile(r"\s+")

_DECIMAL = r"[-+]?(?:\d{1,999}(?:\.\d{0,999})?|\.\d{1,999})"
_PLAIN = re.compile(_DECIMAL)
_RATIO = re.compile(rf"({_DECIMAL})\s?/\s?({_DECIMAL})")
_FRACTION = re.compile(rf"([-+]?)\s?\\frac\s?(?:\{{\s?({_DECIMAL})\s?\}}\s?\{{\s?({_DECIMAL})\s?\}}"
                       r"|(\d)\s?(\d))")
_POWER_OF_TEN = re.compile(rf"({_DECIMAL})\s?(?:\\times|\\cdot|\*)\s?10\s?\^\s?"
                           r"(?:\{\s?([-+]?\d{1,3})\s?\}|(\d))")


def _braces(text: str) -> str:
  """`text` without the first few pairs of braces around all of it."""
  for _ in range(5):
    if not (text.startswith("{") and text.endswith("}")):
      break
    depth = 0
    for at, char in enumerate(text):
      depth += (char == "{") - (char == "}")
      if depth == 0 and at < len(text) - 1:
        return text
    text = text[1:-1].strip()
  return text


def canonical(text: str) -> str:
  """One spelling: no delimiters, spacing, sizes, thousands marks, trailing stop; `\\frac`, `i^2`,
  degrees inside a sine, 1.5e3 and (A) written out. At most LONGEST characters are normalised:
  longer text is only stripped."""
  text = text.strip()
  if len(text) > LONGEST:
    return text
  text = _FRAC.sub(r"\\frac", _MACROS.sub("", text.replace(r"\$", "").replace("$", "")))
  text = _THOUSANDS.sub("", text)
  if "matrix}" in text:        # some data sets have lost half of each row break
    text = _ROW.sub(r"\\\\ ", text)
  if not re.search(r"[(\[]|\\\{", text):   # 12,345 is a number, (12,345) a pair
    text = _COMMAS.sub(lambda m: m[1] + m[2].replace(",", ""), text)
  text = _SPACES.sub(" ", _GAP.sub(" ", text)).strip().rstrip(".,;: ")
  text = _PERCENT.sub(r"\\%", _ABOUT.sub("", text)).lstrip("€£¥")
  whole = _WRAPPED.fullmatch(text)
  while whole:
    text = whole[1].strip()
    whole = _WRAPPED.fullmatch(text)
  text = _braces(text).rstrip("€£¥")
  letter = _LETTER.fullmatch(text)
  if letter:
    return letter[1]
  text = _IMAGINARY.sub(lambda m: ("1", "i", "(-1)", "(-i)")[int(m[1] or m[2]) % 4], text)
  text = _DEGREES.sub(r"\1\\frac{\2 \\pi}{180}", text)
  return _SCIENTIFIC.sub(lambda m: rf"{m[1]} \times 10^{{{int(m[2])}}}", text).strip()


def _rational(text: str) -> Fraction:
  return Fraction(text.rstrip(".") if not text.startswith(".") else "0" + text)


def unit(text: str) -> str:
  """The abbreviated unit of measure that ends canonical `text`, or the empty string."""
  match = _UNIT.fullmatch(text)
  name = match[2].strip() if match else ""
  return name if name in _ABBREVIATED else ""


def number(text: str) -> Fraction | None:
  """The exact value of canonical text that is an integer, decimal, ratio, fraction or a x 10^b,
  with a unit in \\text{} dropped; None for anything else. At most 999 digits and powers of 999."""
  match = _UNIT.fullmatch(text)
  if match and not _MULTIPLIERS.search(match[2]):
    text = match[1].strip()
  if _PLAIN.fullmatch(text):
    return _rational(text)
  match = _RATIO.fullmatch(text)
  if match:
    below = _rational(match[2])
    return _rational(match[1]) / below if below else None
  match = _FRACTION.fullmatch(text)
  if match:
    below = _rational(match[3] or match[5])
    value = _rational(match[2] or match[4]) / below if below else None
    return value if value is None or match[1] != "-" else -value
  match = _POWER_OF_TEN.fullmatch(text)
  return _rational(match[1]) * Fraction(10) ** int(match[2] or match[3]) if match else None


def decimals(text: str) -> int:
  """Digits after the decimal point of the longest decimal in `text`."""
  return max(map(len, re.findall(r"(?<=\.)\d+", text)), default=0)
