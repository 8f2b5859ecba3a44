"""A method with its hyper-parameters bound: what an objective and the strategies are made of."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from entrolab.arguments import missing
from entrolab.typing import Array, name_of, slot_of

Columns = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Term:
  """A method with its hyper-parameters bound; prints as the line you would write."""
  fn: Callable[..., Array]  # of columns by position, hyper-parameters by keyword
  knobs: tuple[tuple[str, Any], ...] = ()  # (name, value) of its hyper-parameters, by name

  @property
  def name(self) -> str:
    """module.function, as in metrics: `kl.k3`."""
    return name_of(self.fn)

  @property
  def reads(self) -> tuple[str, ...]:
    """The columns it takes: the positional parameters of the function."""
    return tuple(self._columns)

  @property
  def _columns(self) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(self.fn).parameters
    return {n: p for n, p in parameters.items() if p.kind in kinds}

  @property
  def values(self) -> dict[str, Any]:
    """Its hyper-parameters by name, those at their defaults included."""
    parameters = inspect.signature(self.fn).parameters.values()
    defaults = {p.name: p.default for p in parameters
                if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
    return defaults | dict(self.knobs)

  @property
  def slot(self) -> str | None:
    """The slot its return annotation names."""
    return slot_of(inspect.signature(self.fn).return_annotation)

  def __call__(self, columns: Columns) -> Array:
    # a column with a default, such as `known`, may be absent outside an `Objective`
    defaults = {n: p.default for n, p in self._columns.items() if p.default is not p.empty}
    columns = {**defaults, **columns}
    absent = [name for name in self.reads if name not in columns]
    if absent:
      raise TypeError(f"{missing(self.name, absent[0])}; filled: {', '.join(sorted(columns))}")
    return self.fn(*(columns[name] for name in self.reads), **dict(self.knobs))

  def __repr__(self) -> str:
    knobs = "".join(f", {name}={value!r}" for name, value in self.knobs)
    return f"term({self.name}{knobs})"


def term(fn: Callable[..., Array], **knobs: Any) -> Term:
  """Binds hyper-parameters to a method: positional parameters are columns, keywords are knobs.

  Raises TypeError for a knob that `fn` does not have, with the choices.
  """
  parameters = inspect.signature(fn).parameters.values()
  declared = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
  bound = Term(fn, tuple(sorted(knobs.items())))
  for name in knobs:
    if name not in declared:
      have = ", ".join(f"{k}={v!r}" for k, v in declared.items()) or "none"
      raise TypeError(f"{bound.name}(): unknown knob {name!r}; have: {have}")
  for name, default in declared.items():
    if default is inspect.Parameter.empty and name not in knobs:
      raise TypeError(f"{bound.name}(): knob {name!r} has no default; set it")
  hash(bound)  # raises for a list or an array: an objective is a static argument of jit
  return bound
