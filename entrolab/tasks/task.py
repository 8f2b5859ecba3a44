"""The interfaces of a task, an environment and a tokenizer, and what an example is.

A task is a frozen dataclass. Its repr is the same in every process, because a checkpoint names its
data by it.

Evaluation does not train on itself: what makes a problem (`Task.question`, such as its operands in
sorted order) decides whether it is for training or for evaluation, the same for every seed. Every
seed has the same evaluation problems, and `prompts.evaluation` takes none of them twice.
"""

import dataclasses
import functools
import operator
import types
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from entrolab.typing import name_of
from entrolab.verify import Verdict, reading
from entrolab.verify.extract import extract

SPLITS = ("train", "eval")
TRIES = 100_000  # draws in search of a problem of one part
T = TypeVar("T")
_NAMED = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)


@dataclasses.dataclass(frozen=True)
class Example:
  """A problem."""
  id: int  # stable and unique within its split: the keys of its samples are made from it
  prompt: str  # the problem as text; Task.prompt makes tokens of it
  answer: str  # the reference, in the form that the task verifies against
  source: str  # where it comes from; some tasks read their verdict's context from it


class Lazy(Sequence):
  """A sequence of `size` examples, each made on demand by `make(index)`.

  name: its repr, the same in every process.
  listed: whether they are rows of a finite list, whose prompts may be longer than the task allows.
  left_out: reason -> how many rows of the source are not among the examples for that reason.
  """

  def __init__(self, size: int, make: Callable[[int], Example], name: str, *,
               listed: bool = False, left_out: Mapping[str, int] | None = None) -> None:
    self.size, self.make, self.name, self.listed = size, make, name, listed
    self.left_out = {reason: count for reason, count in (left_out or {}).items() if count}

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: Any) -> Any:
    at = operator.index(index)
    if not 0 <= at < self.size:
      raise IndexError(f"{self.name}: example {at} of {self.size}")
    return self.make(at)

  def __repr__(self) -> str:
    return self.name


TRAINED = "are problems of the evaluation"


def without(rows: Lazy, questions: Collection[str], question: Callable[[Example], str]) -> Lazy:
  """Rows of a training set, less those whose problem is one of the evaluation."""
  left = [at for at in range(len(rows)) if question(rows[at]) not in questions]
  return chosen(rows, left, {TRAINED: len(rows) - len(left)})


def chosen(rows: Lazy, places: Sequence[int], left_out: Mapping[str, int]) -> Lazy:
  """The rows at these places; left_out: reason -> how many others are left out for it."""
  if len(places) == len(rows):
    return rows
  return Lazy(len(places), lambda at: rows[places[at]], f"{rows!r}[{len(places)} of {len(rows)}]",
              listed=rows.listed, left_out={**rows.left_out, **left_out})


def part_of(split: str) -> int:
  """0 for train, 1 for eval. Raises ValueError for another split."""
  if split not in SPLITS:
    raise ValueError(f"split {split!r}; choices: {', '.join(SPLITS)}")
  return SPLITS.index(split)


def held_out(text: str, one_in: int) -> bool:
  """Whether a problem belongs to evaluation, by its text alone: one in `one_in`, for every seed.

  The text must be the same for all forms of a problem, as that of `operands` is.
  """
  return zlib.crc32(text.encode()) % one_in == 0


def operands(text: str) -> str:
  """The words of a text in sorted order: the same for 3 + 7 and 7 + 3."""
  return " ".join(sorted(text.replace(",", " ").split()))


def drawn(draw: Callable[[], T], wanted: Callable[[T], bool], what: str) -> T:
  """The first draw that is wanted. Raises ValueError, naming `what`, where TRIES have none."""
  for _ in range(TRIES):
    found = draw()
    if wanted(found):
      return found
  raise ValueError(f"{what}: no such problem in {TRIES} draws; a larger range of problems has some")


def stable_repr(self: Any) -> str:
  """The repr of a dataclass with functions by name, for tasks that have functions as fields.

  Checkpoints store it, so it must contain neither addresses, which differ between processes, nor
  the folders of the code.
  """
  parts = []
  for field in dataclasses.fields(self):
    value = getattr(self, field.name)
    parts.append(f"{field.name}={name_of(value) if isinstance(value, _NAMED) else repr(value)}")
  return f"{type(self).__name__}({', '.join(parts)})"


class Tokenizer(Protocol):
  """The members of a tokenizer that a run uses."""
  name: str  # for messages
  vocab_size: int  # token ids are below it
  pad_id: int  # fills a sequence after its end
  eos_id: int  # the end of a sequence
  stop_ids: tuple[int, ...]  # tokens that end a response

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; no special token is added: `opened` begins a sequence."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids, without padding and end of sequence."""
    ...

  def chat(self, messages: list[dict[str, str]]) -> str:
    """The prompt of a conversation. Raises ValueError where there is no template."""
    ...


@functools.singledispatch
def opening(tokenizer: Any) -> tuple[int, ...]:
  """The ids that every sequence of a tokenizer begins with: none, for one that registers none."""
  del tokenizer
  return ()


