"""Countdown: reach a target from given numbers with + - * / in exact rational arithmetic.

An expression, "(3 + 4) * 2" or "(3+4)*2 = 14", is read by a recursive-descent parser of integers,
parentheses and four operators with the usual precedence. It reads neither signs nor powers, and
Python evaluates nothing. A chain of steps, "3 * 4 = 12 , 12 + 5 = 17", takes its operands from the
numbers that are left and adds each result to them.
"""

import operator
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from entrolab.verify import Verdict
from entrolab.verify.characters import plain

MAX_CHARACTERS = 400  # of an expression or of a chain of steps
MAX_DEPTH = 20  # of nested parentheses: the parser recurses
MAX_DIGITS = 12  # of an integer

Use = Literal["all", "any"]

_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()=]))", re.ASCII)
_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/"})
_OPERAND = r"(-?\d+(?:/\d+)?)"  # no spaces around the bar of a fraction
_STEP = re.compile(rf"\s*{_OPERAND}\s*([-+*/])\s*{_OPERAND}\s*=\s*{_OPERAND}\s*", re.ASCII)
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_MARK = re.compile(r"(?:<answer>|\banswer\b[^\n:=]{0,20}[:=])", re.IGNORECASE)


class _Invalid(Exception):
  """What is wrong with an expression or a step: the reason of a verdict."""


class _Parser:
  """expression = term {(+|-) term}; term = factor {(*|/) factor}; factor = integer | (...)."""

  def __init__(self, text: str) -> None:
    self.tokens = _tokens(text)
    self.at = 0  # the next token
    self.depth = 0  # open parentheses
    self.used: list[int] = []  # the integers read so far

  def peek(self) -> str:
    """The next token; empty at the end."""
    return self.tokens[self.at] if self.at < len(self.tokens) else ""

  def take(self) -> str:
    token = self.peek()
    self.at += 1
    return token

  def expression(self) -> Fraction:
    value = self.term()
    while self.peek() in ("+", "-"):
      sign = self.take()
      value = value + self.term() if sign == "+" else value - self.term()
    return value

  def term(self) -> Fraction:
    value = self.factor()
    while self.peek() in ("*", "/"):
      if self.take() == "*":
        value *= self.factor()
        continue
      divisor = self.factor()
      if divisor == 0:
        raise _Invalid("division by zero")
      value /= divisor
    return value

  def factor(self) -> Fraction:
    token = self.take()
    if token.isdigit():
      self.used.append(int(token))
      return Fraction(int(token))
    if token != "(":
      raise _Invalid(f"{token!r} where a number belongs" if token else "the expression ends early")
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise _Invalid(f"parentheses nested deeper than {MAX_DEPTH}")
    value = self.expression()
    if self.take() != ")":
      raise _Invalid("a parenthesis is not closed")
    self.depth -= 1
    return value


def _signed(text: str) -> str:
  """`text` with the operators and digits of ASCII."""
  return plain(text).translate(_SIGNS)


def spelled(text: str) -> str:
  """One spelling of a chain of steps: without blanks, with the operators of ASCII."""
  return "".join(_signed(text).split())


def _tokens(text: str) -> list[str]:
  if len(text) > MAX_CHARACTERS:
    raise _Invalid(f"{len(text)} characters, at most {MAX_CHARACTERS} are read")
  text = _signed(text).rstrip()
  tokens = []
  at = 0
  while at < len(text):
    match = _TOKEN.match(text, at)
    if not match:
      raise _Invalid(f"{text[at:].strip()[:1]!r} is neither a number nor an operator")
    if match[1] and len(match[1]) > MAX_DIGITS:
      raise _Invalid(f"a number of {len(match[1])} digits")
    tokens.append(match[1] or match[2])
    at = match.end()
  return tokens


def _misuse(used: Sequence[int], numbers: Sequence[int], use: Use) -> str:
  """Why the integers `used` break the rule `use` for `numbers`; the empty string if they do not."""
  left = list(numbers)
  for number in used:
    if number not in left:
      return f"{number} is used more often than it is given"
    left.remove(number)
  return f"{left[0]} is not used" if left and use == "all" else ""


