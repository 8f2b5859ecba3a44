"""Good trajectories of earlier steps, trained on once more beside the rows of a step (SPEAR).

`methods.spear.Replay` has the rules of the buffer. Here it gets its place in the loop: what is due
comes as further rows of every update, with the log-probs of the policy that drew it, and what was
trained on is admitted. Shapes never change: a step without a replay has the same rows, empty.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from entrolab import keys, row_groups, sharding
from entrolab.batch import Batch
from entrolab.follow import Number
from entrolab.methods import spear
from entrolab.rollout.plain import Plain
from entrolab.rollout.strategy import Feature, Request, Rollout, Strategy

Host = Mapping[str, np.ndarray]
AGAIN = ("adv", "known", "ref_logp")  # columns that belong to a step and not to a row
NARROW = {"int64": np.int32, "float64": np.float32}  # what a checkpoint would make of them


def groups_for(size: int) -> Number:
  """The fewest groups in which `size` replayed rows have room, whole ones in every update and
  whole rows in every micro-batch."""
  def of(experiment: Any) -> int:
    samples = experiment.sampling.samples
    updates, micro = experiment.training.updates, experiment.training.micro
    groups = -(-size // (samples * updates)) * updates
    while groups // updates * samples % micro:
      groups += updates
    return groups

  return Number(f"groups for {size} replayed rows", of)


@dataclasses.dataclass(frozen=True)
class Replay(Strategy):
  """The rows of `inner`, and `prompts` further groups of G for what `buffer` replays.

  Columns [B] besides those of `inner`: replayed; usable, rows that ended, do not repeat themselves
  and are readable text; tool_calls, 0 where `inner` counts none. A replayed row has the columns
  that it was trained on with, old_logp above all, and its recalibrated advantage.

  The buffer takes the known rows of groups that have an advantage, and the means of their rewards,
  with the verdicts that they were learned from: nothing is verified again. Not of groups that
  the objective left out, nor of those of equal rewards, whose means the official code stores
  where its filter has room. The draw of what is replayed is keyed by (run seed, step). The buffer
  is of the rows of all processes, each of which has the whole of it.
  """
  inner: Strategy = Plain()  # makes the new rows
  buffer: spear.Replay = spear.Replay(size=64, tools=False)  # which rows are stored and replayed
  prompts: int = 8  # groups of G rows that a step has for a replay

  @property
  def engine(self) -> Callable[..., Any]:
    """What samples and verifies, of `inner`."""
    return self.inner.engine

  @property
  def columns(self) -> tuple[str, ...]:
    """The columns that are filled here and by `inner`."""
    return tuple(dict.fromkeys((*self.inner.columns, "replayed", "usable", "tool_calls")))

  @property
  def samples(self) -> int:
    """Rows of a group, of `inner`."""
    return self.inner.samples

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """What `inner` does not support."""
    return {**super().unsupported, **self.inner.unsupported}

  def groups(self, prompts: int) -> int:
    """Groups of new rows, as of `inner`."""
    return self.inner.groups(prompts)

  def positions(self, prompt: int, response: int) -> int:
    """Positions of a row at most, as of `inner`."""
    return self.inner.positions(prompt, response)

  def further_rows(self, samples: int, updates: int, micro: int) -> int:
    """Rows that every update has for a replay.

    Raises ValueError where the further groups have no room for what may be replayed, or do not
    divide into the updates and micro-batches of a rollout.
    """
    rows = self.prompts * samples
    if self.prompts < 1 or self.prompts % updates or rows // updates % micro:
      raise ValueError(f"Replay(prompts={self.prompts}): whole groups of {samples} for each of "
                       f"training.updates={updates}, in training.micro={micro} parts; choices: "
                       f"{[n * updates for n in range(1, 65) if n * samples % micro == 0][:4]}")
    if not 1 <= self.buffer.size <= rows:
      raise ValueError(f"Replay(prompts={self.prompts}) x {samples} samples has room for {rows} "
                       f"rows, but buffer.size={self.buffer.size}")
    return rows // updates

  def __call__(self, engine: Any, request: Request) -> Rollout:
    """The verified rows of one step; `replay`: the further rows, `learned`: the next host state.

    counts: stored, rows in the buffer before this step; replayed, how many of them come now.
    """
    rollout, samples = self.inner(engine, request), request.sampling.samples
    batch = rollout.batch.replace(
        **{name: engine.place(x) for name, x in _flags(rollout).items()})
    state = unpacked(request.host, self.buffer)
    stored = len(state["rows"].get("step", ()))
    # numpy's generator: the rule of the buffer runs on the host, between steps
    rng = np.random.default_rng(keys.host_seed(request.key, request.step))
    due, state = self.buffer.replay(state, rng.permutation)
    # the rows that are due are known to every process, and lie wherever there is room
    on_rows = sharding.rows(engine.mesh)
    replay = jax.tree.map(lambda x: sharding.put(x, on_rows),
                          self.further(batch, due or {}, samples))
    counts = {"stored": stored, "replayed": len(due["step"]) if due else 0}
    return dataclasses.replace(
        rollout, batch=batch, replay=replay, counts={**rollout.counts, **counts},
        learned=functools.partial(self.learned, state, request.step, samples=samples))

  def further(self, like: Batch, due: spear.Rows, samples: int) -> Batch:
    """`prompts` groups with the columns of `like`, rewards and adv: the rows that are due, dealt
    over the groups and hence over the updates, and rows with nothing in their masks."""
    count = self.prompts * samples
    columns: spear.Rows = {name: np.zeros((count, *x.shape[1:]), x.dtype)
                           for name, x in like.columns().items()}
    columns["known"] = np.ones(count, bool)  # what was not known has not been stored
    columns["rewards"] = np.zeros(count, np.float32)
    columns["adv"] = np.zeros((count, like.tokens.shape[1]), np.float32)
    if due:
      at = np.arange(len(due["step"]))
      places = at % self.prompts * samples + at // self.prompts
      for name in columns.keys() - set(AGAIN):
        columns[name][places] = due[name]
      columns["adv"][places] = np.where(due["mask"], due["row_adv"][:, None], 0.0)
      columns["replayed"][places] = True
    columns["group"] = like.group.shape[0] // samples + np.arange(count, dtype=np.int32) // samples
    return Batch().replace(**columns)

  def learned(self, state: dict[str, Any], step: int, batch: Batch, *, samples: int) -> Host:
    """The next host state, after `step` was trained on the new rows of `batch`.

    state: of the buffer, after what was due has left it. Raises ValueError without advantages.
    """
    if batch.adv is None or batch.rewards is None:
      raise ValueError("Replay admits rows by their advantage, and the objective has none before "
                       "it reads the current policy; put grpo.centred_advantage first")
    rows = row_groups.everywhere(batch.columns())
    mask = rows["mask"] & rows["known"][:, None]
    worth = np.where(mask, rows["adv"], 0.0).sum(1) / np.maximum(mask.sum(1), 1)
    live = np.repeat((worth.reshape(-1, samples) != 0.0).any(1), samples)
    rows |= {"row_adv": worth.astype(np.float32), "usable": rows["usable"] & mask.any(1)}
    rows = {name: x[live] for name, x in rows.items() if name not in AGAIN}
    state = self.buffer.admit(state, step, rows, size=samples)
    steps = min(self.buffer.tolerance, 10) + 2  # stale rows leave before those of a step come
    return packed(state, steps * len(mask), self.buffer.baseline + len(mask) // samples)


def _flags(rollout: Rollout) -> dict[str, np.ndarray]:
  """Columns of new rows."""
  batch = rollout.batch
  tokens, mask, finished = sharding.local((batch.tokens, batch.mask, batch.finished))
  fine = [not spear.repeats(row[on]) and "\N{REPLACEMENT CHARACTER}" not in text
          for row, on, text in zip(tokens, mask, rollout.texts, strict=True)]
  flags = {"replayed": np.zeros(len(mask), bool), "usable": finished & np.asarray(fine)}
  if "tool_calls" not in batch.extra:
    flags["tool_calls"] = np.zeros(len(mask), np.int32)
  return flags


def packed(state: dict[str, Any], rows: int, groups: int) -> Host:
  """The state of a buffer as arrays of 32 bits whose shapes never change, for a checkpoint:
  `rows` and `groups` of them, of which the first count.rows and count.groups are filled."""
  host = {}
  for part, room in (("rows", rows), ("groups", groups)):
    filled = state[part]
    count = len(filled["step"])
    if count > room:
      raise ValueError(f"a replay buffer with {count} {part} does not fit into {room}")
    for name, x in filled.items():
      host[f"{part}.{name}"] = np.zeros((room, *x.shape[1:]), NARROW.get(x.dtype.name, x.dtype))
      host[f"{part}.{name}"][:count] = x
    host[f"count.{part}"] = np.asarray(count, np.int32)
  return host


def unpacked(host: Host, buffer: spear.Replay) -> dict[str, Any]:
  """The inverse of `packed`; of nothing, an empty buffer."""
  if not host:
    return buffer.init()
  state = {}
  for part in ("rows", "groups"):
    count = int(host[f"count.{part}"])
    arrays = {name.removeprefix(f"{part}."): x[:count] for name, x in host.items()
              if name.startswith(f"{part}.")}
    # the rule of the buffer knows that it is empty by rows without columns
    state[part] = arrays if count or part == "groups" else {}
  return state