def opened(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
  """The ids of a prompt with those that every sequence begins with in front, exactly once.

  A chat template may have written them already.
  """
  first = opening(tokenizer)
  return list(ids) if tuple(ids[:len(first)]) == first else [*first, *ids]


def within(ids: Sequence[int], size: int, what: str) -> None:
  """Raises ValueError for an id without a row in an embedding of `size` rows, where a look-up would
  give another token's row. what: where the ids come from, for the message."""
  for at, token in enumerate(ids):
    if not 0 <= token < size:
      raise ValueError(f"{what}: token id {token!r} at place {at} has no row in the model's "
                       f"embedding of {size} rows; choices: 0 to {size - 1}")


def check_sizes(tokenizer: Tokenizer, size: int) -> None:
  """Raises ValueError for a tokenizer that has tokens beyond an embedding of `size` rows.

  A larger embedding is right: models are padded to round sizes.
  """
  if tokenizer.vocab_size > size:
    raise ValueError(f"tokenizer {tokenizer.name} has ids up to {tokenizer.vocab_size - 1}, and "
                     f"the model's embedding has {size} rows; take the tokenizer of this model, or "
                     "resize the embedding for added tokens")
  special = (*tokenizer.stop_ids, tokenizer.pad_id, *opening(tokenizer))
  # -1 matches no token: a tokenizer without an end may name it
  within([at for at in special if at != -1], size, f"tokenizer {tokenizer.name}, special tokens")


class Task(Protocol):
  """A source of problems with their prompts and the verdicts on responses.

  A task is a frozen dataclass that subclasses this and defines `max_prompt`, `examples`, `prompt`
  and `verify`. The other members are optional: they have the defaults below.
  """
  stop: tuple[str, ...] = ()  # strings that end a response, besides the tokenizer's stop tokens
  think_end: str = "</think>"  # ends the thinking part of a response
  step_end: str = "\n"  # ends a step of a response

  @property
  def max_prompt(self) -> int:
    """Tokens of a prompt at most."""
    ...

  def examples(self, split: str, seed: int) -> Lazy:
    """The examples of a split, "train" or "eval"; those of "eval" are the same for every seed.

    The two share no problem, by `question`; problems that are drawn may come several times. Raises
    ValueError for another split.
    """
    ...

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """The token ids that a response follows."""
    ...

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """A verdict for each text: right, wrong, or unknown with the reason. No text raises."""
    ...

  def key(self, text: str) -> str | None:
    """The text by which a vote compares responses; None for a response without an answer."""
    found = extract(text)
    return reading.key(found.text, found.after)

  def question(self, example: Example) -> str:
    """What makes two examples the same problem: here the words of the prompt in sorted order, and
    the answer. An evaluation takes every question once; its intervals count questions."""
    return f"{operands(example.prompt)} -> {example.answer}"

  def identity(self) -> str:
    """A sha256 of the content that the task reads; empty where it is a function of its fields.

    A checkpoint names its data by the repr of the task, which says nothing of the rows of a file.
    """
    return ""

  def solution(self, example: Example) -> str:
    """A right response, for supervised fine-tuning. Raises TypeError where the task has none."""
    raise TypeError(f"{type(self).__name__} has no solution(example) to learn from")

  def eased(self, example: Example, level: int) -> Example:
    """An easier version of an example, for a curriculum. Raises TypeError if there is none."""
    raise TypeError(f"{type(self).__name__} has no eased(example, level) for a curriculum")

  def as_environment(self) -> "Environment":
    """The task as an environment. Raises TypeError for a task whose responses are single turns."""
    raise TypeError(f"episodes of several turns need an environment, and {self!r} is none; "
                    "environments.adapters.Attempts makes one of a task with one answer")


class Generated(Task, Protocol):
  """A task whose examples are draws; a subclass defines `draw` in place of `examples`.

  Raises ValueError from an example where TRIES draws have none of its part.
  """

  def draw(self, part: int, seed: int, index: int) -> Example:
    """The draw `index` of the training part, 0, or of the evaluation part, 1; its id is the index.
    """
    ...

  def examples(self, split: str, seed: int) -> Lazy:
    """A million draws: for training of the seed, for evaluation the same for every seed."""
    part = part_of(split)
    seed = 0 if part else seed
    return Lazy(2**20, lambda index: self.draw(part, seed, index),
                f"{self!r}.examples({split!r}, {seed})")


# The result of an action: (state, observation, reward, whether the episode is done).
Step = tuple[Any, str, float, bool]


class Environment(Task, Protocol):
  """A task of several turns: pure functions on the host.

  States are values that no step changes, so that an episode can be replayed; `verify` does so. An
  episode is right when the sum of its rewards is `environments.SUCCESS` or more. An environment
  defines `max_observation`, `reset` and `step` in addition to the members of a task.
  """

  @property
  def max_observation(self) -> int:
    """Tokens of an observation at most; longer ones are cut."""
    ...

  def reset(self, example: Example) -> tuple[Any, str]:
    """(initial state, the text that opens the episode: the prompt)."""
    ...

  def step(self, state: Any, text: str) -> Step:
    """(state, observation, reward, done) after one action."""
    ...

  def steps(self, states: Sequence[Any], texts: Sequence[str]) -> list[Step]:
    """`step` of several episodes; an environment may override it to run a tool on all at once."""
    return [self.step(state, text) for state, text in zip(states, texts, strict=True)]

  def expert(self, state: Any, rng: np.random.Generator) -> str:
    """A good action, for cloning a policy. Raises TypeError where the environment has none."""
    raise TypeError(f"{type(self).__name__} has no expert(state, rng) to clone")

  def as_environment(self) -> "Environment":
    """This environment."""
    return self
