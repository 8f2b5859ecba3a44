r"""One spelling of an answer: what is typography goes, what has several names gets one.

The characters are those that `characters.clean` writes. `reading` compares answers in this
spelling.
"""

import re

MAX_CHARACTERS = 1_000  # of a text that is normalised

_SIMPLE = re.compile(r"-?\d{1,300}")

_DELIMITER = re.compile(r"(?<!\\)\$")  # \$ is a currency, which `units` reads

# Dress: sizes, weights, colours and lines are no mathematics.
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|boxed|fbox|framebox"
    r"|tiny|small|normalsize|[lL]arge|LARGE|huge|Huge|boldmath|mathstrut|strut|ensuremath"
    r"|boldsymbol|bm|pmb|bold|underline|uline|mathop|mathbin|mathrel|mathord|mathnormal|mathstrut"
    r"|mathsf|mathtt|mathit|mathbf)(?![A-Za-z])")
_COLOUR = re.compile(r"\\(?:text)?color(?:box)?\s?(?:\[[^\[\]]{0,20}\])?\s?\{[^{}]{0,40}\}"
                     r"|\\fcolorbox\s?\{[^{}]{0,40}\}\s?\{[^{}]{0,40}\}"
                     r"|\\[hv]?phantom\s?(?:\{[^{}]{0,40}\}|.)|\\hspace\s?\{[^{}]{0,20}\}")
_TEXTS = re.compile(r"\\(?:textbf|textit|textrm|textsf|texttt|textup|textnormal|textsl|textsc|emph"
                    r"|mathrm|mbox|hbox)(?=\s?\{)")
_FUNCTION = re.compile(r"\\(?:operatorname\*?|text)\s?\{\s?((?:arc)?(?:sin|cos|tan|cot|sec|csc)|ln"
                       r"|log|exp|gcd|max|min|det)\s?\}")
_OLD_STYLE = re.compile(r"\{\s?\\(rm|bf|it|sf|tt|bfseries|itshape)\s([^{}]*)\}"
                        r"|\\(?:bf|rm|it)(?![A-Za-z])\s?")
_UPRIGHT = re.compile(r"\\text\s?\{([eid])\}")
_WRAPPED = re.compile(r"\\text\s?\{([^{}]*)\}")

# Names: the first is written for each of the others.
_NAMES = {
    "frac": "dfrac tfrac cfrac", "le": "leq leqslant leqq", "ge": "geq geqslant geqq", "ne": "neq",
    "emptyset": "varnothing", "to": "rightarrow longrightarrow", "phi": "varphi",
    "epsilon": "varepsilon", "theta": "vartheta", "setminus": "smallsetminus backslash",
    "ldots": "dots cdots dotsc dotsb", "infty": "infin", "mathbb": "Bbb", "circ": "degree",
    "approx": "simeq", "cdot": "centerdot cdotp", "gt": "greater", "lt": "less"}
_NAME_OF = {other: rf"\{name}" for name, others in _NAMES.items() for other in others.split()}
_NAME_OF |= {"degree": r"^\circ", "langle": "(", "rangle": ")", "lparen": "(", "rparen": ")",
             "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "vert": "|",
             "lvert": "|", "rvert": "|", "imath": "i", "mathrm": r"\text", "R": r"\mathbb{R}",
             "lt": "<", "gt": ">"}
_NAMED = re.compile(r"\\(" + "|".join(sorted(_NAME_OF, key=len, reverse=True)) + r")(?![A-Za-z])")
_OVER = re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}")
_EMPTY = re.compile(r"\\\{(?:\s|\\[,;:! ]){0,9}\\\}")

# Spacing and groups of digits.
_BLANK = re.compile(r"(?<!\\)\\[,!;:> ]|~|\\(?:thinspace|medspace|thickspace|enspace)(?![A-Za-z])")
_QUAD = re.compile(r",?\s*\\q?quad(?![A-Za-z])")
_SPACES = re.compile(r"\s+")
_BRACED_COMMA = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\!,?|\{\\,\})(?=\d{3}(?!\d))")
_GROUPS = re.compile(r"(?<![\d.,^_/])(?<!\d )([1-9]\d{0,2})((?: \d{3}){1,99})"
                     r"(?![\d/]| ?/| \d)")
