"""Episodes of several turns in an environment, independent of one another; see `episode`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entrolab.rollout.engine import Engine
from entrolab.rollout.episode import Episodes, Form
from entrolab.rollout.strategy import Feature, Request, Rollout, Strategy
from entrolab.tasks.task import Example, Task


@dataclasses.dataclass(frozen=True)
class MultiTurn(Strategy):
  """Samples G episodes of every prompt; sampling.max_tokens is the token budget of an episode,
  observations included.

  An action that `chunk` cuts goes on in the next call. Evaluation is on the examples as they are,
  whatever the level.
  """
  columns = ("phase", "returns")
  turns: int = 30  # actions of an episode at most
  action: int = 8  # tokens of an action at most
  chunk: int = 0  # tokens that a call of the decoder draws of a row at most; 0: a whole action
  frame: str = "{}"  # text around an observation, at `{}`, such as a chat turn
  level: str = ""  # the controlled value by which training examples are made easier (`task.eased`)

  @property
  def form(self) -> Form:
    """What all its episodes have in common."""
    return Form(turns=self.turns, action=self.action, chunk=self.chunk, frame=self.frame)

  @property
  def engine(self) -> Callable[..., Engine]:
    """What samples and verifies, in this form."""
    return functools.partial(Episodes, form=self.form)

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Also slots."""
    return {**super().unsupported, "slots": "an episode keeps its slot while its environment "
                                            "answers; set sampling.slots=0"}

  def __call__(self, engine: Engine, request: Request) -> Rollout:
    """The verified episodes of one step, eased where a level is controlled."""
    return engine.answer(self.with_eased(engine.task, request))

  def with_eased(self, task: Task, request: Request) -> Request:
    """The request, with prompts of the level that is controlled.

    Raises TypeError where no controller has the level.
    """
    def next_prompts() -> Sequence[Example]:
      examples = request.next_prompts()
      if not self.level:
        return examples
      if self.level not in request.control:
        raise TypeError(f"MultiTurn(level={self.level!r}), which no controller has; choices: "
                        f"{', '.join(request.control) or 'none'}")
      level: Any = request.control[self.level]
      return [task.eased(example, int(level)) for example in examples]

    return dataclasses.replace(request, next_prompts=next_prompts)
