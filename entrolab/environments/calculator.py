"""Word problems with a calculator as a tool: after `calc 12 * 7` the observation is `= 84 >`.

  ann has 12 boxes of 7 pens , then gets 9 more . how many >
  calc 12 * 7 + 9      = 93 >
  answer 93            ends the episode: reward 1 if it is right

The calculator evaluates Python's arithmetic (+ - * / // % ** and parentheses) on the syntax tree,
in exact fractions, within bounds on length and size; nothing is executed. With
`tool=tools.Python()` the expression may be any Python program, which runs confined.
"""

import ast
import dataclasses
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from entrolab.environments import Spoken
from entrolab.tasks.task import Example, Generated, Step, drawn, held_out, stable_repr

MAX_CHARACTERS = 100  # of an expression
MAX_VALUE = 10**12  # absolute value of numerator and denominator of any result
MAX_POWER = 16  # absolute value of an exponent
PEOPLE = ("ann", "ben", "eva", "tom")
BOXES = ("bags", "boxes", "jars", "shelves")
THINGS = ("books", "coins", "nuts", "pens")

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow}


def calculate(text: str) -> Fraction:
  """The exact value of an arithmetic expression. Raises ValueError with the reason for others."""
  if len(text) > MAX_CHARACTERS:
    raise ValueError(f"over {MAX_CHARACTERS} characters")
  try:
    return _value(ast.parse(text.strip(), mode="eval").body)
  except (SyntaxError, RecursionError, MemoryError):
    raise ValueError("not an expression") from None
  except ZeroDivisionError:
    raise ValueError("division by zero") from None


def _value(node: ast.expr) -> Fraction:
  """The value of a node. Only the operators and integers listed here are evaluated.

  Every intermediate result is bounded, so that no chain of operators grows without limit.
  """
  if isinstance(node, ast.Constant) and type(node.value) is int:
    value = Fraction(node.value)
  elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
    inside = _value(node.operand)
    value = -inside if isinstance(node.op, ast.USub) else inside
  elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Pow) and not (right.denominator == 1 and abs(right) <= MAX_POWER):
      raise ValueError(f"an exponent must be a whole number up to {MAX_POWER}")
    value = Fraction(OPERATORS[type(node.op)](left, right))
  else:
    raise ValueError("not arithmetic")
  if max(abs(value.numerator), value.denominator) > MAX_VALUE:
    raise ValueError("too large")
  return value


@dataclasses.dataclass(frozen=True)
class Calculator:
  """`calculate` as a tool: expressions -> their values, or `error: ` and the reason."""

  def __call__(self, expressions: Sequence[str]) -> list[str]:
    """What the calculator shows for each expression."""
    return [self.shown(expression) for expression in expressions]

  def shown(self, expression: str) -> str:
    """`3`, `3/2` or `error: division by zero`."""
    try:
      return str(calculate(expression))
    except ValueError as error:
      return f"error: {error}"


@dataclasses.dataclass(frozen=True)
class State:
  """An episode about a word problem."""
  answer: int  # the right one
  expression: str  # whose value it is
  shown: str = ""  # the last value that the tool has shown; empty before


def facts(a: int, b: int, c: int, sign: str) -> str:
  """A problem as text, the same for a * b and b * a."""
  return f"{min(a, b)}*{max(a, b)}{sign}{c}"


@dataclasses.dataclass(frozen=True)
class WordProblems(Generated, Spoken):
  """Boxes of things, then more or fewer of them: a * b + c or a * b - c.

  One problem in five, by its numbers with the factors in sorted order, is for evaluation. Raises
  ValueError for `highest` out of range.
  """
  highest: int = 20  # of the three numbers, which begin at 2; at most 99
  # expressions -> what it shows for each, a number or an error
  tool: Callable[[Sequence[str]], list[str]] = Calculator()
  max_prompt: int = 24  # words
  max_observation: int = 16  # words
  __repr__ = stable_repr

  def __post_init__(self) -> None:
    if not 2 <= self.highest <= 99:
      raise ValueError(f"{self!r}: highest is 2 to 99")

  def words(self) -> tuple[str, ...]:
    """Every word of prompts, observations and actions; each digit is a word."""
    return (*PEOPLE, *BOXES, *THINGS, *"0123456789", *"+-*/%().,=>", "**", "//", "has", "of",
            "then", "gets", "loses", "more", "how", "many", "calc", "answer", "error")

  def draw(self, part: int, seed: int, index: int) -> Example:
    """A problem of the part, about people and things that do not matter."""
    rng = np.random.default_rng([seed, part, index, 74])

    def numbers() -> tuple[int, int, int, str]:
      a, b, c = (int(x) for x in rng.integers(2, self.highest + 1, 3))
      return a, b, c, "+" if rng.random() < 0.5 else "-"

    def wanted(numbers: tuple[int, int, int, str]) -> bool:
      a, b, c, sign = numbers
      return held_out(facts(a, b, c, sign), 5) == bool(part) and (sign == "+" or a * b >= c)

    a, b, c, sign = drawn(numbers, wanted, repr(self))
    who, box, thing = (str(rng.choice(names)) for names in (PEOPLE, BOXES, THINGS))
    change = f"gets {c} more" if sign == "+" else f"loses {c}"
    text = f"{who} has {a} {box} of {b} {thing} , then {change} . how many >"
    return Example(index, text, str(a * b + (c if sign == "+" else -c)), f"{a} * {b} {sign} {c}")

  def question(self, example: Example) -> str:
    """The numbers, with the factors in sorted order: what is held out."""
    a, _, b, sign, c = example.source.split()
    return facts(int(a), int(b), int(c), sign)

  def reset(self, example: Example) -> tuple[State, str]:
    """The problem."""
    return State(int(example.answer), example.source), example.prompt

  def step(self, state: State, text: str) -> Step:
    """`calc EXPRESSION`, or `answer NUMBER`, which ends the episode."""
    return self.steps([state], [text])[0]

  def steps(self, states: Sequence[State], texts: Sequence[str]) -> list[Step]:
    """`step` of every episode; the tool gets all expressions at once."""
    actions = [text.strip().partition(" ") for text in texts]
    calls = {at: rest for at, (verb, _, rest) in enumerate(actions) if verb == "calc"}
    shown = dict(zip(calls, self.tool(list(calls.values())), strict=True))
    return [self._step(state, verb, rest, shown.get(at, ""))
            for at, (state, (verb, _, rest)) in enumerate(zip(states, actions, strict=True))]

  def _step(self, state: State, verb: str, rest: str, shown: str) -> Step:
    """The result of an action; shown: what the tool shows for it, empty without a call."""
    if verb == "answer":
      number = re.fullmatch(r"-?\d{1,12}", rest.strip(), re.ASCII)
      right = number is not None and int(number[0]) == state.answer
      return state, "", float(right), True
    if not re.fullmatch(r"-?\d+([./]\d+)?", shown, re.ASCII):
      return state, "error >", 0.0, False
    return dataclasses.replace(state, shown=shown), f"= {shown} >", 0.0, False

  def expert(self, state: State, rng: np.random.Generator | None = None) -> str:
    """Calls the tool, then answers with what it shows."""
    del rng
    return f"answer {state.shown}" if state.shown else f"calc {state.expression}"
