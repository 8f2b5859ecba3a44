r"""Answers of several parts: lists, sets, tuples, intervals, matrices, equations, plus-minus.

An answer is taken apart at its commas and brackets, and its parts are compared in turn, so that a
number, a unit or a spelling is read by the same rule wherever it stands. A list counts its members,
a set and a list of tuples do not; `\pm` is an abbreviation of two members. What cannot be decided
here without algebra is None.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

MAX_SIGNS = 4  # of \pm in an answer that is written out

# Whether two texts without structure are equal: (gold, answer) -> True, False or undecided.
Leaf = Callable[[str, str], bool | None]

_CONNECTIVE = re.compile(r"\s?,?\s?(?:\\text\s?\{[ ,]{0,4}(?:and|or|OR)[ ,]{0,4}\}"
                         r"|\b(?:and|or|OR)\b)\s?")
_NAME = r"(?:[A-Za-z]{1,3}|\\[a-z]{2,8})(?:_(?:\{[^{}]{1,9}\}|\w))?'{0,3}"
_NAMES = re.compile(rf"{_NAME}(?:\s?\(\s?[\w\\, ]{{1,20}}\))?"
                    rf"|\(\s?{_NAME}(?:\s?,\s?{_NAME}){{1,5}}\s?\)|\\text\s?\{{[^{{}}]*\}}")
_EQUALS = re.compile(r"(?<![<>!:=])=(?!=)|\\approx(?![A-Za-z])")
_RELATION = re.compile(r"\\(?:le|ge|ne|in|subset|equiv|mid|cup|cap|setminus)(?![A-Za-z])|[<>]")
_SIGN = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_MATRIX = re.compile(r"\\begin\{(?:[pb]?matrix|array|smallmatrix)\}(?:\{[lcr|]{1,9}\})?(.*)"
                     r"\\end\{(?:[pb]?matrix|array|smallmatrix)\}", re.DOTALL)
@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
  """An answer taken apart."""
  kind: str  # list, set, tuple, matrix or value
  items: tuple["Parts | str", ...]  # the parts; of a value its text alone
  brackets: str = ""  # of a tuple: "()", "[)", of a matrix its numbers of columns
  name: str = ""  # what an equation calls the value


def _whole(text: str) -> bool:
  """Whether the bracket that `text` begins with closes at its end."""
  depth = 0
  for at, char in enumerate(text):
    depth += (char in "({[") - (char in ")}]")
    if depth <= 0:
      return at == len(text) - 1
  return False


def _split(text: str, separators: str) -> list[str]:
  """`text` at the separators outside of its brackets."""
  parts, depth, start = [], 0, 0
  for at, char in enumerate(text):
    if char in "({[":
      depth += 1
    elif char in ")}]":
      depth = max(depth - 1, 0)
    elif char in separators and depth == 0 and not (char == ";" and text[at - 1:at] == "\\"):
      parts.append(text[start:at].strip())
      start = at + 1
  parts.append(text[start:].strip())
  return parts


def _signs(text: str) -> list[str]:
  r"""`text` with \pm and \mp written out: both at once where there is a \mp, else each for itself.
  """
  signs = _SIGN.findall(text)
  if not signs or len(signs) > MAX_SIGNS:
    return [text]
  together = "mp" in signs
  written = []
  for choice in itertools.product("+-", repeat=1 if together else len(signs)):
    left = iter(choice * len(signs) if together else choice)
    sign = lambda m, left=left: {"pm": "+", "mp": "-"}[m[1]] if next(left) == "+" else (
        {"pm": "-", "mp": "+"}[m[1]])
    one = re.sub(r"(^|[({\[,=]\s?)\+\s?", r"\1", _SIGN.sub(sign, text)).strip()
    if one not in written:
      written.append(one)
  return written


def _equation(text: str) -> tuple[str, str]:
  """(name, value) of `x = 5`, `5 = x`, `f(x) = a = b`; no name where it is no such equation.

  Equality is symmetric, so that the side which is a name names the other.
  """
  sides = [side.strip() for side in _EQUALS.split(text)]
  if len(sides) < 2 or _RELATION.search(text) or not all(sides):
    return "", text
  if _NAMES.fullmatch(sides[0]):
    return sides[0].replace(" ", ""), sides[-1]
  if len(sides) == 2 and _NAMES.fullmatch(sides[1]):
    return sides[1].replace(" ", ""), sides[0]
  return "", text


def parse(text: str) -> Parts:
  """A canonical text taken apart."""
  text = text.strip().rstrip(".,;: ")
  while text.startswith("{") and _whole(text):
    text = text[1:-1].strip()
  if "," in text or ";" in text or "and" in text.lower() or "or" in text.lower():
    joined = _CONNECTIVE.sub(", ", text)
    groups = [part for part in _split(joined, ";") if part]
    if 1 < len(groups) < joined.count(",") + 1:  # p=5,q=2;p=7,q=2 are two pairs
      return _list([_pair(parse(group)) for group in groups])
    members = [part for part in _split(joined, ",;") if part]
    if len(members) > 1:
      return _list([parse(part) for part in members])
  if "=" in text or r"\approx" in text:
    name, value = _equation(text)
    if name:
      return dataclasses.replace(parse(value), name=name)
  written = [text] if text.startswith(r"\{") else _signs(text)
  if len(written) > 1:
    return _list([parse(one) for one in written])
  return _bracketed(text) or Parts("value", (text,))


def _pair(part: Parts) -> Parts:
  """A list between semicolons is a tuple."""
  return dataclasses.replace(part, kind="tuple", brackets="()") if part.kind == "list" else part


def _list(members: Sequence[Parts]) -> Parts:
  """A list, in which lists of members (of plus-minus) are members themselves."""
  items: list[Parts | str] = []
  for member in members:
    items += member.items if member.kind == "list" and not member.name else [member]
  return Parts("list", tuple(items))


def _bracketed(text: str) -> Parts | None:
  """A set, tuple, interval or matrix; None for another text."""
  if text.startswith(r"\{") and text.endswith(r"\}"):
    inside = text[2:-2]
    if not _whole(text[1:]) or _RELATION.search(inside) or re.search(r"[:|]", inside):
      return None
    members = parse(inside)
    return Parts("set", members.items if members.kind == "list" else (members,))
  if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _whole(text):
    inside = text[1:-1]
    members = _split(inside, ",;")
    if len(members) > 1 and all(members):
      return Parts("tuple", tuple(parse(member) for member in members), text[0] + text[-1])
    matrix = _MATRIX.fullmatch(inside.strip())
    return _rows(matrix[1]) if matrix else None
  matrix = _MATRIX.fullmatch(text)
  return _rows(matrix[1]) if matrix else None


def _rows(text: str) -> Parts | None:
  """The entries of a matrix, row by row."""
  if r"\begin" in text:
    return None
  rows = [_split(row, "&") for row in re.split(r"\\\\|\\cr(?![A-Za-z])", text) if row.strip()]
  items = tuple(parse(entry) for row in rows for entry in row)
  return Parts("matrix", items, ",".join(str(len(row)) for row in rows)) if items else None


def _all(decided: Sequence[bool | None]) -> bool | None:
  """False where one is, None where one is undecided, else True."""
  if False in decided:
    return False
  return None if None in decided else True


def members(items: Sequence[Parts | str]) -> list[Parts]:
  """The parts of a list, set, tuple or matrix, a text as a value."""
  return [item if isinstance(item, Parts) else Parts("value", (item,)) for item in items]


def _matched(gold: list[Parts], answer: list[Parts], leaf: Leaf) -> bool | None:
  """Whether the members can be paired so that each pair is equal."""
  left = list(answer)
  undecided: list[tuple[Parts, list[bool | None]]] = []
  for member in gold:
    verdicts: list[bool | None] = []
    for at, other in enumerate(left):
      equal = same(member, other, leaf)
      verdicts.append(equal)
      if equal:
        left.pop(at)
        break
    else:
      if not any(verdict is None for verdict in verdicts):
        return False
      undecided.append((member, verdicts))
  return None if undecided else not left


def _distinct(items: list[Parts], leaf: Leaf) -> list[Parts]:
  """The members of a set, each once."""
  found: list[Parts] = []
  for item in items:
    if not any(same(item, other, leaf) for other in found):
      found.append(item)
  return found


def _collections(gold: Parts, answer: Parts, leaf: Leaf) -> bool | None:
  """Lists and sets: members are counted unless they are a set's, or points."""
  golds, answers = members(gold.items), members(answer.items)
  points = all(member.kind == "tuple" for member in golds + answers)
  if gold.kind == "set" or points:
    golds = _distinct(golds, leaf)
  if answer.kind == "set" or points:
    answers = _distinct(answers, leaf)
  plain = all(is_plain(member) for member in golds + answers)
  if len(golds) != len(answers):
    return False if plain else None
  names = [member.name for member in golds], [member.name for member in answers]
  if any(bool(len(set(some)) > 1 and all(some)) and not any(others)
         for some, others in (names, names[::-1])):  # x=1, y=2 has an order that 1, 2 has to keep
    decided = _all([same(g, a, leaf) for g, a in zip(golds, answers, strict=True)])
  else:
    decided = _matched(golds, answers, leaf)
  return decided if plain or decided else None


