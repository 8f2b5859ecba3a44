"""Countdown: reach a target from a few numbers; a rule makes the problems and judges them exactly.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from entrolab.tasks.task import Example, Lazy, Task, held_out, part_of
from entrolab.verify import Verdict, countdown


def chain(rng: np.random.Generator, smallest: int, largest: int,
          highest: int) -> tuple[list[int], list[str], int]:
  """(numbers, steps, target): a random chain whose every result is a whole number of 1 to 99."""
  numbers = [int(n) for n in rng.integers(1, highest + 1, rng.integers(smallest, largest + 1))]
  left, steps = list(numbers), []
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
  order = rng.permutation(len(numbers))
  return [numbers[k] for k in order], steps, left[0]


@dataclasses.dataclass(frozen=True)
class Countdown(Task):
  """Reach a target from three or four numbers of 1 to 12, each used once: `3,5,7>22:` and a chain
  of steps `3*5=15,15+7=22`. Several chains are right; training and evaluation share no problem,
  not even in another order of its numbers.

  fixed: number of distinct training problems, 0 for a million independent draws. Evaluation draws
  independently from its own part, so that every prefix has the same mixture of easy and hard.
  Raises ValueError for sizes out of range.
  """
  smallest: int = 3
  largest: int = 4
  highest: int = 12
  fixed: int = 0
  max_prompt: int = 10
  stop: tuple[str, ...] = ()
  think_end: str = ","  # the first step is what others would call thinking
  step_end: str = ","

  def __post_init__(self) -> None:
    if not 2 <= self.smallest <= self.largest or not 1 <= self.highest <= 99:
      raise ValueError(f"{self!r}: needs 2 <= smallest <= largest and 1 <= highest <= 99")
    if self.fixed < 0:
      raise ValueError(f"{self!r}: needs fixed >= 0")

  def examples(self, split: str, seed: int) -> Lazy:
    """The same problems for the same seed."""
    part, name = part_of(split), f"{self!r}.examples({split!r}, {seed})"
    if self.fixed and not part:
      made = _distinct(self, seed)
      return Lazy(self.fixed, made.__getitem__, name)
    return Lazy(2**20, lambda index: self._make(part, seed, index, index), name)

  def _make(self, part: int, seed: int, index: int, number: int) -> Example:
    rng = np.random.default_rng([seed, part, index])
    problem, steps = self.demonstration(rng, held=bool(part))
    return Example(number, problem, steps, f"countdown/{problem.count(',') + 1}")

  def demonstration(self, rng: np.random.Generator, *, held: bool) -> tuple[str, str]:
    """A random problem of the evaluation (`held`) or training part, and a chain that solves it."""
    while True:
      numbers, steps, target = chain(rng, self.smallest, self.largest, self.highest)
      if held_out(f"{sorted(numbers)}>{target}", 10) == held:
        return f"{','.join(map(str, numbers))}>{target}:", ",".join(steps)

  def prompt(self, example: Example, tokenizer) -> list[int]:
    """Token ids of the problem."""
    return tokenizer.encode(example.prompt)

  def solution(self, example: Example) -> str:
    """The chain that the problem was made from, one of several that are right."""
    return example.answer

  def problem(self, example: Example) -> tuple[list[int], int]:
    """(numbers, target)."""
    numbers, target = example.prompt.removesuffix(":").split(">")
    return [int(n) for n in numbers.split(",")], int(target)

  def key(self, text: str) -> str | None:
    """What a vote compares: the whole chain, since every right one ends in the target."""
    return text or None

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """Exact: every step is checked, every number is used once, the last result is the target."""
    return [countdown.check_steps(text, *self.problem(example))
            for text, example in zip(texts, examples, strict=True)]


@functools.lru_cache(maxsize=8)
def _distinct(task: Countdown, seed: int) -> tuple[Example, ...]:
  found: dict[str, Example] = {}
  for index in range(100 * task.fixed):
    example = task._make(0, seed, index, len(found))
    numbers, target = task.problem(example)
    found.setdefault(f"{sorted(numbers)}>{target}", example)
    if len(found) == task.fixed:
      return tuple(found.values())
  raise ValueError(f"{task!r}: only {len(found)} distinct training problems found; ask for fewer, "
                   "or for more or higher numbers")


@dataclasses.dataclass(frozen=True)
class Copies(Task):
  """Training on copies of a few problems of another task, each copy a group of its own; evaluation
  is the other task's. indices: which problems; copies: of each, at least the prompts of a step
  over their number."""
  task: Countdown = Countdown()
  indices: tuple[int, ...] = (0,)
  copies: int = 64
  max_prompt: int = 10
  stop: tuple[str, ...] = ()
  think_end: str = ","
  step_end: str = ","

  def examples(self, split: str, seed: int) -> Lazy:
    """copies x len(indices) rows that differ by their id, hence by the noise of their samples."""
    source = self.task.examples(split, seed)
    if part_of(split):
      return source
    make = lambda i: dataclasses.replace(source[self.indices[i % len(self.indices)]], id=i)
    return Lazy(self.copies * len(self.indices), make, f"{self!r}.examples({split!r}, {seed})")

  def prompt(self, example: Example, tokenizer) -> list[int]:
    """As the other task."""
    return self.task.prompt(example, tokenizer)

  def key(self, text: str) -> str | None:
    """As the other task."""
    return self.task.key(text)

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """As the other task."""
    return self.task.verify(texts, examples)
