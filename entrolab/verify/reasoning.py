"""reasoning-gym as a service of workers: its problems, and the scores of answers to them.

Problems are made by workers too, since the order of Python's sets, on which some of them depend,
is the same in every worker and in no two other processes.

Some of its scorers evaluate an answer as Python or by sympy. Of the child that does so nothing can
be believed once an answer has run code in it, so an answer is evaluated only where it is one
expression of numbers, operators and calls of functions by name, without attributes, without names
that begin with an underscore, and without Python's own functions other than those of arithmetic. A
child that has evaluated an answer serves no other one. A score that is not finite is no score.
"""

import ast
import builtins
import cmath
import copy
import math
import sys
import sysconfig
from typing import Any

from entrolab.verify.sandbox import values

PAID = 0.99  # the lowest score that is right
# What is right for no problem: a scorer that pays for one of them says nothing of an answer.
MEANINGLESS = ("?", "no answer at all")
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_NODES = (ast.Expression, ast.Expr, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator,
          ast.unaryop, ast.boolop, ast.cmpop, ast.Constant, ast.Name, ast.Load, ast.Call,
          ast.keyword, ast.List, ast.Tuple, ast.Set, ast.Dict)
_FUNCTIONS = {"abs", "bool", "complex", "dict", "divmod", "float", "frozenset", "int", "len",
              "list", "max", "min", "pow", "range", "round", "set", "sorted", "str", "sum", "tuple"}
_REFUSED = set(vars(builtins)) - _FUNCTIONS


class Refused(ValueError):
  """An answer that would run as code; scorers take it for an answer that cannot be read."""


class _Watch:
  """Whether an answer is being scored, and whether it was evaluated."""
  scoring = False
  evaluated = False


def _hook(event: str, args: tuple) -> None:
  """Checks what is compiled while an answer is scored. An audit hook cannot be taken away."""
  if event != "compile" or not _Watch.scoring:
    return
  caller = sys._getframe(1).f_code.co_filename
  if caller.startswith("<frozen") or (caller.startswith(_STANDARD_LIBRARY)
                                      and "-packages" not in caller):
    return  # a module that is imported late, a class that dataclasses write, ast.literal_eval
  _Watch.evaluated = True
  check_expression(args[0])


def check_expression(source: Any) -> None:
  """Raises Refused for what is more than numbers, operators and calls, SyntaxError for no Python.

  source: text, bytes or a syntax tree.
  """
  tree = source
  if not isinstance(source, ast.AST):
    text = source.decode(errors="replace") if isinstance(source, bytes) else str(source)
    if text.strip() == "from sympy import *":  # sympy's own, before it evaluates an expression
      return
    tree = ast.parse(text.strip(), mode="eval")
  for node in ast.walk(tree):
    if not isinstance(node, _NODES):
      raise Refused(f"{type(node).__name__} in an expression")
    if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
      raise Refused("a call of what is no name")
    if isinstance(node, ast.Name) and (node.id.startswith("_") or node.id in _REFUSED):
      raise Refused(f"the name {node.id[:40]}")


def finite(kind: Any) -> Any:
  """`float` or `complex` for scorers: raises ValueError for what is not finite in an answer.

  Comparisons with nan are false, and min(1, nan) is 1: some scorers take that for agreement. A
  number that is not finite passes where the code that asks for it spells it out.
  """
  class Kind(type):
    """Instances of `kind` count as instances."""

    def __instancecheck__(cls, value: Any) -> bool:
      return isinstance(value, kind)

  class Finite(kind, metaclass=Kind):
    """Makes a `kind`, never one of its own."""

    def __new__(cls, *args: Any, **named: Any) -> Any:
      value = kind(*args, **named)
      spelt = args and args[0] in sys._getframe(1).f_code.co_consts
      if _Watch.scoring and not spelt and not cmath.isfinite(value):
        raise ValueError(f"{value} is not finite")
      return value

  return Finite


def load() -> None:
  """Imports reasoning-gym and begins to watch. Raises ImportError without the library."""
  data("chain_sum", 1, 0, ())
  for name in [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]:
    vars(sys.modules[name]).update(float=finite(float), complex=finite(complex))
  sys.addaudithook(_hook)


def data(name: str, size: int, seed: int, options: tuple[tuple[str, Any], ...]) -> Any:
  """A data set of reasoning-gym. Raises ImportError without the library."""
  try:
    import reasoning_gym
  except ImportError as error:
    raise ImportError("reasoning-gym tasks need `pip install 'entrolab[tasks]'`") from error
  return reasoning_gym.create_dataset(name, size=size, seed=seed, **dict(options))


_data_sets: dict[str, Any] = {}  # the last one, by its context without the index


def prepare(context: list) -> tuple[Any, Any]:
  """(data set, problem) of [name, size, seed, options as `values.plain`, index of the problem].

  Without an index, where problems are asked for, there is no problem.
  """
  name, size, seed, options, index = context
  key = repr(context[:-1])
  if key not in _data_sets:
    _data_sets.clear()
    _data_sets[key] = data(name, size, seed, values.rebuilt(options))
  return _data_sets[key], None if index is None else _data_sets[key][index]


def work(prepared: tuple[Any, Any], what: Any, reference: str = "") -> tuple[list[str], bool]:
  """([question, answer] of the problem `what`, False) where problems are asked for, else
  ([status, reason], whether the answer was evaluated) of the answer `what`.

  reference: the answer that the problem had when it was asked.
  """
  scored, problem = prepared
  if problem is not None and str(problem["answer"]) != reference:
    return ["unknown", "the generator made another problem this time"], False
  if problem is None:
    made = scored[what]
    return [made["question"], str(made["answer"])], False
  _Watch.evaluated, _Watch.scoring = False, True
  try:
    # a copy, since a scorer may change the problem that it is given
    score = float(scored.score_answer(what, copy.deepcopy(problem)))
  except (MemoryError, RecursionError):
    raise  # not decided
  except Exception as error:  # the library has a hundred scorers, which fail in many ways
    return ["wrong", f"the scorer raised {type(error).__name__}"[:200]], _Watch.evaluated
  finally:
    _Watch.scoring = False
  if not math.isfinite(score):
    return ["unknown", f"the score {score} is not finite"], _Watch.evaluated
  if score >= PAID and what.strip() != reference.strip() and _pays_anything(scored, problem):
    return ["unknown", "the scorer pays meaningless text for this problem"], _Watch.evaluated
  return ["right" if score >= PAID else "wrong", f"score {score:.2f}"], _Watch.evaluated


def _pays_anything(scored: Any, problem: Any) -> bool:
  """Whether the scorer pays for meaningless text, as some do where the reference is empty."""
  for text in MEANINGLESS:
    try:
      if float(scored.score_answer(text, copy.deepcopy(problem))) >= PAID:
        return True
    except (MemoryError, RecursionError):
      raise
    except Exception:  # a scorer that cannot read it does not pay for it
      continue
  return False
