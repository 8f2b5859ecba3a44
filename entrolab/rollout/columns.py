"""Further columns that an engine fills on the host, out of the texts and tokens of its rows.

An objective names what it reads in `extra`; the trainer has the engine fill what the
strategy does not fill itself.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from entrolab.tasks import spelling
from entrolab.tasks.task import Task, Tokenizer
from entrolab.typing import Bool, Int
from entrolab.verify import vote


class Responses(NamedTuple):
  """The rows of this process's group, on the host."""
  texts: Sequence[str]  # of the responses
  tokens: Int[np.ndarray, "B T"]  # of the responses
  mask: Bool[np.ndarray, "B T"]  # which of them count
  size: int  # rows of a group
  places: Int[np.ndarray, " B"]  # of the rows in the batch


Filler = Callable[[Task, Tokenizer, Responses], np.ndarray]


def classes(task: Task, texts: Sequence[str], size: int) -> Int[np.ndarray, " B"]:
  """Of every row, which of the answers of its group it has; -1 without an answer.

  size: rows of a group. Equal answers (`task.key`) have equal ids, which count from 0 in the order
  of the rows.
  """
  ids = []
  for first in range(0, len(texts), size):
    group = [task.key(text) for text in texts[first:first + size]]
    ids += [-1 if answer is None else answer for answer in vote.cluster(group)]
  return np.asarray(ids, np.int32)


def cluster(task: Task, tokenizer: Tokenizer, responses: Responses) -> Int[np.ndarray, " B"]:
  """`classes` of the rows."""
  del tokenizer
  return classes(task, responses.texts, responses.size)


def think_end(task: Task, tokenizer: Tokenizer, responses: Responses) -> Int[np.ndarray, " B"]:
  """Position of the token at which the decoded text first has task.think_end; -1 without one."""
  ends = spelling.ends(task.think_end, tokenizer, responses.tokens, responses.mask)
  return np.where(ends.any(1), ends.argmax(1), -1).astype(np.int32)


def phase(task: Task, tokenizer: Tokenizer, responses: Responses) -> Int[np.ndarray, "B T"]:
  """The step of every token, from 0; one at which the decoded text has task.step_end is the last
  of its step."""
  ends = spelling.ends(task.step_end, tokenizer, responses.tokens, responses.mask)
  ended = np.cumsum(ends, axis=1)
  return np.pad(ended[:, :-1], ((0, 0), (1, 0))).astype(np.int32)


def trajectory(task: Task, tokenizer: Tokenizer, responses: Responses) -> Int[np.ndarray, " B"]:
  """A different id for every row, its place in the batch: each row is one trajectory."""
  del task, tokenizer
  return responses.places.astype(np.int32)


FILLERS: dict[str, Filler] = {
    "cluster": cluster, "think_end": think_end, "phase": phase, "trajectory": trajectory}


def fillers(names: Sequence[str]) -> dict[str, Filler]:
  """The functions that fill these columns. Raises TypeError for a column that none fills."""
  for name in names:
    if name not in FILLERS:
      raise TypeError(f"the rollout fills no column {name!r}; choices: {', '.join(FILLERS)}")
  return {name: FILLERS[name] for name in names}