_TAIL_GROUPS = re.compile(r"(?<=\.\d{3})((?: \d{3}){1,99})(?![\d/]| \d)")
_COMMAS = re.compile(r"(?<![\d.,^_])([1-9]\d{0,2})((?:,\d{3}){1,99})(?![\d,])")
_POINTS = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:\.\d{3}){2,99})(?:,(\d{1,99}))?(?![\d.,])")
_ABOUT = re.compile(r"^\s?(?:=|\\approx(?![A-Za-z])|\\sim(?![A-Za-z])|≈|\\therefore)\s?")
_ELLIPSIS = re.compile(r"(\d)\s?(?:\.{3}|…|\\ldots)(?=\s?$|\s?[,;)}])")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s?\{\s?(?:percent(?:age)?|pct|\\?%)\s?\}"
                      r"|\\?\bpercent(?:age)?\b|\bpct\b)")
_LETTER = re.compile(r"\(([A-Z])\)\.?")

# Notation of programs, which is read as LaTeX.
_PLAIN_NAME = re.compile(
    r"(?<![A-Za-z\\_])(pi|sqrt|cbrt|theta|alpha|beta|gamma|lambda|omega|infinity|inf|arcsin|arccos"
    r"|arctan|sin|cos|tan|cot|sec|csc|ln|log|exp)(?![A-Za-z])")
_PLAIN_NAMES = {"infinity": r"\infty ", "inf": r"\infty ", "cbrt": r"\sqrt[3]"}
_ROOT_OF = re.compile(r"(\\sqrt(?:\[\d\])?) ?(?:(\d{2,99}(?:\.\d{1,99})?)|(?=\())")
_PLAIN_ROOT = re.compile(r"(?<![A-Za-z\\])(sqrt|cbrt) ?(\d{1,99}(?:\.\d{1,99})?)")
_SIGNED_POWER = re.compile(r"\^ ?([-+]\d{1,99}(?![\d.])|[-+][A-Za-z])")

# Notation that math-verify reads wrongly or slowly.
_IMAGINARY = re.compile(r"(?<![A-Za-z\\_{])i\s?\^\s?(?:\{(\d{1,3})\}|(\d))")
_DEGREES = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(\d{1,6})\s*\^\s*"
                      r"(?:\{\s*\\circ\s*\}|\\circ)")
_DEGREE = re.compile(r"\s?\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![A-Za-z]))\s?")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])([-+]?\d{1,30}(?:\.\d{1,30})?)[eE]([-+]?\d{1,3})(?!\w)")
_ROW = re.compile(r"(?<!\\)\\(?=[-\d.(])")


def _without_braces(text: str) -> str:
  """`text` without up to five pairs of braces that enclose all of it."""
  for _ in range(5):
    if not (text.startswith("{") and text.endswith("}")):
      break
    if _closing(text, 0) != len(text) - 1:  # closed before the end: {1}+{2}
      return text
    text = text[1:-1].strip()
  return text


def _closing(text: str, at: int) -> int:
  """Where the bracket that opens at `at` closes, whatever its kind; -1 if it does not."""
  depth = 0
  for position in range(at, len(text)):
    depth += (text[position] in "({[") - (text[position] in ")}]")
    if depth == 0:
      return position
  return -1


def _power_of_i(match: re.Match[str]) -> str:
  power = int(match[1] or match[2])
  return ("1", "i", "(-1)", "(-i)")[power % 4]


def _braced(text: str, opening: re.Pattern[str], most: int = 12) -> str:
  """`text` with braces for the parentheses that follow `opening`: of a root, of an exponent."""
  at = 0
  for _ in range(most):
    match = opening.search(text, at)
    if match is None:
      break
    at = match.end()
    end = _closing(text, at)
    if end < 0 or text[end] != ")":
      continue
    text = f"{text[:at]}{{{text[at + 1:end]}}}{text[end + 1:]}"
  return text


_ROOT_CALL = re.compile(r"\\sqrt(?:\[\d\])? ?(?=\()")
_POWER_CALL = re.compile(r"\^ ?(?=\()")


def _undressed(text: str) -> str:
  """`text` without colours, weights, lines and sizes; text of every font is \\text."""
  # a test for a word in a text costs a tenth of a pattern, and most answers have none of these
  if "color" in text or "phantom" in text or "hspace" in text:
    text = _COLOUR.sub("", text)
  text = _OLD_STYLE.sub(lambda m: rf"\text{{{m[2]}}}" if m[1] in ("rm", "sf", "tt")
                        else m[2] or "", text)
  text = _SIZES.sub("", text)
  text = _TEXTS.sub(r"\\text", text)
  if r"\text" in text or "operatorname" in text:
    text = _FUNCTION.sub(r"\\\1 ", text)
    text = _UPRIGHT.sub(r"\1", text)
  return text


