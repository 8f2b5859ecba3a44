"""Word problems with a calculator at hand: `calc 12 * 7` is answered by `= 84 >`.

  ann has 12 boxes of 7 pens , then gets 9 more . how many >
  calc 12 * 7 + 9      = 93 >
  answer 93            ends the episode: reward 1 if it is right

The calculator reads Python's arithmetic (+ - * / // % ** and parentheses) out of its syntax tree,
in exact fractions, within bounds on length, depth and size; nothing is executed. With
`tool=tools.Python()` the expression is any Python, and runs confined.
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
from entrolab.tasks.task import Example, Lazy, Step, held_out, part_of

LONGEST = 100      # characters of an expression
LARGEST = 10**12   # absolute value of numerator and denominator of any result
POWER = 16         # largest exponent
PEOPLE = ("ann", "ben", "eva", "tom")
BOXES = ("bags", "boxes", "jars", "shelves")
THINGS = ("books", "coins", "nuts", "pens")

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow}


def calculate(text: str) -> Fraction:
  """The exact value of an arithmetic expression. Raises ValueError with the reason otherwise."""
  if len(text) > LONGEST:
    raise ValueError(f"over {LONGEST} characters")
  try:
    return _value(ast.parse(text.strip(), mode="eval").body)
  except (SyntaxError, RecursionError, MemoryError):
    raise ValueError("not an expression") from None
  except ZeroDivisionError:
    raise ValueError("division by zero") from None


def _value(node: ast.expr) -> Fraction:
  if isinstance(node, ast.Constant) and type(node.value) is int:
    value = Fraction(node.value)
  elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
    inside = _value(node.operand)
    value = -inside if isinstance(node.op, ast.USub) else inside
  elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Pow) and not (right.denominator == 1 and abs(right) <= POWER):
      raise ValueError(f"an exponent must be a whole number up to {POWER}")
    value = Fraction(OPERATORS[type(node.op)](left, right))
  else:
    raise ValueError("not arithmetic")
  if max(abs(value.numerator), value.denominator) > LARGEST:
    raise ValueError("too large")
  return value


@dataclasses.dataclass(frozen=True)
class Calculator:
  """`calculate` as a tool: expressions -> what it shows, `error: ` and why where it does not."""

  def __call__(self, expressions: Sequence[str]) -> list[str]:
    return [self.shown(expression) for expression in expressions]

  def shown(self, expression: str) -> str:
    """`3`, `3/2` or `error: division by zero`."""
    try:
      return str(calculate(expression))
    except ValueError as error:
      return f"error: {error}"


@dataclasses.dataclass(frozen=True)
class State:
  """The right answer, an expression for it, and the most recent result."""
  answer: int
  expression: str
  shown: str = ""


@dataclasses.dataclass(frozen=True)
class WordProblems(Spoken):
  """Boxes of things, then more or fewer of them; highest: of the two factors; tool: expressions ->
  what it shows of each, a number or an error.

  One problem in five, by its numbers, is for evaluation. Raises ValueError for a highest under 2.
  """
  highest: int = 20
  tool: Callable[[Sequence[str]], list[str]] = Calculator()
  max_prompt: int = 24
  max_observation: int = 16

  def __post_init__(self) -> None:
    if not 2 <= self.highest <= 99:
      raise ValueError(f"{self!r}: highest is 2 to 99")

  def words(self) -> tuple[str, ...]:
    """Every word that is said or understood here; digits are words of their own."""
    return (*PEOPLE, *BOXES, *THINGS, *"0123456789", *"+-*/%().,=>", "**", "//", "has", "of",
            "then", "gets", "loses", "more", "how", "many", "calc", "answer", "error")

  def examples(self, split: str, seed: int) -> Lazy:
    """A million problems for each (split, seed)."""
    part, name = part_of(split), f"{self!r}.examples({split!r}, {seed})"
    return Lazy(2**20, lambda i: self._make(part, seed, i), name)

  def _make(self, part: int, seed: int, index: int) -> Example:
    rng = np.random.default_rng([seed, part, index, 74])
    while True:
      a, b, c = (int(x) for x in rng.integers(2, self.highest + 1, 3))
      sign = "+" if rng.random() < 0.5 else "-"
      if held_out(f"{a}*{b}{sign}{c}", 5) == bool(part) and (sign == "+" or a * b >= c):
        break
    who, box, thing = (str(rng.choice(names)) for names in (PEOPLE, BOXES, THINGS))
    change = f"gets {c} more" if sign == "+" else f"loses {c}"
    text = f"{who} has {a} {box} of {b} {thing} , then {change} . how many >"
    return Example(index, text, str(a * b + (c if sign == "+" else -c)), f"{a} * {b} {sign} {c}")

  def reset(self, example: Example) -> tuple[State, str]:
    """The problem."""
    return State(int(example.answer), example.source), example.prompt

  def step(self, state: State, text: str) -> Step:
    """`calc EXPRESSION`, or `answer NUMBER`, which ends the episode."""
    return self.steps([state], [text])[0]

  def steps(self, states: Sequence[State], texts: Sequence[str]) -> list[Step]:
    """`step` of every episode; the tool gets all expressions at once."""
    said = [text.strip().partition(" ") for text in texts]
    asked = [at for at, (verb, _, _) in enumerate(said) if verb == "calc"]
    shown = dict(zip(asked, self.tool([said[at][2] for at in asked]), strict=True))
    return [self._answered(state, verb, rest, shown.get(at, ""))
            for at, (state, (verb, _, rest)) in enumerate(zip(states, said, strict=True))]

  def _answered(self, state: State, verb: str, rest: str, shown: str) -> Step:
    if verb == "answer":
      number = re.fullmatch(r"-?\d{1,12}", rest.strip(), re.ASCII)
      right = number is not None and int(number[0]) == state.answer
      return state, "", float(right), True
    if not re.fullmatch(r"-?\d+([./]\d+)?", shown, re.ASCII):
      return state, "error >", 0.0, False
    return dataclasses.replace(state, shown=shown), f"= {shown} >", 0.0, False

  def expert(self, state: State, rng: np.random.Generator | None = None) -> str:
    """Computes, then answers with the result."""
    del rng
    return f"answer {state.shown}" if state.shown else f"calc {state.expression}"