def _check_use(use: Use) -> None:
  if use not in ("all", "any"):
    raise ValueError(f"use={use!r}; choices: all, any")


def check_expression(expr: str, numbers: Sequence[int], target: int, *,
                     use: Use = "all") -> Verdict:
  """Whether `expr`, or "expr = target", uses `numbers` and equals `target` exactly.

  use: "all" requires each given number exactly once, "any" at most once. An expression that cannot
  be read is wrong, with the reason. Raises ValueError for another `use`.
  """
  _check_use(use)
  try:
    parser = _Parser(expr)
    if not parser.tokens:
      return Verdict("wrong", "no expression")
    value = parser.expression()
    if parser.peek() == "=":
      parser.take()
      before = len(parser.used)
      stated = parser.expression()
      del parser.used[before:]  # integers of the stated result are not drawn from the numbers
      if stated != value:
        return Verdict("wrong", f"the expression is {value}, not {stated}")
    if parser.peek():
      raise _Invalid(f"{parser.peek()!r} after the expression")
  except _Invalid as error:
    return Verdict("wrong", str(error))
  if value != target:
    return Verdict("wrong", f"reaches {value}, not {target}")
  why = _misuse(parser.used, numbers, use)
  return Verdict("wrong", why) if why else Verdict("right", f"reaches {target}")


def check_steps(text: str, numbers: Sequence[int], target: int, *, use: Use = "all",
                separators: str = ",;\n") -> Verdict:
  """Whether a chain of steps "a op b = c" turns `numbers` into `target`.

  Each operand is a given number or an earlier result, each used at most once. Every stated result
  must be exact, and the last one must be `target`. use: "all" requires that only the last result
  is left over. Raises ValueError for another `use`.
  """
  _check_use(use)
  if len(text) > MAX_CHARACTERS:
    return Verdict("wrong", f"{len(text)} characters, at most {MAX_CHARACTERS} are read")
  left = [Fraction(number) for number in numbers]
  steps = re.split(f"[{re.escape(separators)}]", _signed(text).strip(separators + " \t"))
  result = None
  for at, step in enumerate(steps, 1):
    if not step.strip():
      return Verdict("wrong", "no steps" if len(steps) == 1 else f"step {at} is empty")
    try:
      result = _step(step, left)
    except _Invalid as error:
      return Verdict("wrong", f"step {at}: {error}")
  if result != target:
    return Verdict("wrong", f"reaches {result}, not {target}")
  if use == "all" and len(left) > 1:
    return Verdict("wrong", f"{left[0]} is not used")
  return Verdict("right", f"reaches {target} in {len(steps)} steps")


def _step(step: str, left: list[Fraction]) -> Fraction:
  """The result of a step. Removes its operands from `left` and adds the result."""
  match = _STEP.fullmatch(step)
  if not match or max(map(len, re.findall(r"\d+", step))) > MAX_DIGITS:
    raise _Invalid(f"{step.strip()[:40]!r} is not of the form a + b = c")
  try:
    a, b, stated = (Fraction(match[at]) for at in (1, 3, 4))
    value = _OPERATORS[match[2]](a, b)
  except ZeroDivisionError:
    raise _Invalid("division by zero") from None
  for operand in (a, b):
    if operand not in left:
      raise _Invalid(f"{operand} is not left")
    left.remove(operand)
  if value != stated:
    raise _Invalid(f"{a} {match[2]} {b} is {value}, not {stated}")
  left.append(value)
  return value


def last_expression(text: str) -> str:
  """The expression at the end of a response: what follows its last "answer:" or <answer>, else its
  last line with a digit; the empty string when there is none."""
  text = text[-10_000:]
  marks = list(_MARK.finditer(text))
  if marks:
    return text[marks[-1].end():].split("</answer>")[0].strip().split("\n")[0].strip()
  lines = [line for line in text.split("\n") if re.search(r"\d", line)]
  return lines[-1].strip() if lines else ""
