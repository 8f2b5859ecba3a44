"""Few-shot arithmetic, which a small pre-trained model solves in part."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from entrolab.tasks.task import Example, Generated, drawn, held_out, opened, operands
from entrolab.verify import Verdict, exact

Kind = Literal["add", "multiply", "max", "count", "times", "mod", "sum3", "sum4", "add2",
               "subtract2"]


@dataclasses.dataclass(frozen=True)
class Arithmetic(Generated):
  """Solved lines such as `3 + 4 = 7`, then a question up to ` =`. The response ends at a newline;
  its first integer must be the answer.

  One question in five, by its operands in sorted order, is for evaluation; the solved lines come
  from the others, and none has the operands of the question. Raises ValueError for another kind, or
  shots out of range.
  """
  # numbers of one digit: add (a + b), multiply (a * b, 2 to 9), sum3, sum4; of two digits: times
  # (b of one digit), mod (b of one digit), add2, subtract2; max (of four numbers below 100), count
  # (the letter a among six letters)
  kind: Kind = "add"
  shots: int = 4  # solved lines, at most 16
  max_prompt: int = 112  # tokens
  stop: tuple[str, ...] = ("\n",)  # a newline ends the response

  def __post_init__(self) -> None:
    if self.kind not in get_args(Kind):
      raise ValueError(f"arithmetic kind {self.kind!r}; choices: {', '.join(get_args(Kind))}")
    if not 0 <= self.shots <= 16:
      raise ValueError(f"shots={self.shots}: 0 to 16")

  def draw(self, part: int, seed: int, index: int) -> Example:
    """Solved lines, and a question of the part."""
    rng = np.random.default_rng([seed, part, index])
    last, answer = self._drawn_question(rng, bool(part), ())
    solved: dict[str, str] = {}
    for _ in range(self.shots):
      # always questions of the training part, which differ from the last one and from each other
      question, value = self._drawn_question(rng, False, (last, *solved))
      solved[question] = value
    lines = "".join(f"{question} = {value}\n" for question, value in solved.items())
    return Example(index, f"{lines}{last} =", answer, f"arithmetic/{self.kind}")

  def _drawn_question(self, rng: np.random.Generator, evaluation: bool, taken: tuple[str, ...]
                      ) -> tuple[str, str]:
    """(question, answer) of the evaluation or training part, with other operands than `taken`."""
    avoided = {operands(question) for question in taken}

    def wanted(pair: tuple[str, str]) -> bool:
      text = operands(pair[0])
      return held_out(text, 5) == evaluation and text not in avoided

    return drawn(lambda: question_of(self.kind, rng), wanted, repr(self))

  def question(self, example: Example) -> str:
    """The operands of the last line in sorted order: what is held out."""
    return operands(example.prompt.rpartition("\n")[2].removesuffix(" ="))

  def prompt(self, example: Example, tokenizer) -> list[int]:
    """Token ids of the solved lines and the question."""
    return opened(tokenizer, tokenizer.encode(example.prompt))

  def key(self, text: str) -> str | None:
    """The integer that is verified: what a vote compares."""
    return exact.key(text)

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """Right where the first integer of the response is the answer."""
    return exact.verify_integer(texts, [e.answer for e in examples])


def question_of(kind: Kind, rng: np.random.Generator) -> tuple[str, str]:
  """A random question of a kind and its exact answer."""
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
