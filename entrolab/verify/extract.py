r"""From a whole response to its final answer, in time linear in the length of any response.

The response is read in this order, and the first place with an answer decides:

1. reasoning (`<think>...</think>`) is removed, and what follows an open `<think>` with it
2. the text is cut down to the last `<answer>...</answer>`, where there is one
3. the last closed `\boxed{}`, unless a later "answer is" states a formula or number
4. the text of a short `<answer>`, else the line after the last `####`
5. what follows "answer is" or "answer:"
6. unless the caller requires one of these: a short response as a whole, else the last formula or
   number

In a sentence, what follows its last "is", "equals" or "are" is the answer: a formula before it
names the object, and a remark behind it (not 5, which is prime, since ...) is none.

Boxes side by side, joined by commas, "and" or "or" on one line, are read as one list, so that
listing guesses is not rewarded. Otherwise the last box counts, and the note says so when an earlier
one disagrees. A box that is never closed is no answer.
"""

import collections
import dataclasses
import re
from typing import Literal

from entrolab.verify.characters import clean

# Limits in characters.
MAX_TEXT = 100_000  # read of a response, from its end
MAX_TAIL = 4_000  # searched for a formula or number that no phrase announces, from the end
MAX_PHRASE = 500  # read after "answer is"
MAX_AFTER = 60  # read behind an answer, where a unit may stand
MAX_OPENED = 80  # of a prompt, searched for what it leaves open
MAX_WHOLE = 120  # of a response that may be the answer itself

How = Literal["box", "tag", "mark", "phrase", "whole", "formula", "number", "none"]
Require = Literal["any", "phrase", "box"]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """An extracted answer."""
  text: str  # as it is written; empty if there is none
  how: How  # the place where it was found
  note: str = ""  # why there is none, or what is doubtful about it, for the reason of a verdict
  after: str = ""  # what follows it in its sentence, where a unit may stand: $5$ cm


# Marks in a response. Every repeat is bounded, so that no run of a single character makes a scan
# quadratic.
_THINK = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s{1,8}([^\s${}\\]{1,64})")
_PHRASE = re.compile(r"\banswer\b[^\n]{0,40}?(?:\bis\b|:|=)", re.IGNORECASE)
_MATH = re.compile(r"\$\$|\$|\\[()\[\]]|\\.", re.DOTALL)
_DELIMITED = re.compile(r"(?<!\\)\$[^$]|\\[(\[]")
_CLOSING = {"$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]"}
_NUMBER = re.compile(r"(?<![\w.,/^])[-+]?(?:\d{1,3}(?:,\d{3}){1,99}|\d{1,999})?(?:\.\d{1,999})?"
                     r"(?:/\d{1,999})?(?<=\d)(?!\d)(?:\s?\\?%|\s?percent\b)?")
_JOIN = re.compile(r"(?:[ \t$,;&]|\\[()\[\],;! ]|\\q?quad|\band\b|\bor\b"
                   r"|(?<![A-Za-z])[A-Za-z](?:_\{?\w{1,3}\}?)?\s?="
                   r"|\\text\s?\{[ ,]{0,4}(?:and|or)?[ ,]{0,4}\})*"
                   r"|[ $]{0,4}[A-Za-z]{1,20}[ $,]{1,4}(?:and|or)[ $]{1,4}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")

# A sentence, whose formulas are masked: its verbs, what may stand before an answer, and remarks.
_MASK = "\x01"
_VERB = re.compile(r"\b(?:is|are|was|were|equals|equal(?! to)|be|becomes|namely)\b"
                   r"|(?<=\x01)\s{0,4}=(?!=)")
_FILLER = re.compile(
    r"\s{0,4}(?:[:=*_,]|(?:equal to|given by|approximately|about|roughly|exactly|just|only|simply"
    r"|then|therefore|thus|also|indeed|precisely|that|still|now|always|a total of"
    r"|not\b[^.]{1,60}?\bbut"
    r"|the (?:number|value|integer|fraction))\b)\s{0,4}")
