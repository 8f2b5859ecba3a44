"""How often programs were compiled: those that draw tokens, after the first step of a run, never.

jax reports every compilation to `jax.monitoring`, by the name of the function. Counting these
events keeps the functions pure, and is closer to the truth than two other counts: a function is
traced once where another sharding of its arguments compiles it twice, and its `_cache_size` also
grows where the same program is called with arrays of numpy in place of those of jax.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # also where a stored program is loaded

Program = TypeVar("Program", bound=Callable[..., Any])

_programs: set[str] = set()
_compiled: Counter[str] = Counter()


def counted(program: Program) -> Program:
  """The jitted function itself; its compilations are part of `total` from now on."""
  _programs.add(f"jit({program.__name__})")
  return program


def of(program: Callable[..., Any]) -> int:
  """Compilations in this process of functions with the name of this jitted one."""
  return _compiled[f"jit({program.__name__})"]


def total() -> int:
  """Compilations in this process of functions with the names of those that are counted."""
  return sum(_compiled[name] for name in _programs)


def _count(event: str, duration_secs: float, **facts: str | int) -> None:
  del duration_secs
  if event == COMPILED:
    _compiled[str(facts["fun_name"])] += 1


jax.monitoring.register_event_duration_secs_listener(_count)
