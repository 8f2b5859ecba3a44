"""Countdown: reach a target from a few numbers. Problems are generated, and verified exactly."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from entrolab.tasks.task import Example, Generated, Lazy, Task, drawn, held_out, opened, part_of
from entrolab.verify import Verdict, countdown


def chain(rng: np.random.Generator, smallest: int, largest: int,
          highest: int) -> tuple[list[int], list[str], int]:
  """(numbers, steps, target) of a random chain, each of whose results is an integer of 1 to 99.

  smallest, largest: how many numbers; highest: of the numbers.
  """
  count = rng.integers(smallest, largest + 1)
  numbers = [int(n) for n in rng.integers(1, highest + 1, count)]
  left = list(numbers)
  steps = []
  while len(left) > 1:
    i, j = rng.permutation(len(left))[:2]
    a, b = left[i], left[j]
    results = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if a % b == 0 else 0}
    choices = [op for op, value in results.items() if 1 <= value <= 99]
    if not choices:
      continue
    op = choices[rng.integers(len(choices))]
    left = [n for k, n in enumerate(left) if k not in (i, j)] + [results[op]]
    steps.append(f"{a}{op}{b}={results[op]}")
  order = rng.permutation(len(numbers))  # else the order of the numbers would be that of the steps
  return [numbers[k] for k in order], steps, left[0]


def text_of(numbers: Sequence[int], target: int) -> str:
  """A problem as text, the same for every order of its numbers."""
  return f"{sorted(numbers)}>{target}"


@dataclasses.dataclass(frozen=True)
class Countdown(Generated):
  """Reach a target from a few numbers, each used once: prompt `3,5,7>22:`, response
  `3*5=15,15+7=22`. More than one chain of steps may be right.

  Training and evaluation share no problem, not even in another order of its numbers. Evaluation
  problems are independent draws, so that every prefix of them has the same mixture of easy and
  hard. Raises ValueError for sizes out of range.
  """
  smallest: int = 3  # fewest numbers of a problem
  largest: int = 4  # most numbers of a problem
  highest: int = 12  # of the numbers, which begin at 1
  fixed: int = 0  # distinct training problems; 0: a million independent draws
  max_prompt: int = 10  # tokens
  stop: tuple[str, ...] = ()  # only the tokenizer's stop tokens end a response
  think_end: str = ","  # the first step stands for the thinking part of a response
  step_end: str = ","  # separates the steps of a chain

  def __post_init__(self) -> None:
    if not 2 <= self.smallest <= self.largest or not 1 <= self.highest <= 99:
      raise ValueError(f"{self!r}: needs 2 <= smallest <= largest and 1 <= highest <= 99")
    if self.fixed < 0:
      raise ValueError(f"{self!r}: needs fixed >= 0")

  def examples(self, split: str, seed: int) -> Lazy:
    """A million draws, or `fixed` problems for training, the same for the same seed."""
    if self.fixed and not part_of(split):
      made = _distinct(self, seed)
      return Lazy(self.fixed, made.__getitem__, f"{self!r}.examples({split!r}, {seed})")
    return super().examples(split, seed)

  def draw(self, part: int, seed: int, index: int) -> Example:
    """A problem of the part, and the chain that it was made from."""
    rng = np.random.default_rng([seed, part, index])
    problem, steps = self.demonstration(rng, evaluation=bool(part))
    return Example(index, problem, steps, f"countdown/{problem.count(',') + 1}")

  def demonstration(self, rng: np.random.Generator, *, evaluation: bool) -> tuple[str, str]:
    """A random problem and a chain that solves it, of the evaluation or training part."""
    numbers, steps, target = drawn(
        lambda: chain(rng, self.smallest, self.largest, self.highest),
        lambda made: held_out(text_of(made[0], made[2]), 10) == evaluation, repr(self))
    return f"{','.join(map(str, numbers))}>{target}:", ",".join(steps)

  def question(self, example: Example) -> str:
    """Numbers in sorted order, and target: what is held out."""
    return text_of(*self.problem(example))

  def prompt(self, example: Example, tokenizer) -> list[int]:
    """Token ids of the problem."""
    return opened(tokenizer, tokenizer.encode(example.prompt))

  def solution(self, example: Example) -> str:
    """The chain that the problem was made from; others may be right too."""
    return example.answer

  def problem(self, example: Example) -> tuple[list[int], int]:
    """(numbers, target)."""
    numbers, target = example.prompt.removesuffix(":").split(">")
    return [int(n) for n in numbers.split(",")], int(target)

  def key(self, text: str) -> str | None:
    """The whole chain, since every right chain ends in the target: what a vote compares."""
    return countdown.spelled(text) or None

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """Exact: every step is checked, every number is used once, the last result is the target."""
    return [countdown.check_steps(text, *self.problem(example))
            for text, example in zip(texts, examples, strict=True)]


@functools.lru_cache(maxsize=8)
def _distinct(task: Countdown, seed: int) -> tuple[Example, ...]:
  """The first `task.fixed` distinct training problems of a seed."""
  found: dict[str, Example] = {}
  for index in range(100 * task.fixed):
    example = dataclasses.replace(task.draw(0, seed, index), id=len(found))
    found.setdefault(task.question(example), example)
    if len(found) == task.fixed:
      return tuple(found.values())
  raise ValueError(f"{task!r}: only {len(found)} distinct training problems found; lower fixed, or "
                   "raise largest or highest")


@dataclasses.dataclass(frozen=True)
class Copies(Task):
  """Training on copies of a few problems of another task, each copy a group by itself; evaluation
  on the problems of the other task."""
  task: Countdown = Countdown()  # the other task
  indices: tuple[int, ...] = (0,)  # which training problems
  copies: int = 64  # of each problem, at least prompts of a step / problems
  max_prompt: int = 10  # tokens
  stop: tuple[str, ...] = ()  # as of the other task, here and below
  think_end: str = ","  # the first step stands for the thinking part of a response
  step_end: str = ","  # separates the steps of a chain

  def examples(self, split: str, seed: int) -> Lazy:
    """copies x len(indices) rows that differ by their id, and so by the noise of their samples."""
    source = self.task.examples(split, seed)
    if part_of(split):
      return source
    make = lambda i: dataclasses.replace(source[self.indices[i % len(self.indices)]], id=i)
    return Lazy(self.copies * len(self.indices), make, f"{self!r}.examples({split!r}, {seed})")

  def prompt(self, example: Example, tokenizer) -> list[int]:
    """That of the other task."""
    return self.task.prompt(example, tokenizer)

  def question(self, example: Example) -> str:
    """That of the other task."""
    return self.task.question(example)

  def key(self, text: str) -> str | None:
    """That of the other task."""
    return self.task.key(text)

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """That of the other task."""
    return self.task.verify(texts, examples)