def _named(text: str) -> str:
  """`text` with one name for each symbol."""
  text = _NAMED.sub(lambda m: _NAME_OF[m[1]], text)
  text = _OVER.sub(r"\\frac{\1}{\2}", text) if r"\over" in text else text
  return _EMPTY.sub(r"\\emptyset ", text) if r"\{" in text else text


def _grouped(text: str) -> str:
  """`text` with each number that is written in groups of three digits in one piece.

  Blanks of every kind, commas and more than one point part groups; the first group has one to
  three digits and no zero in front, else the comma is a decimal one.
  """
  text = _BRACED_COMMA.sub("", text) if "," in text or r"\!" in text else text
  text = _SPACES.sub(" ", _BLANK.sub(" ", text))
  if " " in text:
    text = _GROUPS.sub(lambda m: m[0].replace(m[2], m[2].replace(" ", "")), text)
    text = _TAIL_GROUPS.sub(lambda m: m[1].replace(" ", ""), text)
  if "," in text and not re.search(r"[(\[]|\\\{", text):  # 12,345 is a number, (12,345) a pair
    text = _COMMAS.sub(lambda m: m[1] + m[2].replace(",", ""), text)
  if text.count(".") < 2:
    return text
  return _POINTS.sub(lambda m: m[1] + m[2].replace(".", "") + (f".{m[3]}" if m[3] else ""), text)


def _from_program(text: str) -> str:
  """`text` in LaTeX where it is written as in programs: pi, sqrt(2), 2**3, 10^-3, 2^(1/2)."""
  text = text.replace("**", "^")
  if "rt" in text:
    text = _PLAIN_ROOT.sub(
        lambda m: (r"\sqrt" if m[1] == "sqrt" else r"\sqrt[3]") + f"{{{m[2]}}}", text)
  text = _PLAIN_NAME.sub(lambda m: _PLAIN_NAMES.get(m[1], rf"\{m[1]} "), text)
  text = _braced(text, _ROOT_CALL) if r"\sqrt" in text else text
  if "^" in text:
    text = _SIGNED_POWER.sub(r"^{\1}", text)
    text = _braced(text, _POWER_CALL)
  return text


def canonical(text: str) -> str:
  """One spelling of an answer.

  Delimiters, spacing, dress, sizes of brackets, groups of digits and a trailing stop are removed;
  names of a symbol are one; `i^2`, degrees inside a sine, 1.5e3, sqrt(2) and (A) are written in
  LaTeX. Text of more than MAX_CHARACTERS is only stripped.
  """
  text = text.strip()
  if len(text) > MAX_CHARACTERS or _SIMPLE.fullmatch(text):
    return text
  # delimiters and dress first: every later pattern expects them to be gone
  text = _DELIMITER.sub("", text)
  if "\\" in text:
    text = _named(_undressed(text))
  if "matrix}" in text:  # some data sets have lost half of each row break
    text = _ROW.sub(r"\\\\ ", text)
  text = _ELLIPSIS.sub(r"\1…", text) if ".." in text or "…" in text or "dots" in text else text
  text = _grouped(text)  # before quads, which part numbers, become blanks
  if r"\q" in text:
    text = _QUAD.sub(lambda m: ", " if m[0].startswith(",") else " ", text)
  text = _SPACES.sub(" ", text).strip()
  text = text.rstrip(".,;: ")
  text = _ABOUT.sub("", text)  # after spacing: it reads the first character
  text = _PERCENT.sub(r"\\%", text) if "%" in text or "p" in text else text
  # \text{\textbf{7}}: only what encloses the whole answer, from outside inwards; a \text{cm}
  # behind a number is its unit, which `units` reads
  text = _without_braces(text)
  wrapped = _WRAPPED.fullmatch(text)
  while wrapped:
    text = _without_braces(wrapped[1].strip().rstrip(".,;: "))
    wrapped = _WRAPPED.fullmatch(text)
  letter = _LETTER.fullmatch(text)
  if letter:
    return letter[1]
  # last: these write new LaTeX, which the steps above would take apart
  text = _from_program(text)
  text = _IMAGINARY.sub(_power_of_i, text) if "i" in text and "^" in text else text
  if "circ" in text:
    text = _DEGREES.sub(r"\1\\frac{\2 \\pi}{180}", text)
    text = _DEGREE.sub(r"^\\circ ", text)
  if "e" in text or "E" in text:
    text = _SCIENTIFIC.sub(lambda m: rf"{m[1]} \times 10^{{{int(m[2])}}}", text)
  return text.strip()