_DENIED = re.compile(r"\s{0,4}not\b")
_REMARK = re.compile(
    r",?\s{1,4}(?:not|but not|and not|which|since|because|where|whereas|instead of|rather than|as"
    r"|due to|meaning|i\.e|e\.g|for|when|while|so"
    r"|and (?:this|that|it|the answer))\b|\s{0,4}(?:—|--)\s")
_ASIDE = re.compile(
    r"\s?\([^()]{0,200}\b(?:which|that|or|since|because|not|about|approximately|as|is|i\.e|rounded|where"
    r"|for|in)\b[^()]{0,200}\)")
_CONTENT = re.compile(r"\s{0,4}[-+(\[{]{0,3}\s?(?:\x01|\\?\$?\.?\d|\\[a-z]|[A-Za-z]\s?[=<>])")
_STATES = re.compile(r"[\s*_:]{0,8}(?:\$|\\[(\[]|\\frac|\\sqrt|[-+]?\s?\\?\$?\.?\d)")


_OPENED = re.compile(r"(?:<(?:think|thinking|thought|reasoning|answer)>|\\boxed\{)\s*\Z",
                     re.IGNORECASE)


def opened(prompt: str) -> str:
  """What a prompt leaves open at its end: a tag of reasoning or answer, a box; else nothing.

  A response goes on inside of it, so that a verifier reads this and the response as one text.
  """
  match = _OPENED.search(prompt[-MAX_OPENED:])
  return match[0] if match else ""


def strip_reasoning(text: str) -> tuple[str, bool]:
  """(`text` outside <think> blocks, whether every block was closed).

  A closing tag before any opening one ends reasoning that began in the prompt.
  """
  outside: list[str] = []
  start = 0  # where text outside begins
  depth = 0  # blocks that are open
  for match in _THINK.finditer(text):
    closing = bool(match[1])
    if closing:
      depth = max(depth - 1, 0)
      start = match.end()
    else:
      if depth == 0:
        outside.append(text[start:match.start()])
      depth += 1
  if depth == 0:
    outside.append(text[start:])
  return "".join(outside), depth == 0


def boxes(text: str) -> tuple[list[tuple[int, int, str]], bool]:
  """Outermost closed boxes as (start, end, content), and whether a box after them is left open."""
  stack: list[tuple[int, int] | None] = []  # open braces: (start, start of content) of a box
  spans: list[tuple[int, int, int]] = []  # closed boxes: (start, end, start of content)
  for match in _BRACE.finditer(text):
    token = match[0]
    if token == "{":
      stack.append(None)
    elif token == "}":
      opened = stack.pop() if stack else None
      if opened is not None:
        start, inside = opened
        while spans and spans[-1][0] > start:  # these were inside the box that closes here
          spans.pop()
        spans.append((start, match.end(), inside))
    elif token.endswith("{") and len(token) > 2:  # not `\{`, which is a sign of a set
      stack.append((match.start(), match.end()))
  last_end = spans[-1][1] if spans else -1
  is_open = any(opened is not None and opened[0] >= last_end for opened in stack)
  found = [(start, end, text[inside:end - 1].strip()) for start, end, inside in spans]
  if not found:  # \boxed 7
    found = [(m.start(), m.end(), m[1].strip()) for m in _BARE_BOX.finditer(text)]
  return found, is_open


def _cluster(text: str, spans: list[tuple[int, int, str]]) -> tuple[list[str], int]:
  """Contents of the last spans, as far back as a line joins them, and how many spans precede."""
  first = len(spans) - 1
  while first > 0:
    between = text[spans[first - 1][1]:spans[first][0]]
    if len(between) > 60 or not _JOIN.fullmatch(between):
      break
    first -= 1
  return list(dict.fromkeys(content for _, _, content in spans[first:])), first


def _quoted(text: str) -> str:
  return repr(text if len(text) <= 40 else text[:37] + "...")


def _from_boxes(text: str) -> Answer | None:
  """The answer in the last boxes; None where the text has no box at all."""
  found, is_open = boxes(text)
  if not found:
    return Answer("", "none", "the box is not closed") if is_open else None
  contents, before = _cluster(text, found)
  answer = ", ".join(contents)
  notes = ["the last box is not closed"] if is_open else []
  others = [content for _, _, content in found[:before] if content != answer]
  if others:
    notes.append(f"boxes disagree: {_quoted(others[-1])} before {_quoted(answer)}, "
                 "the last counts")
  if not answer:
    return Answer("", "none", "the box is empty")
  if _DELIMITED.match(answer):  # begins with a formula of its own, as references do
    inner = _unannounced(answer)
    answer = inner.text if inner and inner.text else answer
  return Answer(answer, "box", "; ".join(notes))


