"""What a run asks of a task and of a tokenizer, and what examples are.

A task is a frozen dataclass with a stable repr, by which a checkpoint names its data.
"""

import dataclasses
import operator
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from entrolab.verify import Verdict, vote

SPLITS = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem: id is stable and unique within its split; it is folded into sampling keys."""
  id: int
  prompt: str
  answer: str
  source: str


class Lazy(Sequence):
  """`size` examples made on demand by `make(index)`; the repr is the same in every process.

  listed: rows of a finite list whose prompts may be longer than the task allows.
  """

  def __init__(self, size: int, make: Callable[[int], Example], name: str, *,
               listed: bool = False) -> None:
    self.size, self.make, self.name, self.listed = size, make, name, listed

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: Any) -> Any:
    at = operator.index(index)
    if not 0 <= at < self.size:
      raise IndexError(f"{self.name}: example {at} of {self.size}")
    return self.make(at)

  def __repr__(self) -> str:
    return self.name


def part_of(split: str) -> int:
  """0 for train, 1 for eval. Raises ValueError for another split."""
  if split not in SPLITS:
    raise ValueError(f"split {split!r}; choices: {', '.join(SPLITS)}")
  return SPLITS.index(split)


def held_out(text: str, one_in: int) -> bool:
  """Whether a problem belongs to evaluation: one in `one_in`, by its text, for every seed."""
  return zlib.crc32(text.encode()) % one_in == 0


class Tokenizer(Protocol):
  """What a run asks of a tokenizer; `stop_ids` end a response, `pad_id` fills what follows."""
  name: str
  vocab_size: int
  pad_id: int
  eos_id: int
  stop_ids: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; nothing is added."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids, padding and end of sequence left out."""
    ...

  def chat(self, messages: list[dict[str, str]]) -> str:
    """The prompt of a conversation. Raises ValueError where there is no template."""
    ...


class Task(Protocol):
  """Where problems come from, how they are asked, who judges the answers.

  A task subclasses it, as a frozen dataclass, and defines `max_prompt`, `examples`, `prompt` and
  `verify`. The other members have the defaults that stand here.
  """
  stop: tuple[str, ...] = ()  # strings that end a response besides the tokenizer's own end
  think_end: str = "</think>"  # a token with this text ends the thinking part of a response
  step_end: str = "\n"  # a token with this text is the last one of its step

  @property
  def max_prompt(self) -> int:
    """Tokens of the longest prompt."""
    ...

  def examples(self, split: str, seed: int) -> Lazy:
    """The examples of a split, "train" or "eval": a sequence whose repr is stable."""
    ...

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """The token ids that a response follows."""
    ...

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """One verdict a text: right, wrong, or unknown with the reason."""
    ...

  def key(self, text: str) -> str | None:
    """What responses are compared by in a vote; None for a response without an answer."""
    return vote.key(text)

  def solution(self, example: Example) -> str:
    """A right response, for supervised fine-tuning. Raises TypeError where the task has none."""
    raise TypeError(f"{type(self).__name__} has no solution(example) to learn from")

  def eased(self, example: Example, level: int) -> Example:
    """An easier version of an example, for a curriculum. Raises TypeError where there is none."""
    raise TypeError(f"{type(self).__name__} has no eased(example, level) for a curriculum")

  def as_environment(self) -> "Environment":
    """The task as an environment. Raises TypeError where a response is a single turn."""
    raise TypeError(f"episodes of several turns need an environment, and {self!r} is none; "
                    "environments.adapters.Attempts makes one of a task with one answer")


# what an environment answers to an action: (state, observation, reward, is the episode done)
Step = tuple[Any, str, float, bool]


class Environment(Task, Protocol):
  """A task of several turns, pure and on the host.

  States are values: a step changes none, so that an episode can be replayed, and `verify` does so.
  An episode is right when its rewards add up to `environments.SUCCESS` or more.
  """

  @property
  def max_observation(self) -> int:
    """Tokens of the longest observation; longer ones are cut."""
    ...

  def reset(self, example: Example) -> tuple[Any, str]:
    """(state, the text that opens the episode: the prompt)."""
    ...

  def step(self, state: Any, text: str) -> Step:
    """(state, observation, reward, done) after one action."""
    ...

  def steps(self, states: Sequence[Any], texts: Sequence[str]) -> list[Step]:
    """`step` of many episodes, which a tool or a verifier may take side by side."""
    return [self.step(state, text) for state, text in zip(states, texts, strict=True)]

  def expert(self, state: Any, rng: np.random.Generator) -> str:
    """The text of a good action, to clone a policy from. Raises TypeError where there is none."""
    raise TypeError(f"{type(self).__name__} has no expert(state, rng) to clone")

  def as_environment(self) -> "Environment":
    """Itself."""
    return self
