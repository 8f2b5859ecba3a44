"""Environments that an episode of several turns goes through: pure, on the host.

Their contract is `tasks.task.Environment`. Here is what environments share: prompts and verdicts of
those that speak in texts, episodes about a task with one answer, and playing one by hand.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from entrolab.tasks.task import Environment, Example, Lazy, Step, Task, Tokenizer
from entrolab.verify import Verdict

SUCCESS = 1.0  # the sum of rewards from which an episode is right
BETWEEN = "\x1e"  # the record separator, between the actions of an episode's text


def judge(total: float, turns: int, ending: str) -> Verdict:
  """The verdict of an episode: its rewards' sum, its actions, and how it ended."""
  status = "right" if total >= SUCCESS else "wrong"
  return Verdict(status, f"reward {total:g} in {turns} turns: {ending}")


class Spoken(Environment, Protocol):
  """What environments that speak in texts share: prompts, and verdicts by replaying actions."""

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the opening text."""
    return tokenizer.encode(self.reset(example)[1])

  def key(self, text: str) -> str | None:
    """What a vote compares: all actions."""
    return text or None

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """Replays the actions of every episode."""
    return [self.replay(text, example) for text, example in zip(texts, examples, strict=True)]

  def replay(self, text: str, example: Example) -> Verdict:
    """The verdict of one episode's actions; what follows its end is not taken."""
    state, total, done, turns = self.reset(example)[0], 0.0, False, 0
    for action in text.split(BETWEEN):
      if done:
        break
      state, _, reward, done = self.step(state, action)
      total, turns = total + reward, turns + 1
    return judge(total, turns, "done" if done else "not done")


class OfTask(Environment, Protocol):
  """What episodes about a task with one answer (`task`) take from it; they define `steps`."""
  task: Task

  @property
  def max_prompt(self) -> int:
    """As the task."""
    return self.task.max_prompt

  @property
  def stop(self) -> tuple[str, ...]:
    """As the task."""
    return self.task.stop

  def examples(self, split: str, seed: int) -> Lazy:
    """As the task."""
    return self.task.examples(split, seed)

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """As the task."""
    return self.task.prompt(example, tokenizer)

  def key(self, text: str) -> str | None:
    """What a vote compares: all texts."""
    return text or None

  def step(self, state: Any, text: str) -> Step:
    """One of `steps`."""
    return self.steps([state], [text])[0]

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """The verdict of the last text of each episode."""
    return self.task.verify([text.split(BETWEEN)[-1] for text in texts], examples)


def play(environment: Environment, example: Example, act: Callable[[Any], str], turns: int
         ) -> tuple[list[tuple[str, bool]], float, bool]:
  """([(text, whether it is an action)], sum of rewards, done) of at most `turns` actions.

  act(state) -> action. The last observation of an episode that is done is left out: nobody reads
  it.
  """
  state, text = environment.reset(example)
  pieces, total, done = [(text, False)], 0.0, False
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
