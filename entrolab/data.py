"""Prompts in a deterministic order: tasks over files and the hub, and Grain over any task.

Where problems are made by a rule, see `tasks`; the protocol of a task is told there.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from entrolab.tasks import Arithmetic, Countdown, Example, Lazy, ReasoningGym, part_of
from entrolab.verify import Verdict
from entrolab.verify import math as mathematics

__all__ = ["Arithmetic", "Batches", "Chat", "Countdown", "Example", "FewShot", "Hub", "Jsonl",
           "Lazy", "ReasoningGym", "Task", "Tokenizer", "chat", "fitting", "iterator", "padded",
           "plain", "stop_ids"]

BOX = "Let's think step by step and output the final answer within \\boxed{}."


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
  """What a run asks of a task; see `tasks`."""

  @property
  def max_prompt(self) -> int:
    """Tokens of the longest prompt."""
    ...

  @property
  def stop(self) -> tuple[str, ...]:
    """Strings that end a response besides the tokenizer's own end."""
    ...

  def examples(self, split: str, seed: int) -> Lazy:
    """A sequence whose repr is stable."""
    ...

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """Token ids."""
    ...

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """One verdict a text."""
    ...


Format = Callable[[str, Tokenizer], str]
Verifier = Callable[[Sequence[str], Sequence[str]], list[Verdict]]


def plain(problem: str, tokenizer: Tokenizer) -> str:
  """`Problem: ...`, and `Answer:` on the next line, for a model without a chat format."""
  del tokenizer
  return f"Problem: {problem}\nAnswer:"


def chat(problem: str, tokenizer: Tokenizer) -> str:
  """The tokenizer's template around the problem and the usual request for a box."""
  return tokenizer.chat([{"role": "user", "content": f"{problem}\n{BOX}"}])


@dataclasses.dataclass(frozen=True)
class Chat:
  """The tokenizer's template around `{problem}` in `user`, after a system message if given."""
  user: str = "{problem}"
  system: str = ""

  def __call__(self, problem: str, tokenizer: Tokenizer) -> str:
    messages = [{"role": "system", "content": self.system}] if self.system else []
    content = self.user.replace("{problem}", problem)
    return tokenizer.chat([*messages, {"role": "user", "content": content}])


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Solved (problem, solution) pairs in the plain format, a blank line after each, then the
  problem."""
  solved: tuple[tuple[str, str], ...]

  def __call__(self, problem: str, tokenizer: Tokenizer) -> str:
    shown = [f"{plain(p, tokenizer)} {solution}\n\n" for p, solution in self.solved]
    return "".join(shown) + plain(problem, tokenizer)


def _shown(task: Any) -> str:
  """A dataclass's repr with functions by name, so that it has no addresses in it."""
  name = lambda f: f"{f.__module__.split('.')[-1]}.{f.__qualname__}"
  values = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
  text = [f"{key}={name(v) if hasattr(v, '__qualname__') else repr(v)}"
          for key, v in values.items()]
  return f"{type(task).__name__}({', '.join(text)})"


def data_path(name: str) -> pathlib.Path:
  """An absolute path as it is, another one below the folder that ENTROLAB_DATA names.

  Raises FileNotFoundError that says which of the two it was.
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
  """Rows with text under `problem` or `prompt`, and under `answer`; `choices`, where a row has
  them, are lettered below the problem. Raises ValueError that names file, line and what is missing.
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