def formulas(text: str) -> list[tuple[int, int, str]]:
  """Formulas between $, $$, \\( \\) and \\[ \\] as (start, end, content).

  A formula between single dollars lies on a single line: elsewhere a dollar is a currency.
  """
  spans: list[tuple[int, int, str]] = []
  opened: tuple[str, int, int] | None = None  # the delimiter, its start and its end
  for match in _MATH.finditer(text):
    token = match[0]
    if opened is not None and opened[0] == "$" and "\n" in text[opened[2]:match.start()]:
      opened = None
    if opened is None:
      if token in _CLOSING:
        opened = token, match.start(), match.end()
      continue
    delimiter, start, inside = opened
    if token == _CLOSING[delimiter]:
      content = text[inside:match.start()].strip()
      if content:
        spans.append((start, match.end(), content))
      opened = None
  return spans


def _last_formula(text: str) -> tuple[str, int]:
  """The last formula, or the last few joined into a list, and where it ends; -1 if there is none.
  """
  spans = formulas(text)
  if not spans:
    return "", -1
  contents, _ = _cluster(text, spans)
  end = spans[-1][1]
  return ", ".join(contents), end


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
  """The last match of a pattern."""
  found = collections.deque(pattern.finditer(text), maxlen=1)
  return found[0] if found else None


def _last_number(text: str) -> tuple[str, int]:
  """The last number and where it ends; -1 if there is none."""
  match = _last(_NUMBER, text)
  return (match[0], match.end()) if match else ("", -1)


def _sentence(text: str) -> str:
  """The first line of `text` up to the end of its sentence, without markdown and punctuation."""
  line = text.lstrip(" \t\n*_:").split("\n", 1)[0]
  line = re.split(r"\.\s|\bI hope\b", line, maxsplit=1)[0]
  return line.strip().strip("*_ ").rstrip(".,;:!").strip()


def _masked(text: str) -> str:
  """`text` with a mask for every character of its formulas, which no verb or remark is read in."""
  spans = [(start, end) for start, end, _ in formulas(text)]
  spans += [match.span() for match in re.finditer(r"\\text\s?\{[^{}]*\}", text)]
  masked = list(text)
  for start, end in spans:
    masked[start:end] = _MASK * (end - start)
  return "".join(masked)


def _begins(masked: str, start: int) -> int:
  """Where the formula or number begins that a clause begins with; -1 where it begins otherwise."""
  while filler := _FILLER.match(masked, start):
    start = filler.end()
  return start if _CONTENT.match(masked, start) else -1


def _without_remarks(text: str) -> str:
  """`text` up to the first remark on an answer, and without what stands in parentheses behind it.

  A remark follows a clause that begins with a formula or number; others belong to the subject.
  """
  for aside in reversed(list(_ASIDE.finditer(_masked(text)))):
    if re.search(r"[\d$]", text[:aside.start()]):
      text = text[:aside.start()] + text[aside.end():]
  masked = _masked(text)
  clauses = [0, *(verb.end() for verb in _VERB.finditer(masked))]
  for remark in _REMARK.finditer(masked):
    clause = max(start for start in clauses if start <= remark.start())
    if 0 <= _begins(masked, clause) < remark.start():
      return text[:remark.start()]
  return text


def _stated(text: str) -> str:
  """What a sentence says: the part behind its last verb that has a formula or number and is not
  denied, else all of it."""
  text = _without_remarks(text)
  masked = _masked(text)
  for start in reversed([0, *(verb.end() for verb in _VERB.finditer(masked))]):
    begins = _begins(masked, start)
    if begins >= 0:
      return text[begins:].strip()
    if _CONTENT.search(masked, start) and not _DENIED.match(masked, start):
      return text[start:].strip()
  return text


