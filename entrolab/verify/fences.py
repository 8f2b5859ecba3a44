"""Fenced code blocks of CommonMark, and what in a response is the text of a program.

One reader for every place that looks for programs: fences of backticks or tildes, at least three,
indented by at most three columns (in a list item: behind its contents' column); an info string,
whose first word is the language; closed by a run of the same character that is as long or longer,
with nothing behind it; open to the end of the text where nothing closes it.

A tag such as </think> is one where it stands outside of fences, or begins or ends its line there:
models leave fences open in their reasoning. Elsewhere in a fence it is text of the program.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Sequence

# the names under which a language is written on fences, by any one of them
_SAME = (("python", "py", "python3"), ("sh", "bash", "shell"), ("javascript", "js", "node"))
_OPEN = re.compile(r"(`{3,}|~{3,})[ \t]*(.*)")
_ITEM = re.compile(r" *(?:[-*+]|\d{1,9}[.)]) {1,4}(?=\S)")
_TAG = re.compile(r"</?(?:think|answer)>")
# a tag against the run of a fence: each stands on its own line
_BEHIND = re.compile(r"^([ \t]*(?:`{3,}|~{3,}))[ \t]*(?=</?(?:think|answer)>)", re.MULTILINE)
_BEFORE = re.compile(r"(</?(?:think|answer)>)[ \t]*(?=(?:`{3,}|~{3,})[\w+#.-]*[ \t]*$)",
                     re.MULTILINE)
_WORD = r"(?P<%s>[^\W\d]\w*)"
# what a line without indentation defines, in the languages that models write most
_FUNCTION = re.compile(
    r"^(?:(?:export|default|local|static|public|async)[ \t]+)*"
    rf"(?:def|class|function|func|fn|sub|proc)[ \t]+{_WORD % 'name'}", re.MULTILINE)
_VALUE = re.compile(rf"^(?:(?:export|local|const|let|var|my)[ \t]+)?{_WORD % 'name'}[ \t]*"
                    r"(?:\(\)|:|=(?!=))", re.MULTILINE)
_IMPORT = re.compile(r"^(?:from[ \t]+\S+[ \t]+)?import[ \t]+([^\n]+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class Fence:
  """A fenced code block."""
  language: str  # the first word of its info string in lower case; empty without one
  body: str  # its lines, without the indentation of the fence
  closed: bool  # whether a closing fence ends it, rather than the end of the text
  first: int  # its first line in the text: the opening fence
  last: int  # its last line in the text
  length: int  # of the opening run


def names_of(languages: Iterable[str]) -> set[str]:
  """The languages under all of their names, in lower case."""
  asked = {language.lower() for language in languages}
  return asked.union(*(names for names in _SAME if asked & set(names)))


def _columns(line: str) -> int:
  """The columns of blanks that a line begins with; a tab goes to the next multiple of four."""
  return len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip(" "))


def _opening(line: str, items: list[int]) -> tuple[str, str, int] | None:
  """(run, info string, column) where a line opens a fence.

  items: the columns at which the contents of the open list items begin, which this follows.
  """
  expanded = line.expandtabs(4)
  column = _columns(line)
  while items and line.strip() and column < items[-1]:
    items.pop()
  item = _ITEM.match(expanded)
  if item and column - (items[-1] if items else 0) <= 3:
    column = item.end()
    items.append(column)
  found = _OPEN.fullmatch(expanded[column:].strip(" "))
  if not found or column - (items[-1] if items else 0) > 3:
    return None
  if found[1][0] == "`" and "`" in found[2]:  # code within a line
    return None
  return found[1], found[2], column


def fences(text: str) -> list[Fence]:
  """The fences of a text in their order."""
  lines = re.split(r"\r\n|\n|\r", text)
  found = []
  items: list[int] = []
  at = 0
  while at < len(lines):
    opened = _opening(lines[at], items)
    if not opened:
      at += 1
      continue
    run, info, column = opened
    close = re.compile(rf"[ \t]*{run[0]}{{{len(run)},}}[ \t]*")
    most = (items[-1] if items else 0) + 3  # columns of blanks before a closing fence
    end = next((n for n in range(at + 1, len(lines))
                if close.fullmatch(lines[n]) and _columns(lines[n]) <= most), len(lines))
    closed = end < len(lines)
    body = [line[min(column, len(line) - len(line.lstrip(" "))):] for line in lines[at + 1:end]]
    words = info.lower().strip("{}").lstrip(".").split() or [""]
    found.append(Fence(words[0], "\n".join(body) + ("\n" if closed and body else ""), closed, at,
                       min(end, len(lines) - 1), len(run)))
    at = end + 1
  return found


def last_fence(text: str, language: str) -> str | None:
  """The program in the closed fence of a language with which a text ends; None without one."""
  found = fences(text.rstrip())
  if not found or not found[-1].closed or found[-1].language not in names_of([language]):
    return None
  if found[-1].last != len(re.split(r"\r\n|\n|\r", text.rstrip())) - 1:
    return None
  return _restarted(found[-1], [language])


def _restarted(fence: Fence, languages: Sequence[str]) -> str:
  """The body behind the last line that opens a fence of the same language in it.

  No program has such a line: there a fence was begun anew, and the one before it left open.
  """
  names = "|".join(map(re.escape, names_of(languages)))
  again = rf"^ {{0,3}}(?:`{{{fence.length},}}|~{{{fence.length},}})[ \t]*(?:{names})\b[^\n]*\n"
  return re.split(again, fence.body, flags=re.MULTILINE)[-1] if names else fence.body


def _tags(text: str) -> list[tuple[str, int, int]]:
  """(tag, begin, end) of those that are no text of a program."""
  inside = {line for fence in fences(text) for line in range(fence.first + 1, fence.last + 1)}
  found = []
  begin = 0
  for number, line in enumerate(re.split(r"\r\n|\n|\r", text)):
    for tag in _TAG.finditer(line):
      edge = not line[:tag.start()].strip() or not line[tag.end():].strip()
      if number not in inside or edge:
        found.append((tag[0], begin + tag.start(), begin + tag.end()))
    begin += len(line) + (2 if text.startswith("\r\n", begin + len(line)) else 1)
  return found


def answer_part(text: str) -> str | None:
  """The response behind its reasoning, and in its last <answer>...</answer> if there is one.

  A closing tag before any opening one ends reasoning that began in the prompt. None for a response
  that does not leave its reasoning.
  """
  text = _BEFORE.sub(r"\1\n", _BEHIND.sub(r"\1\n", text))
  thinking, begin = False, 0
  mentioned = 0  # opening tags within a line, whose closing tags are mentioned as well
  for tag, start, end in _tags(text):
    if tag == "<think>" and not text[begin:start].rpartition("\n")[2].strip():
      thinking = True
    elif tag == "<think>":
      mentioned += 1
    elif tag == "</think>" and mentioned and not thinking:
      mentioned -= 1
    elif tag == "</think>" and (thinking or not begin):
      thinking, begin = False, end
  if thinking:
    return None
  text = text[begin:]
  opened, inner = None, text
  for tag, start, end in _tags(text):
    if tag == "<answer>":
      opened = end
    elif tag == "</answer>" and opened is not None:
      inner, opened = text[opened:start], None
  return inner


def _definitions(body: str) -> tuple[set[str], set[str]]:
  """(functions, classes and imports; other names) that a program defines, by its text alone."""
  body = textwrap.dedent(body)
  functions = {found["name"] for found in _FUNCTION.finditer(body)}
  for found in _IMPORT.finditer(body):
    functions |= set(re.findall(r"\w+", found[1]))
  return functions, {found["name"] for found in _VALUE.finditer(body)}


def _defining(bodies: Sequence[str], names: Iterable[str]) -> str:
  """The last bodies that define the names, behind earlier ones that define what those use."""
  wanted, used, defined = set(names), set[str](), set[str]()
  taken = []
  for body in reversed(bodies):
    functions, values = _definitions(body)
    if (functions | values) & wanted or functions & used:
      taken.append(body)
      defined |= functions | values
      wanted -= defined
      used = (used | set(re.findall(r"[^\W\d]\w*", body))) - defined
  return "\n".join(reversed(taken))


def program_of(text: str, languages: Sequence[str] = (), names: Iterable[str] = ()) -> str:
  """The program in a response; empty for one that does not leave its reasoning.

  Of `answer_part`: the fences in one of `languages`, or in none, that define `names`; where no
  fence does, the last one in one of `languages`, else the last one, else the text itself. Fences
  that are not closed count where there is no other.
  """
  part = answer_part(text)
  if part is None:
    return ""
  found = fences(part)
  known = names_of(languages)
  for some in ([f for f in found if f.closed], found):
    bodies = [_restarted(f, languages) for f in some if not known or f.language in {*known, ""}]
    program = _defining(bodies, names)
    if program:
      return program
  some = [f for f in found if f.closed] or found
  some = [f for f in some if f.language in known] or some
  return _restarted(some[-1], languages) if some else part
