"""Experiments from files: `path.py:knob=value,...`, `--set path=value`, and their identity."""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from entrolab.experiment import Experiment
from entrolab.objective import Term
from entrolab.typing import name_of

# leaves that change what is kept or looked at, not what is computed from what
NEUTRAL = ("name", "saving.", "evaluation.", "mesh.")


def _near(name: str, choices) -> str:
  close = difflib.get_close_matches(name, list(choices), n=1)
  hint = f"did you mean {close[0]!r}? " if close else ""
  return f"{hint}choices: {', '.join(choices)}"


def parse(text: str, like: Any, where: str) -> Any:
  """Text as the type of `like`. Raises ValueError that names the place, the value and the type."""
  kind = type(like)
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
  """The experiment of `path.py[:knob=value,...]`, knobs checked against `get_config`, then
  `path=value` overrides. Raises FileNotFoundError, TypeError or ValueError with the choices."""
  name, _, knobs = text.partition(":")
  path = pathlib.Path(name)
  if not path.is_file():
    there = sorted(str(p) for p in pathlib.Path("experiments").glob("*.py"))
    raise FileNotFoundError(f"--config={name}: no such file; {_near(name, there)}")
  spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
  assert spec is not None and spec.loader is not None, path
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise TypeError(f"{path}: defines no get_config(*, ...) -> Experiment")
  known = {n: p.default for n, p in inspect.signature(module.get_config).parameters.items()}
  given = {}
  for entry in filter(None, knobs.split(",")):
    knob, _, value = entry.partition("=")
    if knob not in known:
      raise ValueError(f"{path}: unknown knob {knob!r}; {_near(knob, known)}")
    given[knob] = parse(value, known[knob], f"{path}:{knob}")
  experiment = module.get_config(**given)
  changes: dict[str, str] = {}
  for entry in overrides:
    leaf, sign, value = entry.partition("=")
    if not sign:
      raise ValueError(f"--set {entry!r}: write path=value, such as training.lr=1e-5")
    changes[leaf] = value  # of two for one leaf, the last
  return set_paths(experiment, changes) if changes else experiment


def set_paths(node: Any, changes: Mapping[str, str], where: str = "") -> Any:
  """A copy of a nested frozen dataclass with some leaves parsed and replaced, all at once, so that
  their order does not matter to what must fit together."""
  names = [f.name for f in dataclasses.fields(node)]
  inner: dict[str, dict[str, str]] = {}
  new = {}
  for leaf, text in changes.items():
    head, _, rest = leaf.partition(".")
    place = f"{where}.{head}" if where else head
    if head not in names:
      raise ValueError(f"--set {place}: no such name; {_near(head, names)}")
    current = getattr(node, head)
    if rest:
      if not dataclasses.is_dataclass(current):
        raise ValueError(f"--set {place}.{rest}: {place} is {current!r}, which has no parts")
      inner.setdefault(head, {})[rest] = text
    elif dataclasses.is_dataclass(current):
      parts = [f"{place}.{f.name}" for f in dataclasses.fields(current)]
      raise ValueError(f"--set {place}: has parts; choices: {', '.join(parts)}")
    else:
      new[head] = parse(text, current, f"--set {place}")
  new |= {head: set_paths(getattr(node, head), own, f"{where}.{head}" if where else head)
          for head, own in inner.items()}
  return dataclasses.replace(node, **new)


def to_dict(value: Any) -> Any:
  """Plain data: terms as the line you would write, functions by name, dataclasses by field.

  A function is known as `typing.name_of` it, by its file and not by the folders above: an identity
  that a checkpoint holds must not change when a folder is renamed.
  """
  if isinstance(value, Term):
    return repr(value)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {"kind": type(value).__name__, **fields}
  if isinstance(value, tuple | list):
    return [to_dict(v) for v in value]
  if callable(value):
    return name_of(value)
  return value


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Every leaf by its path."""
  pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
  flat = {}
  for name, value in pairs:
    path = f"{prefix}{name}"
    flat |= leaves(value, f"{path}.") if isinstance(value, dict | list) else {path: value}
  return flat


def mathematics(experiment: Experiment) -> dict[str, Any]:
  """The leaves that decide the numbers of a run; its length only where the schedule reads it."""
  flat = leaves(to_dict(experiment))
  free = NEUTRAL + (("training.steps",) if experiment.training.schedule == "constant" else ())
  return {name: value for name, value in flat.items() if not name.startswith(free)}


def config_hash(experiment: Experiment) -> str:
  """Sixteen hexadecimal digits of everything that decides the numbers of a run."""
  text = json.dumps(mathematics(experiment), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """`path: old -> new` for every leaf that differs."""
  missing = "(absent)"
  return [f"{name}: {old.get(name, missing)!r} -> {new.get(name, missing)!r}"
          for name in sorted({*old, *new}) if old.get(name, missing) != new.get(name, missing)]