def _from_line(text: str, how: How) -> Answer:
  """The answer in a short text: what its sentence states; of that the last formula, else all of it,
  else the last number."""
  stated = _stated(text)
  formula, end = _last_formula(stated)
  if end < 0 and len(stated) <= MAX_WHOLE and len(_WORD.findall(stated)) <= 3:
    return Answer(stated.rstrip("€£¥"), how)
  if end < 0:
    formula, end = _last_number(stated)
  return Answer(formula, how, after=stated[end:end + MAX_AFTER] if formula else "")


def _announced(text: str) -> Answer | None:
  """The answer after the last "####", else after the last "answer is"; None without either."""
  at = text.rfind("####")
  if at >= 0:
    line = _sentence(text[at:at + MAX_PHRASE].lstrip("#"))
    if line:
      return _from_line(line, "mark")
  match = _last(_PHRASE, text)
  if match is None:
    return None
  found = _after_phrase(text, match)
  return found if found.text else None


def _after_phrase(text: str, phrase: re.Match[str]) -> Answer:
  """The answer behind "the answer is"."""
  rest = text[phrase.end():phrase.end() + MAX_PHRASE]
  display = re.match(r"[\s*_:]*(?=\$\$|\\\[)", rest)  # a display formula may span lines
  return Answer(_last_formula(rest)[0], "phrase") if display else (
      _from_line(_sentence(rest), "phrase"))


def _restated(text: str, boxed: Answer) -> Answer:
  """The answer that is stated after the last box, where one is, else that of the box.

  Only "answer is" directly before a formula or number states one: "the answer is correct" does not.
  """
  found, _ = boxes(text)
  after = text[found[-1][1]:] if found else ""
  phrase = _last(_PHRASE, after)
  if phrase is None or not _STATES.match(after, phrase.end()):
    return boxed
  answer = _after_phrase(after, phrase)
  if not answer.text or answer.text == boxed.text:
    return boxed
  return dataclasses.replace(answer, note=f"stated after the box of {_quoted(boxed.text)}")


def extract(text: str, require: Require = "any") -> Answer:
  """The final answer of a response; where there is none, `how` is "none" and `note` says why.

  require: "box" reads boxes alone; "phrase" also tags, "####" and "answer is"; "any" also a short
  response as a whole, and the last formula or number. Raises ValueError for another choice.
  """
  if require not in ("any", "phrase", "box"):
    raise ValueError(f"require={require!r}; choices: any, phrase, box")
  # reasoning is removed before the text is cut, else a cut inside a block would expose its end
  text, closed = strip_reasoning(text)
  is_long = len(text) > MAX_TEXT
  text = clean(text[-MAX_TEXT:])
  if not text.strip():
    return Answer("", "none", "the response is empty" if closed else "the reasoning is not closed")
  tags = list(_TAG.finditer(text))
  # only an opening tag directly before the last closing one
  tagged = len(tags) > 1 and tags[-1][1] == "/" and not tags[-2][1]
  if tagged and require != "box":
    text = text[tags[-2].end():tags[-1].start()]
  answer = _from_boxes(text)
  if answer is not None and require != "box":
    answer = _restated(text, answer)
  if answer is None and require != "box":
    if tagged and len(text.strip()) <= MAX_PHRASE:
      answer = _from_line(text.strip(), "tag")
    else:
      answer = _announced(text)
  if answer is None and require == "any":
    answer = _unannounced(text)
  if answer is None or (not answer.text and answer.how != "none"):
    where = f" in its last {MAX_TEXT} characters" if is_long else ""
    return Answer("", "none", f"the response gives no answer{where}")
  return answer


def _unannounced(text: str) -> Answer | None:
  """A short response itself, else whichever of formula and number ends last."""
  whole = text.strip()
  if len(whole) <= MAX_WHOLE and "\n" not in whole:
    return _from_line(whole.rstrip("."), "whole")
  tail = text[-MAX_TAIL:]
  formula, formula_end = _last_formula(tail)
  number, number_end = _last_number(tail)
  if max(formula_end, number_end) < 0:
    return None
  if formula_end >= number_end:
    return Answer(formula, "formula", after=tail[formula_end:formula_end + MAX_AFTER])
  return Answer(number, "number", after=tail[number_end:number_end + MAX_AFTER])