class _Formatted:
  """What tasks of written problems share; fields `format` and `verifier` come from the task."""
  format: Format
  verifier: Verifier
  __repr__ = _shown  # type: ignore[assignment]

  def prompt(self, example: Example, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the formatted problem."""
    return tokenizer.encode(self.format(example.prompt, tokenizer))

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """By the task's verifier, against the answers."""
    return list(self.verifier(texts, [e.answer for e in examples]))


@dataclasses.dataclass(frozen=True, repr=False)
class Jsonl(_Formatted):
  """Problems of JSONL files: `{"problem" | "prompt": text, "answer": text}` a line.

  path, eval_path: absolute, or below ENTROLAB_DATA; without eval_path every tenth row of `path`
  is for evaluation. format: plain, chat, Chat(...), FewShot(...) or any function of (problem,
  tokenizer); verifier: a function of (texts, answers).
  """
  path: str
  eval_path: str = ""
  format: Format = plain
  verifier: Verifier = mathematics.verify
  max_prompt: int = 256
  stop: tuple[str, ...] = ()

  def examples(self, split: str, seed: int) -> Lazy:
    """The rows in the file's order; ids are line numbers from 0. The seed changes nothing."""
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
  """A data set of the Hugging Face hub by name, when online: `problem` and `answer` are columns,
  `train` and `evaluation` splits, `config` its configuration if it has several.
  """
  name: str
  config: str = ""
  problem: str = "problem"
  answer: str = "answer"
  train: str = "train"
  evaluation: str = "test"
  format: Format = chat
  verifier: Verifier = mathematics.verify
  max_prompt: int = 256
  stop: tuple[str, ...] = ()

  def examples(self, split: str, seed: int) -> Lazy:
    """The rows of a split, in its order. Raises ImportError without `datasets`, OSError when the
    hub cannot be reached, ValueError for a column that is not there."""
    del seed
    part = (self.train, self.evaluation)[part_of(split)]
    try:
      import datasets
    except ImportError as error:
      raise ImportError("a data set of the hub needs `pip install datasets`") from error
    try:
      rows = datasets.load_dataset(self.name, self.config or None, split=part)
    except OSError as error:
      raise OSError(f"data set {self.name!r}, split {part!r}: not to be had from the hub "
                    f"({error}); offline, use Jsonl(path)") from error
    for column in (self.problem, self.answer):
      if column not in rows.column_names:
        raise ValueError(f"{self.name}: no column {column!r}; choices: {rows.column_names}")
    make = lambda i: Example(i, str(rows[i][self.problem]), str(rows[i][self.answer]),
                             f"{self.name}/{part}:{i}")
    return Lazy(len(rows), make, f"{self!r}.examples({split!r})", listed=True)


def fitting(task: Task, tokenizer: Tokenizer, split: str, seed: int) -> Lazy:
  """The task's examples whose prompts have at most max_prompt tokens; says how many have not.

  Only lists of written problems are looked through; made problems fit by construction.
  """
  source = task.examples(split, seed)
  if not source.listed:
    return source
  length = lambda at: len(task.prompt(source[at], tokenizer))
  fits = [at for at in range(len(source)) if 0 < length(at) <= task.max_prompt]
  if not fits:
    raise ValueError(f"{source!r}: none of {len(source)} prompts has at most "
                     f"max_prompt={task.max_prompt} tokens")
  if len(fits) == len(source):
    return source
  logging.info("%r: %d of %d prompts have over %d tokens and are left out", source,
               len(source) - len(fits), len(source), task.max_prompt)
  return Lazy(len(fits), lambda at: source[fits[at]], f"{source!r}[{len(fits)} fit]", listed=True)


class Batches(Iterator[list[Example]]):
  """Endless lists of examples over a Grain pipeline; `get_state` and `set_state` resume it.

  The state is JSON bytes that name the source, so that a checkpoint does not resume with other
  data; `grain.checkpoint.CheckpointSave` takes this object as it is.
  """

  def __init__(self, pipeline: grain.MapDataset, name: str) -> None:
    # read in the calling thread: making a prompt is cheap, and threads do not mix with forks
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._rows = iter(pipeline.to_iter_dataset(options))
    self.name = name

  def __next__(self) -> list[Example]:
    return next(self._rows)

  def get_state(self) -> bytes:
    """Where the iterator stands."""
    return json.dumps({"source": self.name, "position": self._rows.get_state()}).encode()

  def set_state(self, state: bytes) -> None:
    """Continues from a state. Raises ValueError when it is of other data, seed or batch size."""
    saved = json.loads(state)
    if saved["source"] != self.name:
      raise ValueError(f"the saved position is in {saved['source']}, this run reads {self.name}")
    self._rows.set_state(saved["position"])

  def start_prefetch(self) -> None:
    """Nothing: asked for by Grain's restoring handler."""


def iterator(task: Task, seed: int, prompts_per_step: int, *, tokenizer: Tokenizer | None = None,
             split: str = "train", process_index: int = 0, process_count: int = 1) -> Batches:
  """Lists of prompts_per_step / process_count examples: shuffled anew each epoch, for ever.

  Process p makes rows p n to (p + 1) n of each step's batch, so that a step's prompts do not depend
  on the number of processes. An epoch's last incomplete batch is dropped, and no prompt is twice
  in a batch (its samples would be equal). With a tokenizer, prompts that are too long are left out.
  Raises ValueError when an epoch is under one batch or processes do not divide the batch.
  """
  if not 0 <= process_index < process_count or prompts_per_step % process_count:
    raise ValueError(f"process {process_index} of {process_count} with {prompts_per_step} prompts "
                     "a step: the number of processes must divide the prompts")
  source = task.examples(split, seed) if tokenizer is None else fitting(task, tokenizer, split,
                                                                        seed)
  if not 0 < prompts_per_step <= len(source):
    raise ValueError(f"{source!r}: {len(source)} examples, {prompts_per_step} prompts a step; a "
                     "step needs at least one prompt and takes each at most once")
  each = prompts_per_step // process_count
  own = slice(process_index * each, (process_index + 1) * each)
  # indices are batched and examples made from them, so that a process makes its own alone
  pipeline = (grain.MapDataset.range(len(source)).shuffle(seed=seed)
              .batch(prompts_per_step, drop_remainder=True, batch_fn=list).repeat()
              .map(lambda rows: [source[int(at)] for at in rows[own]]))
  return Batches(pipeline, f"{source!r} shuffled by {seed}, {prompts_per_step} a step")


def padded(prompts: Sequence[Sequence[int]], length: int, pad_id: int
           ) -> tuple[np.ndarray, np.ndarray]:
  """Left-padded (tokens [P, length] int32, mask [P, length]). Raises ValueError for a prompt that
  is empty or longer."""
  tokens = np.full((len(prompts), length), pad_id, np.int32)
  mask = np.zeros((len(prompts), length), bool)
  for row, ids in enumerate(prompts):
    if not 0 < len(ids) <= length:
      raise ValueError(f"prompt {row} has {len(ids)} tokens; the task allows 1 to {length} "
                       "(task.max_prompt)")
    tokens[row, length - len(ids):], mask[row, length - len(ids):] = ids, True
  return tokens, mask


def stop_ids(task: Task, tokenizer: Tokenizer) -> tuple[int, ...]:
  """The tokenizer's stop tokens, and every token whose text holds one of the task's stop strings
  (a newline ends a response also as part of a longer token).

  Raises ValueError for a stop string that no token holds.
  """
  found = list(tokenizer.stop_ids)
  for text in task.stop:
    ids = [at for at, piece in enumerate(_pieces(tokenizer)) if text in piece]
    if not ids:
      raise ValueError(f"no token of {tokenizer.name} holds the stop string {text!r}")
    found += ids
  return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=2)
def _pieces(tokenizer: Tokenizer) -> tuple[str, ...]:
  return tuple(tokenizer.decode([at]) for at in range(tokenizer.vocab_size))
