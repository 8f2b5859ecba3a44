"""Other people's environments and tasks as episodes: gymnasium's interface, and second attempts.

`Gym` takes any object with gymnasium's `reset` and `step`; nothing of gymnasium is imported.
`Attempts` makes an episode of a one-answer task, such as `tasks.gym.ReasoningGym`: a wrong answer
is answered by a request for another one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from entrolab.environments import OfTask, Spoken
from entrolab.tasks.task import Example, Lazy, Step, Task, part_of
from entrolab.typing import name_of


@dataclasses.dataclass(frozen=True)
class GymState:
  """A seed and the actions since reset; `live` is an environment that is exactly there, as long as
  nobody steps it further: `count` says how far it is."""
  seed: int
  actions: tuple[str, ...]
  live: Any = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class Gym(Spoken):
  """make() -> an environment with `reset(seed=) -> (observation, info)` and
  `step(action) -> (observation, reward, terminated, truncated, info)`.

  act: text -> action; it may raise ValueError for what it cannot read, which is answered by
  `unread` and takes no step. show: observation -> text. size: worlds a split. The environment must
  be deterministic in its seed and actions: a state that is stepped twice is replayed.
  """
  make: Callable[[], Any]
  act: Callable[[str], Any] = str
  show: Callable[[Any], str] = str
  size: int = 2**20
  max_prompt: int = 256
  max_observation: int = 128
  unread: str = "nothing happens"
  stop: tuple[str, ...] = ()

  def __repr__(self) -> str:
    make, act, show = map(name_of, (self.make, self.act, self.show))
    return f"Gym({make}, act={act}, show={show}, size={self.size})"

  def examples(self, split: str, seed: int) -> Lazy:
    """Worlds by the seeds of their resets, which splits do not share."""
    part = part_of(split)
    make = lambda i: Example(i, "", "", f"gym/{(2 * seed + part) * self.size + i}")
    return Lazy(self.size, make, f"{self!r}.examples({split!r}, {seed})")

  def reset(self, example: Example) -> tuple[GymState, str]:
    """A new environment, reset with the example's seed."""
    seed = int(example.source.split("/")[1]) % 2**31
    live = _Live(self.make())
    return GymState(seed, (), live), self.show(live.reset(seed))

  def step(self, state: GymState, text: str) -> Step:
    """One step of the live environment, or of a replayed one where it has moved on."""
    try:
      action = self.act(text)
    except ValueError:
      return state, self.unread, 0.0, False
    live = state.live
    if live.count != len(state.actions):
      live = _Live(self.make())
      live.reset(state.seed)
      for earlier in state.actions:
        live.step(self.act(earlier))
    observation, reward, done = live.step(action)
    state = GymState(state.seed, (*state.actions, text), live)
    return state, self.show(observation), reward, done


class _Live:
  """An environment that counts its steps."""

  def __init__(self, environment: Any):
    self.environment, self.count = environment, 0

  def reset(self, seed: int) -> Any:
    self.count = 0
    return self.environment.reset(seed=seed)[0]

  def step(self, action: Any) -> tuple[Any, float, bool]:
    observation, reward, terminated, truncated, _ = self.environment.step(action)
    self.count += 1
    return observation, float(reward), bool(terminated or truncated)


@dataclasses.dataclass(frozen=True)
class AttemptsState:
  """The example, and the attempts so far."""
  example: Example
  made: int = 0


@dataclasses.dataclass(frozen=True)
class Attempts(OfTask):
  """`tries` answers to each example of a task with one answer; the first right one ends the episode
  with reward 1, a wrong one is answered by `again`."""
  task: Task
  tries: int = 3
  again: str = "That is not right. Try again."
  max_observation: int = 32

  def reset(self, example: Example) -> tuple[AttemptsState, str]:
    """The question."""
    return AttemptsState(example), example.prompt

  def steps(self, states: Sequence[AttemptsState], texts: Sequence[str]) -> list[Step]:
    """One answer each, judged by the task."""
    done = []
    verdicts = self.task.verify(texts, [state.example for state in states])
    for state, verdict in zip(states, verdicts, strict=True):
      right, state = verdict.status == "right", dataclasses.replace(state, made=state.made + 1)
      done.append((state, self.again, float(right), right or state.made == self.tries))
    return done
