"""Experiments from files: `path.py:knob=value,...`, `--set path=value`, configuration hashes."""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from entrolab.experiment import Experiment
from entrolab.objective import Term
from entrolab.strengths import TABLE
from entrolab.typing import name_of

# Prefixes of leaves that change what is saved, measured or placed where, not what is computed.
NEUTRAL = ("name", "saving.", "evaluation.", "mesh.", "taken.", "ledger.")


def _suggestion(name: str, choices: Iterable[str]) -> str:
  """The choices, and the closest one if there is any."""
  close = difflib.get_close_matches(name, list(choices), n=1)
  hint = f"did you mean {close[0]!r}? " if close else ""
  return f"{hint}choices: {', '.join(choices)}"


def parse(text: str, like: Any, where: str) -> Any:
  """The value of a text, of the type of `like`.

  where: the place that the error names. Raises ValueError for a text of another type.
  """
  # a number that follows the experiment is a subclass of its type
  kind = next((k for k in (bool, str, int, float, tuple) if isinstance(like, k)), type(like))
  try:
    if kind is bool:
      return {"true": True, "false": False}[text.lower()]
    if kind is str:
      return text
    if kind in (int, float):
      return kind(text)
    value = ast.literal_eval(text)
    return tuple(value) if kind is tuple and isinstance(value, list | tuple) else value
  except (KeyError, ValueError, SyntaxError):
    raise ValueError(f"{where}={text!r}: needs a value like {like!r} ({kind.__name__})") from None


def load(text: str, overrides: tuple[str, ...] = ()) -> Experiment:
  """The experiment that `get_config` of a file returns.

  text: `path.py[:knob=value,...]`, with the keyword arguments of `get_config` as knobs.
  overrides: `path=value`, of leaves of the experiment. Raises FileNotFoundError, TypeError or
  ValueError with the choices.
  """
  name, _, knobs = text.partition(":")
  path = pathlib.Path(name)
  if not path.is_file():
    recipes = sorted(str(recipe) for recipe in pathlib.Path("experiments").glob("*.py"))
    raise FileNotFoundError(f"--config={name}: no such file; {_suggestion(name, recipes)}")
  spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
  assert spec is not None and spec.loader is not None, path
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if "get_config" not in vars(module):
    raise TypeError(f"{path}: defines no get_config(*, ...) -> Experiment")
  parameters = inspect.signature(module.get_config).parameters
  defaults = {knob: parameter.default for knob, parameter in parameters.items()}
  arguments = {}
  for entry in filter(None, knobs.split(",")):
    knob, _, value = entry.partition("=")
    if knob not in defaults:
      raise ValueError(f"{path}: unknown knob {knob!r}; {_suggestion(knob, defaults)}")
    arguments[knob] = parse(value, _like(path.stem, knob, defaults[knob]), f"{path}:{knob}")
    choices = _choices(parameters[knob].annotation)
    if choices and arguments[knob] not in choices:
      raise ValueError(f"{path}:{knob}={value!r}; {_suggestion(value, choices)}")
  experiment = module.get_config(**arguments)
  changes: dict[str, str] = {}
  for entry in overrides:
    leaf, sign, value = entry.partition("=")
    if not sign:
      raise ValueError(f"--set {entry!r}: write path=value, such as training.lr=1e-5")
    changes[leaf] = value  # the last of several for the same leaf
  return set_paths(experiment, changes) if changes else experiment


def _choices(kind: Any) -> tuple[str, ...]:
  """The words of a `Literal`, also of `Literal[...] | None`; none for another type."""
  literal = next((k for k in (kind, *get_args(kind)) if get_origin(k) is Literal), None)
  return get_args(literal)


def _like(recipe: str, knob: str, default: Any) -> Any:
  """A value of the type of a knob: no annotation has to be read.

  That is its default or, where the preset has the value, the one that was tuned. Raises TypeError
  where there is neither.
  """
  if default is not None:
    return default
  if knob not in TABLE.get(recipe, {}):
    raise TypeError(f"knob {knob!r} of {recipe} is None by default, and strengths.TABLE has none "
                    "of that name, so that nothing says its type")
  return TABLE[recipe][knob].tuned


def set_paths(node: Any, changes: Mapping[str, str], where: str = "") -> Any:
  """A copy of a nested frozen dataclass with some leaves parsed and replaced.

  All are replaced at the same time, so that two values that must agree with each other can be given
  in any order. where: the path of `node`, for errors. Raises ValueError for an unknown path.
  """
  names = [field.name for field in dataclasses.fields(node)]
  new: dict[str, Any] = {}  # leaves of this node
  inner: dict[str, dict[str, str]] = {}  # changes of the nodes below it
  for leaf, text in changes.items():
    head, _, rest = leaf.partition(".")
    place = f"{where}.{head}" if where else head
    if head not in names:
      raise ValueError(f"--set {place}: no such name; {_suggestion(head, names)}")
    current = getattr(node, head)
    if rest:
      if not dataclasses.is_dataclass(current):
        raise ValueError(f"--set {place}.{rest}: {place} is {current!r}, which has no parts")
      inner.setdefault(head, {})[rest] = text
    elif dataclasses.is_dataclass(current):
      parts = [f"{place}.{field.name}" for field in dataclasses.fields(current)]
      raise ValueError(f"--set {place}: has parts; choices: {', '.join(parts)}")
    else:
      new[head] = parse(text, current, f"--set {place}")
  for head, below in inner.items():
    new[head] = set_paths(getattr(node, head), below, f"{where}.{head}" if where else head)
  return dataclasses.replace(node, **new)


def to_dict(value: Any) -> Any:
  """Plain data: terms as the line of code that makes them, functions by name, dataclasses by field.

  A function appears as `typing.name_of` it, without the folders above its file: a hash that a
  checkpoint stores must not change when a folder is renamed.
  """
  if isinstance(value, Term):
    return repr(value)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {field.name: to_dict(getattr(value, field.name))
              for field in dataclasses.fields(value)}
    return {"kind": type(value).__name__, **fields}
  if isinstance(value, tuple | list):
    return [to_dict(item) for item in value]
  if callable(value):
    return name_of(value)
  return value


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Every leaf of nested dicts and lists by its path, such as `training.lr`."""
  pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
  flat = {}
  for name, value in pairs:
    path = f"{prefix}{name}"
    flat |= leaves(value, f"{path}.") if isinstance(value, dict | list) else {path: value}
  return flat


def mathematics(experiment: Experiment) -> dict[str, Any]:
  """The leaves that decide what a run computes."""
  neutral = NEUTRAL
  if experiment.training.schedule == "constant":
    neutral += ("training.steps",)  # only a schedule reads the length of the run
  flat = leaves(to_dict(experiment))
  return {name: value for name, value in flat.items() if not name.startswith(neutral)}


def config_hash(experiment: Experiment) -> str:
  """Sixteen hexadecimal digits of everything that decides what a run computes."""
  text = json.dumps(mathematics(experiment), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """`path: old -> new` for every leaf that differs."""
  missing = "(absent)"
  return [f"{name}: {old.get(name, missing)!r} -> {new.get(name, missing)!r}"
          for name in sorted({*old, *new}) if old.get(name, missing) != new.get(name, missing)]
