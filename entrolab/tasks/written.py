"""Written problems: JSONL files, data sets of the Hugging Face Hub, formats of their prompts."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from entrolab.tasks.choices import lettered
from entrolab.tasks.task import (
    Example,
    Lazy,
    Task,
    Tokenizer,
    opened,
    part_of,
    stable_repr,
    without,
)
from entrolab.verify import Verdict, choice, exact, vote
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


@dataclasses.dataclass(frozen=True)
class Choice:
  """The verifier `choice.verify` for questions with other letters than A to E."""
  letters: str  # capitals, of all choices of all questions

  def __call__(self, texts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
    return choice.verify(texts, answers, letters=self.letters)


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


def read_jsonl(path: pathlib.Path) -> list[Example]:
  """The rows of a file: text under `problem` or `prompt`, and under `answer`.

  The `choices` of a row are lettered below its problem. Ids are line numbers from 0. Raises
  ValueError with file and line for a row that is not of this form, and for a file without rows.
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
      problem = lettered(problem, row.get("choices"), where)
      rows.append(Example(number - 1, problem, row["answer"], where))
  if not rows:
    raise ValueError(f"{path.name}: no rows")
  return rows


def check_references(rows: Sequence[Example], verifier: Verifier) -> None:
  """Raises ValueError with the place of a row (its source) whose reference cannot be verified
  against: it is empty, or the verifier refuses it beside an empty response.

  References are checked when they are read, not at the step that draws them.
  """
  for row in rows:
    if not row.answer.strip():
      raise ValueError(f"{row.source}: the reference {row.answer!r} is empty; give the row an "
                       "answer, or take it out")
  try:
    verifier([""] * len(rows), [row.answer for row in rows])
  except ValueError:
    for row in rows:  # which one it was
      try:
        verifier([""], [row.answer])
      except ValueError as error:
        reason = str(error).removeprefix("row 0: ")
        raise ValueError(f"{row.source}: {reason}") from None
    raise


# What a vote compares is read as the verifier reads it; another verifier's answers are mathematics.
_KEYS: dict[Verifier, Callable[[str], str | None]] = {
    mathematics.verify: vote.key, choice.verify: choice.letter, exact.verify_integer: exact.key,
    exact.verify_text: exact.text_key}


