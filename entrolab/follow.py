"""Numbers of terms, controllers and strategies that repeat a number of the experiment.

The rule: a length, a group size or a number of updates is written once, in the experiment; whoever
repeats it says `MAX_TOKENS` and the like, and gets the experiment's number whenever one is built,
from a recipe as well as by `--set` or `dataclasses.replace`. A number that is written out and
differs from the experiment's stops the run (`Experiment`).

    term(aggregate.fixed_length, length=MAX_TOKENS)
    Curriculum(updates=UPDATES.fill(base))  # what computes when it is made starts from a preset
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn


@dataclasses.dataclass(frozen=True, repr=False)
class Number:
  """A number that an experiment fills in. Raises ValueError where it is used before."""
  name: str  # of the number, as errors and --explain print it: `sampling.max_tokens`
  # the number of an experiment; two of one name are equal
  of: Callable[[Any], int | float] = dataclasses.field(compare=False)

  def __repr__(self) -> str:
    return self.name

  def fill(self, experiment: Any) -> Any:
    """The number of an experiment or a preset, which follows this one into the next experiment."""
    value = self.of(experiment)
    made = _Real(value) if isinstance(value, float) else _Whole(value)
    made.number = self
    return made

  def _unfilled(self, *_: Any) -> NoReturn:
    raise ValueError(f"{self.name}: a number of an experiment, and no experiment has filled it in; "
                     "build an Experiment, or write the number itself, such as length=1024")

  # whatever a function does with a number asks for one of these
  __bool__ = __int__ = __index__ = __float__ = __array__ = _unfilled
  __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __abs__ = _unfilled
  __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _unfilled
  __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _unfilled
  __mod__ = __rmod__ = __pow__ = __rpow__ = _unfilled


class _Whole(int):
  """An integer like any other, but for what it follows into the next experiment."""
  number: Number


class _Real(float):
  """The same for a float."""
  number: Number


def filled(node: Any, experiment: Any) -> Any:
  """A copy of nested dataclasses and tuples in which every `Number`, and every number that an
  earlier experiment has filled in, is that of `experiment`."""
  if isinstance(node, Number):
    return node.fill(experiment)
  if isinstance(node, _Whole | _Real):
    return node.number.fill(experiment)
  if type(node) is tuple:
    return tuple(filled(item, experiment) for item in node)
  if not dataclasses.is_dataclass(node) or isinstance(node, type):
    return node
  changed = {}
  for field in dataclasses.fields(node):
    value = getattr(node, field.name)
    new = filled(value, experiment)
    if type(new) is not type(value) or new != value:
      changed[field.name] = new
  return dataclasses.replace(node, **changed) if changed else node


SAMPLES = Number("sampling.samples", lambda e: e.sampling.samples)
MAX_TOKENS = Number("sampling.max_tokens", lambda e: e.sampling.max_tokens)
UPDATES = Number("training.updates", lambda e: e.training.updates)
ALL_UPDATES = Number("training.steps * training.updates",
                     lambda e: e.training.steps * e.training.updates)
ROWS = Number("sampling.prompts * sampling.samples // training.updates",
              lambda e: e.sampling.prompts * e.sampling.samples // e.training.updates)
TURNS = Number("rollout.turns", lambda e: e.rollout.turns)
# the last fifth of the longest response, on which DAPO's penalty falls: 4096 tokens of 20480
BUFFER = Number("max(sampling.max_tokens // 5, 1)", lambda e: max(e.sampling.max_tokens // 5, 1))
