r"""Characters of a response: invisible ones vanish, signs become LaTeX, digits become ASCII.

One table serves whole responses, references, integers and votes, so that none of them reads a
character which another one does not.
"""

import re

# Zero-width and bidirectional marks vanish. Other control characters and lone surrogates become
# U+FFFD, which no number contains: "4<NUL>2" must not read as 42.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x61C, 0x180E, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F),
     *range(0x2060, 0x2070)])
_CONTROL = dict.fromkeys([*range(0x09), *range(0x0E, 0x20), *range(0x7F, 0xA0)], "\ufffd")
_SPACES = dict.fromkeys([0x0B, 0x0C, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
                         0x202F, 0x205F, 0x3000], " ")
_FULLWIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_STYLED = {0x1D7CE + at: str(at % 10) for at in range(50)}  # bold, double-struck, sans, mono digits
_SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ", "⁄": "/", "∕": "/",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "π": r"\pi ", "𝜋": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "°": r"^\circ ",
    "∅": r"\emptyset ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "〈": r"\langle ", "〉": r"\rangle ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℂ": r"\mathbb{C}",
    "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "ⅈ": "i", "ⅇ": "e", "′": "'"}
_FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5),
    "⅗": (3, 5), "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8),
    "⅝": (5, 8), "⅞": (7, 8), "⅑": (1, 9), "⅒": (1, 10), "↉": (0, 3)}
_DASHES = {sign: "-" for sign, latex in _SIGNS.items() if latex == "-"}
_VULGAR = {sign: rf"\frac{{{over}}}{{{under}}}" for sign, (over, under) in _FRACTIONS.items()}
_TABLE = str.maketrans({**_CONTROL, **_INVISIBLE, **_SPACES, **_FULLWIDTH, **_STYLED, **_SIGNS,
                        **_VULGAR})
_PLAIN = str.maketrans({**_CONTROL, **_INVISIBLE, **_SPACES, **_FULLWIDTH, **_STYLED, **_DASHES})
_SURROGATE = re.compile("[\ud800-\udfff]+")

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_SUPERSCRIPT = "[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]{1,99}"
_SUBSCRIPT = "[₀₁₂₃₄₅₆₇₈₉₊₋]{1,99}"
_STACKED = re.compile(f"({_SUPERSCRIPT})[⁄/]({_SUBSCRIPT})")  # ³⁄₄
_RUNS = re.compile(f"({_SUPERSCRIPT})|({_SUBSCRIPT})")
# a root sign reaches over the number or letter behind it; parentheses are read by `canonical`
_ROOT = re.compile(r"([√∛∜])\s?(\d{1,99}(?:\.\d{1,99})?|[A-Za-z](?![A-Za-z]))")
_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}
_OVERLINED = re.compile("((?:\\d[\u0305\u0304]){1,99})")
_DOTTED = re.compile("(\\d)\u0307")


def _run(match: re.Match[str]) -> str:
  if match[1]:
    return f"^{{{match[1].translate(_RAISED)}}}"
  return f"_{{{match[2].translate(_LOWERED)}}}"


def clean(text: str) -> str:
  """`text` without invisible characters, with Unicode signs as LaTeX, control characters as U+FFFD.

  `²³` becomes `^{23}`, `√2` becomes `\\sqrt{2}`, `⅓` becomes `\\frac{1}{3}`, every dash but the
  long one is a minus.
  """
  if not text.isascii():
    text = _STACKED.sub(lambda m: rf"\frac{{{m[1].translate(_RAISED)}}}"
                                  rf"{{{m[2].translate(_LOWERED)}}}", text)
    text = _RUNS.sub(_run, text)
    text = _ROOT.sub(lambda m: rf"\sqrt{_INDEX[m[1]]}{{{m[2]}}}", text)
    text = _OVERLINED.sub(lambda m: rf"\overline{{{re.sub(r'[^0-9]', '', m[1])}}}", text)
    text = _DOTTED.sub(r"\\dot{\1}", text)
    text = _SURROGATE.sub("\ufffd", text)
  return text.translate(_TABLE)


def plain(text: str) -> str:
  """`text` with ASCII digits, signs and blanks, for readers of integers: no LaTeX is written."""
  return text if text.isascii() else _SURROGATE.sub("\ufffd", text).translate(_PLAIN)