class _Formatted(Task, Protocol):
  """What tasks of written problems share.

  Rows are read and checked once, training's and evaluation's apart (`_read`). A row of training
  whose problem is one of the evaluation is left out of training, unless both are the same rows by
  the user's choice (`_shared`).
  """
  format: Format  # makes the prompt's text of (problem, tokenizer)
  verifier: Verifier  # makes verdicts of (texts, answers)
  __repr__ = stable_repr

  def _read(self, part: int) -> Sequence[Example]:
    """The checked rows of training, 0, or of evaluation, 1."""
    ...

  @property
  def _shared(self) -> bool:
    """Whether training and evaluation are named as the same rows."""
    ...

  def examples(self, split: str, seed: int) -> Lazy:
    """The rows in their order; the seed has no effect. Raises ValueError where training has none
    that is not of the evaluation."""
    del seed
    part = part_of(split)
    made = self._read(part)
    rows = Lazy(len(made), made.__getitem__, f"{self!r}.examples({split!r})", listed=True)
    if part or self._shared:
      return rows
    left = without(rows, {self.question(row) for row in self._read(1)}, self.question)
    if not len(left):
      raise ValueError(f"{self!r}: all {len(rows)} rows of training are problems of the evaluation")
    return left

  def question(self, example: Example) -> str:
    """The problem, whatever its blanks and capitals."""
    return " ".join(example.prompt.split()).casefold()

  def identity(self) -> str:
    """A sha256 of the problems and answers as read, training's and evaluation's."""
    rows = [[(row.id, row.prompt, row.answer) for row in self._read(part)] for part in (0, 1)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the formatted problem."""
    return opened(tokenizer, tokenizer.encode(self.format(example.prompt, tokenizer)))

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """By the task's verifier, against the answers."""
    return list(self.verifier(texts, [e.answer for e in examples]))

  def key(self, text: str) -> str | None:
    """The answer as the task's verifier reads it: what a vote compares."""
    if isinstance(self.verifier, Choice):
      return choice.letter(text, letters=self.verifier.letters)
    return _KEYS.get(self.verifier, vote.key)(text)


@dataclasses.dataclass(frozen=True, repr=False)
class Jsonl(_Formatted):
  """Problems of JSONL files: `{"problem" | "prompt": text, "answer": text}` on each line.

  A row of training whose problem is one of the evaluation is left out; naming one file as both
  evaluates on what is trained on, and the run says so.
  """
  path: str  # absolute, or relative to the folder of ENTROLAB_DATA
  eval_path: str = ""  # of evaluation; empty: every tenth row of `path` is for evaluation
  format: Format = plain  # plain, chat, Chat(...), FewShot(...) or a function of this type
  verifier: Verifier = mathematics.verify  # (texts, answers) -> verdicts
  max_prompt: int = 256  # tokens; longer prompts are left out, and counted
  stop: tuple[str, ...] = ()  # strings that end a response

  @property
  def _shared(self) -> bool:
    return self.eval_path == self.path

  def _read(self, part: int) -> Sequence[Example]:
    name = self.eval_path if part and self.eval_path else self.path
    path = data_path(name)
    stat = path.stat()
    rows = _rows(path, name, self.verifier, (stat.st_mtime_ns, stat.st_size))
    if self.eval_path:
      return rows
    return [row for row in rows if (row.id % 10 == 9) == bool(part)]


@functools.lru_cache(maxsize=8)
def _rows(path: pathlib.Path, name: str, verifier: Verifier, version: tuple[int, int]
          ) -> list[Example]:
  """The checked rows of a file, under the name that the task has for it; version: of the file."""
  del version
  rows = read_jsonl(path)
  check_references(rows, verifier)
  return [dataclasses.replace(row, source=f"{name}:{row.id + 1}") for row in rows]


@dataclasses.dataclass(frozen=True, repr=False)
class Hub(_Formatted):
  """A data set of the Hugging Face Hub; needs `datasets` and a connection. Rows as of `Jsonl`."""
  name: str  # on the Hub
  config: str = ""  # the configuration, for a data set of several
  problem: str = "problem"  # a column
  answer: str = "answer"  # a column
  train: str = "train"  # the split for training
  evaluation: str = "test"  # the split for evaluation
  format: Format = chat  # plain, chat, Chat(...), FewShot(...) or a function of this type
  verifier: Verifier = mathematics.verify  # (texts, answers) -> verdicts
  max_prompt: int = 256  # tokens; longer prompts are left out, and counted
  stop: tuple[str, ...] = ()  # strings that end a response

  @property
  def _shared(self) -> bool:
    return self.train == self.evaluation

  def _read(self, part: int) -> Sequence[Example]:
    """Raises ImportError without `datasets`, OSError when the Hub cannot be reached, ValueError for
    a column that does not exist, or a row without a problem or a reference."""
    return _hub_rows(self, self.evaluation if part else self.train)


def _hub_rows(task: Hub, split: str) -> list[Example]:
  """The checked rows of a split; a column `choices` is lettered below the problems."""
  try:
    import datasets
  except ImportError as error:
    raise ImportError("a data set of the Hub needs `pip install datasets`") from error
  return _loaded(task, split, datasets.load_dataset)


@functools.lru_cache(maxsize=4)
def _loaded(task: Hub, split: str, load: Callable[..., Any]) -> list[Example]:
  """`_hub_rows`, by the library's function that loads a data set; kept, since reading takes long.
  """
  try:
    rows = load(task.name, task.config or None, split=split)
  except OSError as error:
    raise OSError(f"data set {task.name!r}, split {split!r}: cannot be loaded from the Hub "
                  f"({error}); offline, use Jsonl(path)") from error
  for column in (task.problem, task.answer):
    if column not in rows.column_names:
      raise ValueError(f"{task.name}: no column {column!r}; choices: {rows.column_names}")
  made = []
  for at in range(len(rows)):
    row, where = rows[at], f"{task.name}/{split}:{at}"
    problem = lettered(_text(row[task.problem], task.problem, where), row.get("choices"), where)
    made.append(Example(at, problem, _text(row[task.answer], task.answer, where), where))
  check_references(made, task.verifier)
  return made


def _text(value: Any, column: str, where: str) -> str:
  """The text of a column, or of its number. Raises ValueError, with the place, for anything else:
  `str` would make words of a null or of a list."""
  number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  text = str(value) if number or isinstance(value, str) else ""
  if not text.strip():
    raise ValueError(f"{where}: {column!r} must be text or a number and is {value!r}"[:200])
  return text
