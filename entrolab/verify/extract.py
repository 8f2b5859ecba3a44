r"""From a whole response to its final answer, in linear time whatever the response holds.

In order: reasoning is taken out; then the last `<answer>` tag; then the last closed `\boxed{}`;
then the line after the last `####`; then what follows "answer is" or "answer:"; then, unless the
caller requires one of these, a short response as it stands, or the last formula or number.

Several boxes. Boxes that stand side by side, joined by commas, "and" or "or" on one line, are
one list: listing guesses therefore does not pay. Otherwise the last box wins, and the note
says so when an earlier one disagrees. A box that never closes is no answer.

Reasoning that never closes is no answer either: whatever follows `<think>` is left out.
"""

import collections
import dataclasses
import re
from typing import Literal

LONGEST_TEXT = 100_000     # characters kept of a response, from its end
LONGEST_TAIL = 4_000       # characters searched for a formula or number that nothing announces
LONGEST_PHRASE = 500       # characters read after "answer is"
WHOLE = 120                # a response of at most this many characters may be the answer itself

How = Literal["box", "tag", "mark", "phrase", "whole", "formula", "number", "none"]
Require = Literal["any", "phrase", "box"]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """An extracted answer, how it was found, and what a reader should know about the finding."""
  text: str
  how: How
  note: str = ""


# Zero-width and bidirectional marks vanish. Other control characters and lone surrogates become
# U+FFFD, which no number contains: "4<NUL>2" must not read as 42.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x61C, 0x180E, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F),
     *range(0x2060, 0x2070)])
_CONTROL = dict.fromkeys([*range(0x09), *range(0x0E, 0x20), *range(0x7F, 0xA0)], "\ufffd")
_SPACES = dict.fromkeys([0x0B, 0x0C, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
                         0x202F, 0x205F, 0x3000], " ")
_FULLWIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_SIGNS = {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "≤": r"\le ",
          "≥": r"\ge ", "≠": r"\ne ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ",
          "∪": r"\cup ", "∈": r"\in ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
          "¾": r"\frac{3}{4}", "²": "^{2}", "³": "^{3}", "±": r"\pm "}
_TABLE = str.maketrans({**_CONTROL, **_INVISIBLE, **_SPACES, **_FULLWIDTH, **_SIGNS})
_SURROGATE = re.compile("[\ud800-\udfff]+")

_THINK = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
# Every repeat is bounded, so that no run of one character makes the scan quadratic.
_BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s{1,8}([^\s${}\\]{1,64})")
_PHRASE = re.compile(r"\banswer\b[^\n]{0,40}?(?:\bis\b|:|=)", re.IGNORECASE)
_MATH = re.compile(r"\$\$|\$|\\[()\[\]]|\\.", re.DOTALL)
_CLOSING = {"$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]"}
_NUMBER = re.compile(r"(?<![\w.,/^])[-+]?(?:\d{1,3}(?:,\d{3}){1,99}|\d{1,999})?(?:\.\d{1,999})?"
                     r"(?:/\d{1,999})?(?<=\d)(?!\d)(?:\s?\\?%|\s?percent\b)?")
