"""Environments with gymnasium's interface, as a service of workers.

A job is a turn or a whole episode. The child keeps the environments of episodes that go on, by seed
and actions; it makes one again from them where an earlier turn is taken once more, or where it is
another child than the one that took it. So an environment must be deterministic in its seed and its
actions.
"""

import importlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

KEPT = 256  # environments of a child at most
Key = tuple[int, tuple[str, ...]]  # seed, actions
_live: dict[Key, Any] = {}


def reference(function: Callable[..., Any]) -> list[str]:
  """[module, file, qualified name] by which a worker finds a function or class.

  Raises ValueError for one that it cannot find: a lambda, a local function or an object.
  """
  if not isinstance(function, type | types.FunctionType | types.BuiltinFunctionType):
    raise ValueError(f"{function!r}: workers need a function or class by its name, no object")
  name = function.__qualname__
  if "<" in name:
    raise ValueError(f"{name}: workers import it by its name, so it must stand at the top level of "
                     "its file")
  file = vars(sys.modules[function.__module__]).get("__file__") or ""
  return [function.__module__, file, name]


def found(module: str, file: str, name: str) -> Any:
  """The function or class of a reference; a module that has no importable name is read from its
  file, as a recipe is."""
  try:
    holder: Any = importlib.import_module(module if module != "__main__" else "")
  except (ImportError, ValueError):
    if not file:
      raise
    stem = f"read_{pathlib.Path(file).stem}"
    spec = importlib.util.spec_from_file_location(stem, file)
    assert spec and spec.loader
    holder = sys.modules[stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(holder)
  for part in name.split("."):
    holder = vars(holder)[part]
  return holder


def load() -> None:
  """Needs nothing but what an environment imports."""


def prepare(context: Sequence[Sequence[str]]) -> tuple[Any, ...]:
  """(make, act, show) of three references. Raises ImportError or KeyError."""
  return tuple(found(*each) for each in context)


def work(prepared: tuple[Any, ...], what: str, seed: int, actions: Sequence[str]
         ) -> tuple[list, bool]:
  """reset: [observation]; step: [read, observation, reward, done] of the last action;
  play: [sum of rewards, turns, done] of a whole episode. Never spends the child."""
  make, act, show = prepared
  if what == "reset":
    environment, observation = _reset(make, seed)
    _keep((seed, ()), environment)
    return [show(observation)], False
  if what == "step":
    return _step(make, act, show, seed, actions), False
  environment, _ = _reset(make, seed)
  total, turns, done = 0.0, 0, False
  for text in actions:
    if done:
      break
    turns += 1
    try:
      action = act(text)
    except ValueError:
      continue
    _, reward, done = _stepped(environment, action)
    total += reward
  return [total, turns, done], False


def _step(make: Any, act: Any, show: Any, seed: int, actions: Sequence[str]) -> list:
  """A turn of the environment that has taken the earlier actions, or of one made again."""
  *earlier, text = actions
  try:
    action = act(text)
  except ValueError:
    return [False, "", 0.0, False]
  environment = _live.pop((seed, tuple(earlier)), None)
  if environment is None:
    environment, _ = _reset(make, seed)
    for before in earlier:
      _stepped(environment, act(before))
  observation, reward, done = _stepped(environment, action)
  _keep((seed, tuple(actions)), environment)
  return [True, show(observation), reward, done]


def _keep(key: Key, environment: Any) -> None:
  while len(_live) >= KEPT:
    del _live[next(iter(_live))]
  _live[key] = environment


def _reset(make: Any, seed: int) -> tuple[Any, Any]:
  """(a new environment, its first observation)."""
  environment = make()
  return environment, environment.reset(seed=seed)[0]


def _stepped(environment: Any, action: Any) -> tuple[Any, float, bool]:
  """(observation, reward, done) of a turn."""
  observation, reward, terminated, truncated, _ = environment.step(action)
  return observation, float(reward), bool(terminated or truncated)
