"""Written problems: JSONL files, data sets of the Hugging Face Hub, formats of their prompts."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from entrolab.tasks.task import (
    Example,
    Lazy,
    Task,
    Tokenizer,
    opened,
    part_of,
    stable_repr,
)
from entrolab.verify import Verdict
from entrolab.verify import math as mathematics

BOX = "Let's think step by step and output the final answer within \\boxed{}."
Format = Callable[[str, Tokenizer], str]
Verifier = Callable[[Sequence[str], Sequence[str]], list[Verdict]]


def plain(problem: str, tokenizer: Tokenizer) -> str:
  """`Problem: ...`, and `Answer:` on the next line, for a model without a chat format."""
  del tokenizer
  return f"Problem: {problem}\nAnswer:"


def chat(problem: str, tokenizer: Tokenizer) -> str:
  """The tokenizer's chat template around the problem and the usual request for a box."""
  return tokenizer.chat([{"role": "user", "content": f"{problem}\n{BOX}"}])


@dataclasses.dataclass(frozen=True)
class Chat:
  """The tokenizer's chat template around a user message, and a system message before it."""
  user: str = "{problem}"  # the user message; {problem} stands for the problem
  system: str = ""  # the system message; empty: none

  def __call__(self, problem: str, tokenizer: Tokenizer) -> str:
    messages = [{"role": "system", "content": self.system}] if self.system else []
    content = self.user.replace("{problem}", problem)
    return tokenizer.chat([*messages, {"role": "user", "content": content}])


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Solved problems in the plain format, a blank line after each, then the problem."""
  solved: tuple[tuple[str, str], ...]  # (problem, solution) pairs

  def __call__(self, problem: str, tokenizer: Tokenizer) -> str:
    examples = [f"{plain(solved, tokenizer)} {solution}\n\n" for solved, solution in self.solved]
    return "".join(examples) + plain(problem, tokenizer)


def data_path(name: str) -> pathlib.Path:
  """The path of a data file: an absolute one, or one relative to the folder of ENTROLAB_DATA.

  Raises FileNotFoundError, which says where the file was looked for.
  """
  path, folder = pathlib.Path(name), os.environ.get("ENTROLAB_DATA", "")
  if path.is_absolute():
    if path.is_file():
      return path
    raise FileNotFoundError(f"{name}: no such file")
  if not folder:
    raise FileNotFoundError(f"{name}: relative names are looked up in the folder that the "
                            "environment variable ENTROLAB_DATA names, and it is not set")
  if not (pathlib.Path(folder) / path).is_file():
    raise FileNotFoundError(f"{name}: no such file in ENTROLAB_DATA={folder}")
  return pathlib.Path(folder) / path


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a file: text under `problem` or `prompt`, and under `answer`.

  The `choices` of a row are lettered below its problem. Raises ValueError with file and line for a
  row that is not of this form, and for a file without rows.
  """
  rows = []
  with open(path, encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
      where = f"{path.name}:{number}"
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
      if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be an object, not {type(row).__name__}")
      problem = row.get("problem", row.get("prompt"))
      if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"{where}: no text under 'problem' or 'prompt'; has: {sorted(row)}")
      if not isinstance(row.get("answer"), str):
        found = repr(row["answer"])[:40] if "answer" in row else f"missing from {sorted(row)}"
        raise ValueError(f"{where}: 'answer' must be text and is {found}")
      letters = zip("ABCDEFGHIJ", row.get("choices", ()), strict=False)
      rows.append({**row, "problem": "\n".join([problem, *(f"{a}. {b}" for a, b in letters)])})
  if not rows:
    raise ValueError(f"{path.name}: no rows")
  return rows


class _Formatted(Task, Protocol):
  """What tasks of written problems share."""
  format: Format  # makes the prompt's text of (problem, tokenizer)
  verifier: Verifier  # makes verdicts of (texts, answers)
  __repr__ = stable_repr

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the formatted problem."""
    return opened(tokenizer, tokenizer.encode(self.format(example.prompt, tokenizer)))

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """By the task's verifier, against the answers."""
    return list(self.verifier(texts, [e.answer for e in examples]))


@dataclasses.dataclass(frozen=True, repr=False)
class Jsonl(_Formatted):
  """Problems of JSONL files: `{"problem" | "prompt": text, "answer": text}` on each line."""
  path: str  # absolute, or relative to the folder of ENTROLAB_DATA
  eval_path: str = ""  # of evaluation; empty: every tenth row of `path` is for evaluation
  format: Format = plain  # plain, chat, Chat(...), FewShot(...) or a function of this type
  verifier: Verifier = mathematics.verify  # (texts, answers) -> verdicts
  max_prompt: int = 256  # tokens; longer prompts are left out
  stop: tuple[str, ...] = ()  # strings that end a response

  def examples(self, split: str, seed: int) -> Lazy:
    """The rows in the order of the file; ids are line numbers from 0. The seed has no effect."""
    del seed
    part = part_of(split)
    name = self.eval_path if part and self.eval_path else self.path
    made = [Example(at, row["problem"], row["answer"], f"{name}:{at + 1}")
            for at, row in enumerate(read_jsonl(data_path(name)))]
    if not self.eval_path:
      made = [e for e in made if (e.id % 10 == 9) == bool(part)]
    return Lazy(len(made), made.__getitem__, f"{self!r}.examples({split!r})", listed=True)


@dataclasses.dataclass(frozen=True, repr=False)
class Hub(_Formatted):
  """A data set of the Hugging Face Hub; needs `datasets` and a connection."""
  name: str  # on the Hub
  config: str = ""  # the configuration, for a data set of several
  problem: str = "problem"  # a column
  answer: str = "answer"  # a column
  train: str = "train"  # the split for training
  evaluation: str = "test"  # the split for evaluation
  format: Format = chat  # plain, chat, Chat(...), FewShot(...) or a function of this type
  verifier: Verifier = mathematics.verify  # (texts, answers) -> verdicts
  max_prompt: int = 256  # tokens; longer prompts are left out
  stop: tuple[str, ...] = ()  # strings that end a response

  def examples(self, split: str, seed: int) -> Lazy:
    """The rows of a split in its order; the seed has no effect.

    Raises ImportError without `datasets`, OSError when the Hub cannot be reached, ValueError for a
    column that does not exist.
    """
    del seed
    part = (self.train, self.evaluation)[part_of(split)]
    try:
      import datasets
    except ImportError as error:
      raise ImportError("a data set of the Hub needs `pip install datasets`") from error
    try:
      rows = datasets.load_dataset(self.name, self.config or None, split=part)
    except OSError as error:
      raise OSError(f"data set {self.name!r}, split {part!r}: cannot be loaded from the Hub "
                    f"({error}); offline, use Jsonl(path)") from error
    for column in (self.problem, self.answer):
      if column not in rows.column_names:
        raise ValueError(f"{self.name}: no column {column!r}; choices: {rows.column_names}")
    make = lambda i: Example(i, str(rows[i][self.problem]), str(rows[i][self.answer]),
                             f"{self.name}/{part}:{i}")
    return Lazy(len(rows), make, f"{self!r}.examples({split!r})", listed=True)
