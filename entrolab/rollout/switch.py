"""Two strategies one after the other: CURE branches first and samples plainly afterwards."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from entrolab.rollout.strategy import Drawn, Feature, Request, Rollout, Strategy


@dataclasses.dataclass(frozen=True)
class Switch(Strategy):
  """`first` for steps 0 to at - 1, `then` afterwards.

  The train step compiles once where both fill columns of equal shapes: CURE's second stage is
  `Cure(originals=G, branches=0)`, whose responses are those of `Plain`. Raises ValueError when
  the two have other columns or engines, or batches of other sizes.
  """
  first: Strategy  # until step `at`
  then: Strategy  # from step `at` on
  at: int  # the first step of `then`

  def __post_init__(self) -> None:
    self._same("columns", self.first.columns, self.then.columns)
    self._same("engine", self.first.engine, self.then.engine)
    if self.at < 0:
      raise ValueError(f"Switch(at={self.at}): a step, 0 or more")

  @property
  def engine(self) -> Callable[..., Any]:
    """What samples and verifies, of both."""
    return self.first.engine

  @property
  def columns(self) -> tuple[str, ...]:
    """The columns that both fill."""
    return self.first.columns

  @property
  def samples(self) -> int:
    """Rows of a group, of both."""
    return self._same("samples", self.first.samples, self.then.samples)

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """What one of the two does not support."""
    return {**self.then.unsupported, **self.first.unsupported}

  def further_rows(self, samples: int, updates: int, micro: int) -> int:
    """Rows of `Rollout.replay` in every update, of both."""
    return self._same("further rows", self.first.further_rows(samples, updates, micro),
                      self.then.further_rows(samples, updates, micro))

  def groups(self, prompts: int) -> int:
    """Groups in the batch of a step of `prompts` prompts, of both."""
    return self._same("groups", self.first.groups(prompts), self.then.groups(prompts))

  def positions(self, prompt: int, response: int) -> int:
    """Positions of a row at most, of the longer of both."""
    return max(self.first.positions(prompt, response), self.then.positions(prompt, response))

  def dispatch(self, engine: Any, request: Request) -> Drawn:
    """The rows of one step, not verified."""
    return self._at(request.step).dispatch(engine, request)

  def __call__(self, engine: Any, request: Request) -> Rollout:
    """The verified rows of one step."""
    return self._at(request.step)(engine, request)

  def _at(self, step: int) -> Strategy:
    return self.first if step < self.at else self.then

  def _same(self, name: str, first: Any, then: Any) -> Any:
    """What both have. Raises ValueError where they differ."""
    if first != then:
      raise ValueError(f"Switch: {name} of {type(self.first).__name__} are {first}, those of "
                       f"{type(self.then).__name__} are {then}")
    return first
