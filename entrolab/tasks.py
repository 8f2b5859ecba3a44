"""Tasks that are made, not read: where problems come from, how they are asked, who judges them.

A task is a frozen dataclass with a stable repr, by which a checkpoint names its data. It offers
`examples(split, seed)`, a sequence; `prompt(example, tokenizer)`, token ids; `verify(texts,
examples)`; `max_prompt` in tokens; and `stop`, strings that end a response besides the
tokenizer's own end. Tasks that are read from files are in `data`.
"""

import dataclasses
import functools
import operator
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from entrolab.verify import Verdict, countdown, exact

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
class Countdown:
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
class Copies:
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


Kind = Literal["add", "multiply", "max", "count", "times", "mod", "sum3", "sum4", "add2",
               "subtract2"]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
  """Few-shot completion that a small pre-trained model half knows: solved lines `3 + 4 = 7`, then
  a question up to ` =`. The response ends at a newline; its first integer must be the answer.

  kind, of digits: add (a + b), multiply (a * b, 2 to 9), sum3, sum4; of two digits: times (one
  factor of one digit), mod, add2, subtract2; max (of four numbers below 100), count (a's among
  six letters). One question in five is for evaluation; the solved lines come from the others.
  Raises ValueError for another kind.
  """
  kind: Kind = "add"
  shots: int = 4
  max_prompt: int = 112
  stop: tuple[str, ...] = ("\n",)

  def __post_init__(self) -> None:
    if self.kind not in get_args(Kind):
      raise ValueError(f"arithmetic kind {self.kind!r}; choices: {', '.join(get_args(Kind))}")
    if not 0 <= self.shots <= 16:
      raise ValueError(f"shots={self.shots}: 0 to 16")

  def examples(self, split: str, seed: int) -> Lazy:
    """A million prompts for each (split, seed)."""
    part = part_of(split)
    return Lazy(2**20, lambda i: self._make(part, seed, i),
                f"{self!r}.examples({split!r}, {seed})")

  def _make(self, part: int, seed: int, index: int) -> Example:
    rng = np.random.default_rng([seed, part, index])
    asked = self._question(rng, bool(part), ())
    lines: dict[str, str] = {}
    for _ in range(self.shots):
      question, answer = self._question(rng, False, (asked[0], *lines))
      lines[question] = answer
    text = "".join(f"{question} = {answer}\n" for question, answer in lines.items())
    return Example(index, f"{text}{asked[0]} =", asked[1], f"arithmetic/{self.kind}")

  def _question(self, rng: np.random.Generator, held: bool, taken: tuple[str, ...]
                ) -> tuple[str, str]:
    while True:
      question, answer = question_of(self.kind, rng)
      if held_out(question, 5) == held and question not in taken:
        return question, answer

  def prompt(self, example: Example, tokenizer) -> list[int]:
    """Token ids of the solved lines and the question."""
    return tokenizer.encode(example.prompt)

  def key(self, text: str) -> str | None:
    """What a vote compares: the first integer."""
    found = re.search(r"-?\d+", text)
    return found[0] if found else None

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """The first integer of the response is the answer's."""
    return exact.verify_integer(texts, [e.answer for e in examples])


def question_of(kind: Kind, rng: np.random.Generator) -> tuple[str, str]:
  """(question, answer) of one kind, exact."""
  draw = lambda low, high, n: [int(x) for x in rng.integers(low, high, n)]
  if kind == "max":
    numbers = draw(1, 100, 4)
    return f"max of {', '.join(map(str, numbers))}", str(max(numbers))
  if kind == "count":
    letters = [str(x) for x in rng.choice(list("abcde"), 6, p=[0.4, 0.15, 0.15, 0.15, 0.15])]
    return f"count a in {' '.join(letters)}", str(letters.count("a"))
  if kind in ("add", "sum3", "sum4"):
    numbers = draw(0, 10, {"add": 2, "sum3": 3, "sum4": 4}[kind])
    return " + ".join(map(str, numbers)), str(sum(numbers))
  if kind == "multiply":
    a, b = draw(2, 10, 2)
    return f"{a} * {b}", str(a * b)
  a, b = draw(10, 100, 2)
  if kind in ("times", "mod"):
    b = draw(2, 10, 1)[0]
  sign, value = {"times": ("*", a * b), "mod": ("mod", a % b), "add2": ("+", a + b),
                 "subtract2": ("-", a - b)}[kind]
  return f"{a} {sign} {b}", str(value)


@dataclasses.dataclass(frozen=True)
class ReasoningGym:
  """A generator of reasoning-gym (extra [tasks]); right where its scorer gives at least 0.99.

  options: pairs of the generator's own configuration. Training and evaluation have different
  seeds; a generator with few problems may still give both the same one. Raises ValueError for
  game_of_life_halting, whose scorer pays for nonsense, and what the generator raises for its own
  options.
  """
  name: str
  size: int = 5000
  options: tuple[tuple[str, Any], ...] = ()
  max_prompt: int = 256
  stop: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if self.name == "game_of_life_halting":
      raise ValueError("game_of_life_halting: its scorer pays for nonsense; choose another task")

  def examples(self, split: str, seed: int) -> Lazy:
    """`size` rows, deterministic in (seed, split)."""
    data = _gym(self.name, self.size, 2 * seed + part_of(split), self.options)
    source = f"{self.name}/{split}/{seed}"
    make = lambda i: Example(i, data[i]["question"], str(data[i]["answer"]), source)
    return Lazy(self.size, make, f"{self!r}.examples({split!r}, {seed})", listed=True)

  def prompt(self, example: Example, tokenizer) -> list[int]:
    """Token ids of the question in the chat format."""
    return tokenizer.encode(tokenizer.chat([{"role": "user", "content": example.prompt}]))

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """By the generator's scorer, of the last <answer>...</answer> or else the whole response.

    A scorer that raises has met nonsense: wrong, with the exception's name.
    """
    verdicts = []
    for text, example in zip(texts, examples, strict=True):
      split, seed = example.source.split("/")[1:]
      data = _gym(self.name, self.size, 2 * int(seed) + part_of(split), self.options)
      answer = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
      try:
        score = float(data.score_answer(answer, data[example.id]))
      except Exception as error:  # a hundred scorers of others, each with its own way to fail
        verdicts.append(Verdict("wrong", f"the scorer raised {type(error).__name__}"))
        continue
      verdicts.append(Verdict("right" if score >= 0.99 else "wrong", f"score {score:.2f}"))
    return verdicts


@functools.lru_cache(maxsize=8)
def _gym(name: str, size: int, seed: int, options: tuple[tuple[str, Any], ...]):
  try:
    import reasoning_gym
  except ImportError as error:
    raise ImportError("reasoning-gym tasks need `pip install 'entrolab[tasks]'`") from error
  return reasoning_gym.create_dataset(name, size=size, seed=seed, **dict(options))
