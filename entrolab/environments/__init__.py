"""Environments that an episode of several turns goes through: pure, on the host.

An environment is a task (`tasks`): a frozen dataclass with a stable repr, `examples`, `prompt`,
`verify`, `max_prompt` and `stop`. It adds

  reset(example) -> (state, text)                        the text opens the episode: the prompt
  step(state, text) -> (state, observation, reward, done)
  max_observation                                        tokens of an observation

States are values: a step changes none, so that an episode can be replayed, and `verify` does so.
An episode is right when its rewards add up to SUCCESS or more. `steps(states, texts)` are the steps
of many episodes, which an environment with a tool or a verifier takes side by side. `expert(state,
rng)`, where there is one, is the text of a good action; `eased(example, level)` an easier version
of an example.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from entrolab.tasks import Example, Lazy, part_of
from entrolab.verify import Verdict

SUCCESS = 1.0
BETWEEN = "\x1e"  # the record separator, between the actions of an episode's text
Step = tuple[Any, str, float, bool]  # (state, observation, reward, done)


class Environment(Protocol):
  """What a rollout of several turns asks of a task; see the module."""

  @property
  def max_prompt(self) -> int:
    """Tokens of the longest prompt."""
    ...

  @property
  def max_observation(self) -> int:
    """Tokens of the longest observation; longer ones are cut."""
    ...

  @property
  def stop(self) -> tuple[str, ...]:
    """Strings that end an action besides the tokenizer's own end."""
    ...

  def examples(self, split: str, seed: int) -> Lazy:
    """A sequence whose repr is stable."""
    ...

  def prompt(self, example: Example, tokenizer: Any) -> list[int]:
    """Token ids of the opening text."""
    ...

  def reset(self, example: Example) -> tuple[Any, str]:
    """(state, opening text)."""
    ...

  def step(self, state: Any, text: str) -> Step:
    """(state, observation, reward, done) after one action."""
    ...

  def steps(self, states: Sequence[Any], texts: Sequence[str]) -> list[Step]:
    """`step` of every episode."""
    ...

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """One verdict an episode, from its actions with BETWEEN between them."""
    ...


def judge(total: float, turns: int, ending: str) -> Verdict:
  """The verdict of an episode: its rewards' sum, its actions, and how it ended."""
  status = "right" if total >= SUCCESS else "wrong"
  return Verdict(status, f"reward {total:g} in {turns} turns: {ending}")


class Spoken:
  """What environments that speak in texts share: prompts, steps one after another, and verdicts by
  replaying actions."""
  reset: Callable[[Example], tuple[Any, str]]
  step: Callable[[Any, str], Step]
  stop: tuple[str, ...] = ()

  def prompt(self, example: Example, tokenizer: Any) -> list[int]:
    """Token ids of the opening text."""
    return tokenizer.encode(self.reset(example)[1])

  def key(self, text: str) -> str | None:
    """What a vote compares: all actions."""
    return text or None

  def steps(self, states: Sequence[Any], texts: Sequence[str]) -> list[Step]:
    """`step` of every episode."""
    return [self.step(state, text) for state, text in zip(states, texts, strict=True)]

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


class OfTask:
  """What episodes about a task with one answer (`task`) take from it; they define `steps`."""
  task: Any
  steps: Callable[[Sequence[Any], Sequence[str]], list[Step]]

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

  def prompt(self, example: Example, tokenizer: Any) -> list[int]:
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


def play(environment: Any, example: Example, act: Callable[[Any], str], turns: int
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


__all__ = ["BETWEEN", "Environment", "Example", "Lazy", "OfTask", "SUCCESS", "Spoken", "Step",
           "judge", "part_of", "play"]