def is_plain(part: Parts) -> bool:
  """Whether a part has no relation, which two different texts may say alike."""
  return all(is_plain(item) if isinstance(item, Parts) else not (
      _RELATION.search(item) or _EQUALS.search(item)) for item in part.items)


def same(gold: Parts, answer: Parts, leaf: Leaf) -> bool | None:
  """Whether two answers are equal; None where algebra has to decide."""
  if gold.name and answer.name and gold.name != answer.name:
    return None
  if (gold.name and not is_plain(answer)) or (answer.name and not is_plain(gold)):
    return None  # an equation in two spellings
  if gold.kind == answer.kind == "value":
    return leaf(str(gold.items[0]), str(answer.items[0]))
  if gold.kind in ("list", "set") and answer.kind in ("list", "set"):
    return _collections(gold, answer, leaf)
  if gold.kind == answer.kind and gold.kind in ("tuple", "matrix"):
    if len(gold.items) != len(answer.items) or gold.brackets != answer.brackets:
      return None
    return _all([same(g, a, leaf) for g, a in zip(members(gold.items),
                                                           members(answer.items), strict=True)])
  return _mixed(gold, answer, leaf)


def _mixed(gold: Parts, answer: Parts, leaf: Leaf) -> bool | None:
  """Answers of different kinds: a set of one member is its member, 1,5 may be a decimal."""
  for one, other in ((gold, answer), (answer, gold)):
    if one.kind == "set" and len(one.items) == 1 and other.kind in ("value", "tuple", "matrix"):
      inner = members(one.items)[0]
      if inner.items == (r"\emptyset",):
        return False
      return same(inner, other, leaf) if one is gold else same(other, inner, leaf)
    if one.kind == "list" and other.kind == "value" and is_plain(one) and is_plain(other):
      return False
  return None
