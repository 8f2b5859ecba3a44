"""G independent responses to every prompt, verified."""

import dataclasses
from collections.abc import Mapping

from entrolab.rollout.engine import Engine, SingleTurn
from entrolab.rollout.strategy import Drawn, Feature, Request, Rollout


@dataclasses.dataclass(frozen=True)
class Plain(SingleTurn):
  """G independent responses to every prompt; the only rows that may be drawn a step ahead."""

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Nothing: it draws without the verdicts of the step before."""
    return {}

  def dispatch(self, engine: Engine, request: Request) -> Drawn:
    """The rows of one step, not verified, for a request without refills."""
    return engine.drawn(request.params, request.next_prompts(), request.key, request.step,
                        request.sampling)

  def __call__(self, engine: Engine, request: Request) -> Rollout:
    """The verified rows of one step, groups replaced where the request allows it."""
    return engine.answer(request)
