"""Adapters to episodes: gymnasium's interface, and several attempts at a single-answer task.

`Gym` takes any object with gymnasium's `reset` and `step`; gymnasium is not imported. `Attempts`
makes an environment of a single-answer task, such as `tasks.gym.ReasoningGym`: after a wrong answer
the observation is a request to try again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from entrolab.environments import OfTask, Spoken, reward_of
from entrolab.tasks.task import Example, Lazy, Step, Task, part_of
from entrolab.typing import name_of

SEEDS = 2**31  # seeds of a reset are below it


@dataclasses.dataclass(frozen=True)
class GymState:
  """Where an episode is, as a value: the environment can be rebuilt from it."""
  seed: int  # of the reset
  actions: tuple[str, ...]  # since the reset
  # an environment in this state, unless a step from this state or a later one has moved it on:
  # `live.count` is the number of its steps
  live: "_Live" = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class Gym(Spoken):
  """An environment with gymnasium's interface.

  It has `reset(seed=) -> (observation, info)` and
  `step(action) -> (observation, reward, terminated, truncated, info)`, and must be deterministic in
  its seed and actions: it is rebuilt where an earlier state is stepped again.
  """
  make: Callable[[], Any]  # makes such an environment
  act: Callable[[str], Any] = str  # text -> action; raises ValueError for a text that is none
  show: Callable[[Any], str] = str  # observation -> text
  size: int = 2**20  # examples of a split
  max_prompt: int = 256  # tokens
  max_observation: int = 128  # tokens
  unread: str = "nothing happens"  # the observation after a text that is no action
  stop: tuple[str, ...] = ()  # strings that end an action

  def __repr__(self) -> str:
    make, act, show = map(name_of, (self.make, self.act, self.show))
    return f"Gym({make}, act={act}, show={show}, size={self.size})"

  def __post_init__(self) -> None:
    if not 1 <= self.size <= SEEDS // 2:
      raise ValueError(f"size={self.size}: 1 to {SEEDS // 2}")

  def examples(self, split: str, seed: int) -> Lazy:
    """Examples whose source names the seed of the reset.

    Evaluation has the first `size` seeds of SEEDS, whatever the seed of the run; training has
    others, which begin elsewhere with each seed of the run and do not reach those of evaluation.
    """
    if part_of(split):
      return Lazy(self.size, lambda i: Example(i, "", "", f"gym/{i}"),
                  f"{self!r}.examples({split!r})")
    place = lambda i: self.size + (seed * self.size + i) % (SEEDS - self.size)
    return Lazy(self.size, lambda i: Example(i, "", "", f"gym/{place(i)}"),
                f"{self!r}.examples({split!r}, {seed})")

  def question(self, example: Example) -> str:
    """The source, which names the seed of the reset."""
    return example.source

  def reset(self, example: Example) -> tuple[GymState, str]:
    """Resets a new environment with the example's seed."""
    seed = int(example.source.split("/")[1])
    live = _Live(self.make())
    return GymState(seed, (), live), self.show(live.reset(seed))

  def step(self, state: GymState, text: str) -> Step:
    """A step of the live environment, or of a rebuilt one if that has moved on."""
    try:
      action = self.act(text)
    except ValueError:
      return state, self.unread, 0.0, False
    live = state.live
    if live.count != len(state.actions):  # another step was made from this state before
      live = _Live(self.make())
      live.reset(state.seed)
      for earlier in state.actions:
        live.step(self.act(earlier))
    observation, reward, done = live.step(action)
    state = GymState(state.seed, (*state.actions, text), live)
    return state, self.show(observation), reward, done


class _Live:
  """A gymnasium environment that counts its steps."""

  def __init__(self, environment: Any):
    self.environment = environment
    self.count = 0

  def reset(self, seed: int) -> Any:
    """The first observation."""
    self.count = 0
    return self.environment.reset(seed=seed)[0]

  def step(self, action: Any) -> tuple[Any, float, bool]:
    """(observation, reward, done)."""
    observation, reward, terminated, truncated, _ = self.environment.step(action)
    self.count += 1
    return observation, float(reward), bool(terminated or truncated)


@dataclasses.dataclass(frozen=True)
class AttemptsState:
  """An episode of `Attempts`."""
  example: Example  # the question
  made: int = 0  # attempts so far


@dataclasses.dataclass(frozen=True)
class Attempts(OfTask):
  """Several attempts at each example of a single-answer task. A right answer ends the episode with
  reward 1, and one whose verdict is unknown with a reward that is not known (NaN)."""
  task: Task  # what is attempted
  tries: int = 3  # attempts at most
  again: str = "That is not right. Try again."  # the observation after a wrong answer
  max_observation: int = 32  # tokens

  def reset(self, example: Example) -> tuple[AttemptsState, str]:
    """The question."""
    return AttemptsState(example), example.prompt

  def steps(self, states: Sequence[AttemptsState], texts: Sequence[str]) -> list[Step]:
    """An answer to each example, with the task's verdict."""
    results = []
    verdicts = self.task.verify(texts, [state.example for state in states])
    for state, verdict in zip(states, verdicts, strict=True):
      wrong = verdict.status == "wrong"
      state = dataclasses.replace(state, made=state.made + 1)
      results.append((state, self.again, reward_of(verdict),
                      not wrong or state.made == self.tries))
    return results
