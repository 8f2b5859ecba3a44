"""Two strategies one after the other: CURE branches first and samples plainly afterwards."""

import dataclasses
from typing import Any

from entrolab.rollout.plain import Request, Rollout


@dataclasses.dataclass(frozen=True)
class Switch:
  """`first` for steps 0 to at - 1, `then` afterwards.

  The train step compiles once where both fill columns of equal shapes: CURE's second stage is
  `Cure(originals=G, branches=0)`, whose responses are those of `Plain`. Raises ValueError when
  the two have other columns or engines.
  """
  first: Any
  then: Any
  at: int

  def __post_init__(self) -> None:
    for name in ("columns", "engine"):
      one, other = getattr(self.first, name), getattr(self.then, name)
      if one != other:
        raise ValueError(f"Switch: {name} of {type(self.first).__name__} are {one}, those of "
                         f"{type(self.then).__name__} are {other}")
    if self.at < 0:
      raise ValueError(f"Switch(at={self.at}): a step, 0 or more")

  @property
  def engine(self) -> Any:
    """What samples, in training and in evaluation."""
    return self.first.engine

  @property
  def columns(self) -> tuple[str, ...]:
    """The columns that both fill."""
    return self.first.columns

  def __call__(self, sampler: Any, ask: Request) -> Rollout:
    """The verified rows of one step."""
    return (self.first if ask.step < self.at else self.then)(sampler, ask)
