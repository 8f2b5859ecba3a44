"""Prompts in a deterministic order: Grain over any task, left padding, and stop tokens."""

import json
import logging
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from entrolab.tasks import spelling
from entrolab.tasks.task import Example, Lazy, Task, Tokenizer, chosen, opened

# An odd number near 2^32 over the golden ratio: its multiples modulo 2^32 lie far apart.
SPREAD = 2_654_435_761


def fitting(task: Task, tokenizer: Tokenizer, split: str, seed: int) -> Lazy:
  """The task's examples whose prompts have at most max_prompt tokens; `left_out` counts the others.

  Only listed examples are checked; generated problems fit by construction. Raises ValueError when
  no prompt fits.
  """
  source = task.examples(split, seed)
  if not source.listed:
    return source
  length = lambda at: len(opened(tokenizer, task.prompt(source[at], tokenizer)))
  lengths = [length(at) for at in range(len(source))]
  fits = [at for at, length in enumerate(lengths) if 0 < length <= task.max_prompt]
  if not fits:
    raise ValueError(f"{source!r}: none of {len(source)} prompts has at most "
                     f"max_prompt={task.max_prompt} tokens")
  empty = lengths.count(0)
  if len(fits) < len(source):
    logging.info("%r: %d of %d prompts have over %d tokens and are left out", source,
                 len(source) - len(fits) - empty, len(source), task.max_prompt)
  return chosen(source, fits, {
      f"have prompts of over max_prompt={task.max_prompt} tokens": len(source) - len(fits) - empty,
      "have prompts without a token": empty})


def evaluation(task: Task, tokenizer: Tokenizer, wanted: int, seed: int) -> Lazy:
  """The problems of every evaluation, at most `wanted`: drawn without replacement.

  They are the first examples of different questions, of all rows of a list, else of 1,024 +
  16 wanted draws; `left_out` counts those that repeat a question. Raises ValueError as `fitting`.
  """
  source = fitting(task, tokenizer, "eval", seed)
  limit = len(source) if source.listed else min(len(source), 1024 + 16 * wanted)
  places: dict[str, int] = {}  # question -> its first example
  read = 0
  while read < limit and len(places) < wanted:
    places.setdefault(task.question(source[read]), read)
    read += 1
  first = list(places.values())
  return Lazy(len(first), lambda at: source[first[at]], f"{source!r}[first {len(first)}]",
              listed=source.listed,
              left_out={**source.left_out, "repeat a problem": read - len(first)})


class Batches(Iterator[list[Example]]):
  """An endless iterator over batches of a Grain pipeline; `get_state` and `set_state` resume it.

  The state is JSON bytes that name the source, so that a checkpoint does not resume with other
  data. `grain.checkpoint.CheckpointSave` accepts this object.
  """

  def __init__(self, pipeline: grain.MapDataset, name: str, source: Lazy) -> None:
    self.source = source  # the examples of an epoch
    # read in the calling thread: making a prompt is cheap, and forks do not mix with threads
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._rows = iter(pipeline.to_iter_dataset(options))
    self.name = name

  def __next__(self) -> list[Example]:
    return next(self._rows)

  def get_state(self) -> bytes:
    """The position and the name of the source."""
    return json.dumps({"source": self.name, "position": self._rows.get_state()}).encode()

  def set_state(self, state: bytes) -> None:
    """Continues from a state. Raises ValueError for a state of other data, seed or batch size."""
    saved = json.loads(state)
    if saved["source"] != self.name:
      raise ValueError(f"the saved position is in {saved['source']}, this run reads {self.name}")
    self._rows.set_state(saved["position"])

  def start_prefetch(self) -> None:
    """Does nothing; Grain's restoring handler calls it."""


def iterator(task: Task, seed: int, prompts_per_step: int, *, tokenizer: Tokenizer | None = None,
             split: str = "train", places: Sequence[int] | None = None) -> Batches:
  """An endless iterator over batches of examples, `prompts_per_step` of them or those at `places`.

  Every epoch is shuffled differently, and so are those of other seeds. The prompts of a step, and
  their order, do not depend on who reads them: a process makes those of them that `row_groups`
  gives it. The last incomplete batch of an epoch is dropped, and no prompt is twice in a batch (its
  samples would be equal). With a tokenizer, prompts that are too long are left out. Raises
  ValueError when an epoch is shorter than a batch, or for a place that a batch does not have.
  """
  made = list(range(prompts_per_step) if places is None else places)
  if not all(0 <= place < prompts_per_step for place in made):
    raise ValueError(f"places {made} of {prompts_per_step} prompts a step: 0 to "
                     f"{prompts_per_step - 1}")
  if tokenizer is None:
    source = task.examples(split, seed)
  else:
    source = fitting(task, tokenizer, split, seed)
  if not 0 < prompts_per_step <= len(source):
    raise ValueError(f"{source!r}: {len(source)} examples, {prompts_per_step} prompts a step; a "
                     "step needs at least one prompt and takes each at most once")
  # batches are of indices, and examples are made last, so that a process makes no other's examples
  pipeline = (grain.MapDataset.range(len(source)).shuffle(seed=order_seed(seed))
              .batch(prompts_per_step, drop_remainder=True, batch_fn=list).repeat()
              .map(lambda rows: [source[int(rows[place])] for place in made]))
  name = f"{source!r} in the order of seed {seed}, {prompts_per_step} a step"
  return Batches(pipeline, name, source)


def order_seed(seed: int) -> int:
  """The seed of a run's shuffles: seed x SPREAD modulo 2^32.

  Grain shuffles epoch e by its seed + e, so that neighbouring seeds of runs would share all but one
  epoch. Of the multiples of SPREAD, those of the first 10,000 seeds are over 300,000 epochs apart.
  """
  return seed * SPREAD % 2**32


def padded(prompts: Sequence[Sequence[int]], length: int, pad_id: int
           ) -> tuple[np.ndarray, np.ndarray]:
  """Left-padded prompts: (tokens [P, length] int32, mask [P, length] bool).

  Raises ValueError for a prompt that is empty or longer than `length`.
  """
  tokens = np.full((len(prompts), length), pad_id, np.int32)
  mask = np.zeros((len(prompts), length), bool)
  for row, ids in enumerate(prompts):
    if not 0 < len(ids) <= length:
      raise ValueError(f"prompt {row} has {len(ids)} tokens; the task allows 1 to {length} "
                       "(task.max_prompt)")
    start = length - len(ids)
    tokens[row, start:] = ids
    mask[row, start:] = True
  return tokens, mask


def stop_ids(task: Task, tokenizer: Tokenizer) -> tuple[int, ...]:
  """The tokenizer's stop tokens, and every token that alone ends a stop string of the task.

  Strings that several tokens spell are found by `spelling.stops`. Raises ValueError for a stop
  string that no tokens spell.
  """
  found, _ = spelling.stops(task.stop, tokenizer, tokenizer.vocab_size)
  return tuple(dict.fromkeys((*tokenizer.stop_ids, *found)))