_JOIN = re.compile(r"(?:[ \t$,;&]|\\[()\[\],;! ]|\\q?quad|\band\b|\bor\b"
                   r"|\\text\s?\{[ ,]{0,4}(?:and|or)?[ ,]{0,4}\})*"
                   r"|[ $]{0,4}[A-Za-z]{1,20}[ $,]{1,4}(?:and|or)[ $]{1,4}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def clean(text: str) -> str:
  """`text` without invisible characters, Unicode signs as LaTeX, unreadable ones as U+FFFD."""
  return _SURROGATE.sub("\ufffd", text.translate(_TABLE))


def strip_reasoning(text: str) -> tuple[str, bool]:
  """(`text` outside <think> blocks, whether every block was closed).

  A closing tag without an opening one ends reasoning that began in the prompt.
  """
  kept, start, depth, first = [], 0, 0, True
  for match in _THINK.finditer(text):
    if match[1]:
      if first:
        kept = []
      depth = max(depth - 1, 0)
      start = match.end()
    else:
      if depth == 0:
        kept.append(text[start:match.start()])
      depth += 1
    first = False
  if depth == 0:
    kept.append(text[start:])
  return "".join(kept), depth == 0


def boxes(text: str) -> tuple[list[tuple[int, int, str]], bool]:
  """Outermost closed boxes as (start, end, content), and whether one is left open at the end."""
  stack: list[tuple[int, int] | None] = []
  spans: list[tuple[int, int, int]] = []
  for match in _BRACE.finditer(text):
    token = match[0]
    if token == "{":
      stack.append(None)
    elif token == "}":
      opened = stack.pop() if stack else None
      if opened is not None:
        start, inside = opened
        while spans and spans[-1][0] > start:
          spans.pop()
        spans.append((start, match.end(), inside))
    elif token.endswith("{") and len(token) > 2:
      stack.append((match.start(), match.end()))
  last = spans[-1][1] if spans else -1
  is_open = any(opened is not None and opened[0] >= last for opened in stack)
  found = [(start, end, text[inside:end - 1].strip()) for start, end, inside in spans]
  if not found:
    found = [(m.start(), m.end(), m[1].strip()) for m in _BARE_BOX.finditer(text)]
  return found, is_open


def _cluster(text: str, spans: list[tuple[int, int, str]]) -> tuple[list[str], int]:
  """Contents of the last spans that one line joins into a list, and how many spans precede."""
  at = len(spans) - 1
  while at > 0:
    between = text[spans[at - 1][1]:spans[at][0]]
    if len(between) > 60 or not _JOIN.fullmatch(between):
      break
    at -= 1
  return list(dict.fromkeys(content for _, _, content in spans[at:])), at


def _brief(text: str) -> str:
  return repr(text if len(text) <= 40 else text[:37] + "...")


def _from_boxes(text: str) -> Answer | None:
  found, is_open = boxes(text)
  if not found:
    return Answer("", "none", "the box is not closed") if is_open else None
  contents, before = _cluster(text, found)
  answer = ", ".join(contents)
  notes = ["the last box is not closed"] if is_open else []
  others = [c for _, _, c in found[:before] if c != answer]
  if others:
    notes.append(f"boxes disagree: {_brief(others[-1])} before {_brief(answer)}, the last counts")
  if not answer:
    return Answer("", "none", "the box is empty")
  return Answer(answer, "box", "; ".join(notes))


def formulas(text: str) -> list[tuple[int, int, str]]:
  """Formulas between $, $$, \\( \\) and \\[ \\] as (start, end, content); `$` stays on a line."""
  spans, opened = [], None
  for match in _MATH.finditer(text):
    token = match[0]
    if opened is not None and opened[0] == "$" and "\n" in text[opened[1]:match.start()]:
      opened = None
    if opened is None:
      if token in _CLOSING:
        opened = token, match.end(), match.start()
    elif token == _CLOSING[opened[0]]:
      content = text[opened[1]:match.start()].strip()
      if content:
        spans.append((opened[2], match.end(), content))
      opened = None
  return spans


def _last_formula(text: str) -> tuple[str, int]:
  """The last formula, or the list that the last ones form, and where it ends (-1: none)."""
  spans = formulas(text)
  if not spans:
    return "", -1
  contents, _ = _cluster(text, spans)
  end = spans[-1][1]
  percent = re.match(r"\s?(?:\\?%|percent\b)", text[end:end + 12])
  return ", ".join(contents) + (r"\%" if percent else ""), end


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
  found = collections.deque(pattern.finditer(text), maxlen=1)
  return found[0] if found else None


def _last_number(text: str) -> tuple[str, int]:
  match = _last(_NUMBER, text)
  return (match[0], match.end()) if match else ("", -1)


def _sentence(text: str) -> str:
  """The first line of `text` up to the end of its sentence, less markdown and punctuation."""
  line = text.lstrip(" \t\n*_:").split("\n", 1)[0]
  line = re.split(r"\.\s|\bI hope\b", line, maxsplit=1)[0]
  return line.strip().strip("*_ ").rstrip(".,;:!").strip()


def _from_line(text: str) -> str:
  """The answer that a short text holds: its last formula, else all of it, else its last number."""
  formula, end = _last_formula(text)
  if end >= 0:
    return formula
  if len(text) <= WHOLE and len(_WORD.findall(text)) <= 3:
    return text
  return _last_number(text)[0]


def _announced(text: str) -> Answer | None:
  at = text.rfind("####")
  if at >= 0:
    line = _sentence(text[at:at + LONGEST_PHRASE].lstrip("#"))
    if line:
      return Answer(_from_line(line), "mark")
  match = _last(_PHRASE, text)
  if match is None:
    return None
  rest = text[match.end():match.end() + LONGEST_PHRASE]
  block = re.match(r"[\s*_:]*(?=\$\$|\\\[)", rest)   # a display formula may span lines
  found = _last_formula(rest)[0] if block else _from_line(_sentence(rest))
  return Answer(found, "phrase") if found else None


def extract(text: str, require: Require = "any") -> Answer:
  """The final answer of a response; `how` is "none" with the reason in `note` when it has none.

  require: "box" takes boxes alone; "phrase" also tags, "####" and "answer is"; "any" falls back
  on the whole of a short response, and on its last formula or number. Raises ValueError for
  another choice.
  """
  if require not in ("any", "phrase", "box"):
    raise ValueError(f"require={require!r}; choices: any, phrase, box")
  text, closed = strip_reasoning(text)
  long = len(text) > LONGEST_TEXT
  text = clean(text[-LONGEST_TEXT:])
  if not text.strip():
    return Answer("", "none", "the response is empty" if closed else "the reasoning is not closed")
  tags = list(_TAG.finditer(text))
  tagged = len(tags) > 1 and tags[-1][1] == "/" and not tags[-2][1]
  if tagged and require != "box":
    text = text[tags[-2].end():tags[-1].start()]
  answer = _from_boxes(text)
  if answer is None and require != "box":
    if tagged and len(text.strip()) <= LONGEST_PHRASE:
      answer = Answer(_from_line(text.strip()), "tag")
    else:
      answer = _announced(text)
  if answer is None and require == "any":
    answer = _unannounced(text)
  if answer is None or (not answer.text and answer.how != "none"):
    where = f" in its last {LONGEST_TEXT} characters" if long else ""
    return Answer("", "none", f"the response gives no answer{where}")
  return answer


def _unannounced(text: str) -> Answer | None:
  whole = text.strip()
  if len(whole) <= WHOLE and "\n" not in whole:
    return Answer(_from_line(whole.rstrip(".")), "whole")
  tail = text[-LONGEST_TAIL:]
  (formula, f_end), (number, n_end) = _last_formula(tail), _last_number(tail)
  if max(f_end, n_end) < 0:
    return None
  return Answer(formula, "formula") if f_end >= n_end else Answer(number, "number")
