r"""One spelling of an answer, and its exact value when it is a number.

Where graders differ, this is the rule here. A unit in \text{} is dropped unless both sides
abbreviate different units (5 cm equals 5, but not 5 m). A percent sign is dropped when the other
side has none (25\% equals 25 as well as 0.25). A currency sign is dropped. Exact numbers are
compared exactly. math-verify decides the rest, and is lenient: a decimal may agree to six places
with an irrational or recurring value, 1:2 equals a half, and a list without brackets has no order.
"""

import re
from fractions import Fraction

MAX_CHARACTERS = 1_000  # of a text that is normalised

# Spelling.
_MACROS = re.compile(r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|limits|boxed|fbox)"
                     r"(?![A-Za-z])")
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\}|,\\!|\\,)\s?(?=\d{3}(?!\d))")
_COMMAS = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?![\d,])")
_ABOUT = re.compile(r"^\s?(?:=|\\approx(?![A-Za-z])|\\sim(?![A-Za-z])|≈)\s?")
_GAP = re.compile(r"(?<!\\)\\(?:[,!;: ]|q?quad(?![A-Za-z]))|~")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|bf|rm)"
                      r"\s?\{([^{}]*)\}")

# Units of measure, percent signs and choices.
_UNIT = re.compile(r"(.*?\d\}?)\s*\\(?:text|mathrm|mbox|textrm)\s?\{([^{}]*)\}(?:\^\{?\d\}?)?",
                   re.DOTALL)
# a "unit" that changes the value or joins two answers: its number is not read without it
_MULTIPLIERS = re.compile(r"hundred|thousand|[mb]illion|dozen|percent|pct|\bor\b|\band\b|\bto\b|\d",
                          re.IGNORECASE)
_ABBREVIATED = frozenset("mm cm dm m km in ft yd mi mg g kg lb oz ms s min h ml cl l".split())
_PERCENT = re.compile(r"\s*(?:\\?%|\\?\bpercent(?:age)?\b|\bpct\b)")
_LETTER = re.compile(r"\(([A-Z])\)\.?")

# Notation that math-verify reads wrongly or slowly.
_IMAGINARY = re.compile(r"(?<![A-Za-z\\_{])i\s?\^\s?(?:\{(\d{1,3})\}|(\d))")
_DEGREES = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(\d{1,6})\s*\^\s*"
                      r"(?:\{\s*\\circ\s*\}|\\circ)")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])([-+]?\d{1,30}(?:\.\d{1,30})?)[eE]([-+]?\d{1,3})(?!\w)")
_ROW = re.compile(r"(?<!\\)\\(?=[-\d.(])")
_SPACES = re.compile(r"\s+")

# Numbers with an exact value. Every repeat is bounded, so that matching takes linear time.
_DECIMAL = r"[-+]?(?:\d{1,999}(?:\.\d{0,999})?|\.\d{1,999})"
_PLAIN = re.compile(_DECIMAL)
_RATIO = re.compile(rf"({_DECIMAL})\s?/\s?({_DECIMAL})")
_FRACTION = re.compile(rf"([-+]?)\s?\\frac\s?(?:\{{\s?({_DECIMAL})\s?\}}\s?\{{\s?({_DECIMAL})\s?\}}"
                       r"|(\d)\s?(\d))")
_POWER_OF_TEN = re.compile(rf"({_DECIMAL})\s?(?:\\times|\\cdot|\*)\s?10\s?\^\s?"
                           r"(?:\{\s?([-+]?\d{1,3})\s?\}|(\d))")


def _without_braces(text: str) -> str:
  """`text` without up to five pairs of braces that enclose all of it."""
  for _ in range(5):
    if not (text.startswith("{") and text.endswith("}")):
      break
    depth = 0
    for at, char in enumerate(text):
      depth += (char == "{") - (char == "}")
      if depth == 0 and at < len(text) - 1:  # closed before the end: {1}+{2}
        return text
    text = text[1:-1].strip()
  return text


