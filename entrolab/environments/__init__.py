"""Environments of episodes of several turns: pure functions on the host.

Their interface is `tasks.task.Environment`. This file has what environments share: prompts and
verdicts of those whose observations are texts, episodes about a single-answer task, and `play`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from entrolab.tasks.task import Environment, Example, Lazy, Step, Task, Tokenizer, opened
from entrolab.verify import Verdict

SUCCESS = 1.0  # an episode is right if the sum of its rewards is at least this
BETWEEN = "\x1e"  # the record separator: joins the actions of an episode into a text


def judge(total: float, turns: int, ending: str) -> Verdict:
  """The verdict on an episode; unknown where a reward is not finite, which is no reward.

  total: the sum of its rewards, NaN where one of them is not known; turns: the number of its
  actions; ending: how it ended, in words.
  """
  if not math.isfinite(total):
    return Verdict("unknown", f"reward {total:g}, which is not known, in {turns} turns: {ending}")
  status = "right" if total >= SUCCESS else "wrong"
  return Verdict(status, f"reward {total:g} in {turns} turns: {ending}")


def reward_of(verdict: Verdict) -> float:
  """1 for right, 0 for wrong, NaN for unknown, which makes the episode unknown (`judge`)."""
  return {"right": SUCCESS, "wrong": 0.0, "unknown": math.nan}[verdict.status]


class Spoken(Environment, Protocol):
  """What environments of texts share: prompts, and verdicts by replaying the actions."""

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the opening text."""
    return opened(tokenizer, tokenizer.encode(self.reset(example)[1]))

  def key(self, text: str) -> str | None:
    """All actions: what a vote compares."""
    return text or None

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """By replaying the actions of every episode."""
    return [self.replay(text, example) for text, example in zip(texts, examples, strict=True)]

  def replay(self, text: str, example: Example) -> Verdict:
    """The verdict on the actions of an episode; actions after its end are ignored."""
    state, _ = self.reset(example)
    total, turns, done = 0.0, 0, False
    for action in text.split(BETWEEN):
      if done:
        break
      state, _, reward, done = self.step(state, action)
      total += reward
      turns += 1
    return judge(total, turns, "done" if done else "not done")


class OfTask(Environment, Protocol):
  """What episodes about a single-answer task take from it; they define `reset` and `steps`."""
  task: Task  # the single-answer task

  def identity(self) -> str:
    """That of the task."""
    return self.task.identity()

  @property
  def max_prompt(self) -> int:
    """That of the task."""
    return self.task.max_prompt

  @property
  def stop(self) -> tuple[str, ...]:
    """That of the task."""
    return self.task.stop

  def examples(self, split: str, seed: int) -> Lazy:
    """That of the task."""
    return self.task.examples(split, seed)

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """That of the task."""
    return self.task.prompt(example, tokenizer)

  def question(self, example: Example) -> str:
    """That of the task."""
    return self.task.question(example)

  def key(self, text: str) -> str | None:
    """All texts: what a vote compares."""
    return text or None

  def step(self, state: Any, text: str) -> Step:
    """`steps` of a single episode."""
    return self.steps([state], [text])[0]

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """The task's verdict on the last text of each episode."""
    return self.task.verify([text.split(BETWEEN)[-1] for text in texts], examples)


def play(environment: Environment, example: Example, act: Callable[[Any], str], turns: int
         ) -> tuple[list[tuple[str, bool]], float, bool]:
  """Plays an episode: ([(text, whether it is an action)], sum of rewards, done).

  act: state -> action; turns: at most so many actions. The last observation is left out, since no
  action follows it.
  """
  state, text = environment.reset(example)
  pieces = [(text, False)]
  total, done = 0.0, False
  for turn in range(turns):
    action = act(state)
    state, observation, reward, done = environment.step(state, action)
    pieces.append((action, True))
    total += reward
    if done:
      break
    if turn < turns - 1:
      pieces.append((observation, False))
  return pieces, total, done
