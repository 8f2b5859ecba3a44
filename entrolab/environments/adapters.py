"""Adapters to episodes: gymnasium's interface, and several attempts at a single-answer task.

`Gym` takes anything with gymnasium's `reset` and `step`, and runs it in a worker; gymnasium is not
imported here. `Attempts` makes an environment of a single-answer task, such as
`tasks.gym.ReasoningGym`: after a wrong answer the observation is a request to try again.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from entrolab.environments import BETWEEN, OfTask, Spoken, judge, reward_of
from entrolab.tasks.task import Example, Lazy, Step, Task, part_of
from entrolab.typing import name_of
from entrolab.verify import Verdict
from entrolab.verify.workers import gymnasium, pool

SECONDS = 10.0  # in which an environment must have taken an action, or a whole episode again

SEEDS = 2**31  # seeds of a reset are below it


@dataclasses.dataclass(frozen=True)
class GymState:
  """Where an episode is, as a value: the environment can be made again from it."""
  seed: int  # of the reset
  actions: tuple[str, ...] = ()  # since the reset
  lost: str = ""  # why the last action has no result; empty when it has


@dataclasses.dataclass(frozen=True)
class Gym(Spoken):
  """An environment with gymnasium's interface.

  It has `reset(seed=) -> (observation, info)` and
  `step(action) -> (observation, reward, terminated, truncated, info)`, and must be deterministic in
  its seed and actions: it is made again where an earlier state is stepped again. It runs in a
  confined worker, as do `act` and `show`, so that all three must stand at the top level of a file;
  an action that hangs or kills it leaves its episode unknown. Raises ValueError for a function that
  a worker cannot import.
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
    self._context()

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
    """Resets a new environment with the example's seed. Raises RuntimeError where it fails, which
    no policy causes."""
    seed = _seed(example)
    result, = self._ask([("reset", seed, ())])
    if result.lost:
      raise RuntimeError(f"{self!r}: reset(seed={seed}): {result.lost}")
    return GymState(seed), str(result.value[0])

  def step(self, state: GymState, text: str) -> Step:
    """`steps` of a single episode."""
    return self.steps([state], [text])[0]

  def steps(self, states: Sequence[GymState], texts: Sequence[str]) -> list[Step]:
    """An action of each episode; the reward of one without a result is nan, and ends it."""
    asked = [("step", state.seed, (*state.actions, text))
             for state, text in zip(states, texts, strict=True)]
    steps: list[Step] = []
    for state, text, result in zip(states, texts, self._ask(asked), strict=True):
      if result.lost:
        steps.append((dataclasses.replace(state, lost=result.lost), "", math.nan, True))
        continue
      read, observation, reward, done = result.value
      if read:
        state = GymState(state.seed, (*state.actions, text))
      steps.append((state, observation if read else self.unread, reward, done))
    return steps

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """By playing every episode again."""
    asked = [("play", _seed(example), text.split(BETWEEN))
             for text, example in zip(texts, examples, strict=True)]
    verdicts = []
    for result in self._ask(asked):
      if result.lost:
        verdicts.append(Verdict("unknown", f"the environment: {result.lost}"))
        continue
      total, turns, done = result.value
      verdicts.append(judge(total, turns, "done" if done else "not done"))
    return verdicts

  def _context(self) -> list[list[str]]:
    """What `gymnasium.prepare` finds the functions by."""
    return [gymnasium.reference(function) for function in (self.make, self.act, self.show)]

  def _ask(self, jobs: Sequence[tuple]) -> list[pool.Result]:
    """The results of jobs of `gymnasium.work`."""
    context = self._context()
    return workers().run([pool.Job(context, job) for job in jobs], seconds=SECONDS)


def workers() -> pool.Pool:
  """The worker of this process: a single one, whose child has the environments that live."""
  return pool.shared("entrolab.verify.workers.gymnasium", size=1, batch_seconds=3600.0,
                     grace=120.0, memory=4 << 30)


def _seed(example: Example) -> int:
  """That of the reset, which the example's source names."""
  return int(example.source.split("/")[1]) % 2**31


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
      state = dataclasses.replace(state, made=state.made + 1)
      done = verdict.status != "wrong" or state.made == self.tries
      results.append((state, self.again, reward_of(verdict), done))
    return results