def _power_of_i(match: re.Match[str]) -> str:
  power = int(match[1] or match[2])
  return ("1", "i", "(-1)", "(-i)")[power % 4]


def canonical(text: str) -> str:
  """One spelling of an answer.

  Delimiters, spacing, sizes of brackets, thousands marks and a trailing stop are removed; `\\frac`,
  `i^2`, degrees inside a sine, 1.5e3 and (A) are written out. Text of more than MAX_CHARACTERS is
  only stripped.
  """
  text = text.strip()
  if len(text) > MAX_CHARACTERS:
    return text
  # delimiters, sizes and kinds of fraction first: every later pattern expects them to be gone
  text = text.replace(r"\$", "").replace("$", "")
  text = _MACROS.sub("", text)
  text = _FRAC.sub(r"\\frac", text)
  text = _THOUSANDS.sub("", text)  # before _GAP, which makes a space of the `\,` in 1\,000
  if "matrix}" in text:  # some data sets have lost half of each row break
    text = _ROW.sub(r"\\\\ ", text)
  if not re.search(r"[(\[]|\\\{", text):  # 12,345 is a number, (12,345) a pair
    text = _COMMAS.sub(lambda m: m[1] + m[2].replace(",", ""), text)
  text = _SPACES.sub(" ", _GAP.sub(" ", text)).strip()
  text = text.rstrip(".,;: ")
  text = _ABOUT.sub("", text)  # after spacing: it reads the first character
  text = _PERCENT.sub(r"\\%", text)
  text = text.lstrip("€£¥")
  # \text{\textbf{7}}: only what encloses the whole answer, from outside inwards; a \text{cm}
  # behind a number is its unit, which `number` and `unit` read
  wrapped = _WRAPPED.fullmatch(text)
  while wrapped:
    text = wrapped[1].strip()
    wrapped = _WRAPPED.fullmatch(text)
  text = _without_braces(text).rstrip("€£¥")
  letter = _LETTER.fullmatch(text)
  if letter:
    return letter[1]
  # last: these write new LaTeX, which the steps above would take apart
  text = _IMAGINARY.sub(_power_of_i, text)
  text = _DEGREES.sub(r"\1\\frac{\2 \\pi}{180}", text)
  text = _SCIENTIFIC.sub(lambda m: rf"{m[1]} \times 10^{{{int(m[2])}}}", text)
  return text.strip()


def _rational(text: str) -> Fraction:
  """The value of a text that _DECIMAL matches, which may begin or end with its point."""
  return Fraction(text.rstrip(".") if not text.startswith(".") else "0" + text)


def unit(text: str) -> str:
  """The abbreviated unit of measure at the end of canonical `text`, or the empty string."""
  match = _UNIT.fullmatch(text)
  name = match[2].strip() if match else ""
  return name if name in _ABBREVIATED else ""


def number(text: str) -> Fraction | None:
  """The exact value of a canonical text, or None.

  Read are integers, decimals, ratios, fractions and a x 10^b, of at most 999 digits and exponents
  up to 999; a unit in \\text{} is dropped.
  """
  match = _UNIT.fullmatch(text)
  if match and not _MULTIPLIERS.search(match[2]):
    text = match[1].strip()
  if _PLAIN.fullmatch(text):
    return _rational(text)
  match = _RATIO.fullmatch(text)
  if match:
    denominator = _rational(match[2])
    return _rational(match[1]) / denominator if denominator else None
  match = _FRACTION.fullmatch(text)
  if match:
    numerator = _rational(match[2] or match[4])
    denominator = _rational(match[3] or match[5])
    if not denominator:
      return None
    value = numerator / denominator
    return -value if match[1] == "-" else value
  match = _POWER_OF_TEN.fullmatch(text)
  if match:
    return _rational(match[1]) * Fraction(10) ** int(match[2] or match[3])
  return None


def decimals(text: str) -> int:
  """Digits after the decimal point of the longest decimal in `text`."""
  return max(map(len, re.findall(r"(?<=\.)\d+", text)), default=0)
