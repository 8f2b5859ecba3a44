"""Which processes hold which rows of a batch, and how processes learn what only one of them knows.

The rule: a row lies at its place in the step's list, whatever the order of devices and processes;
processes that hold the same shards of rows are one group, whose lead does what the host does with
these rows, and tells the other members, so that copies of a row never differ.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from entrolab import sharding
from entrolab.typing import Array, Int

SMALLEST = 1024  # bytes of a message between processes at least, doubled until it fits


@dataclasses.dataclass(frozen=True)
class RowGroups:
  """The groups of the processes of a run. In all of its methods that exchange something, every
  process of the run must take part, in the same order."""
  shards: tuple[tuple[int, ...], ...]  # of rows, that each group holds, ascending
  members: tuple[tuple[int, ...], ...]  # processes of each group, ascending; the first one leads
  index: int = 0  # the group of this process
  process: int = 0  # this process

  @property
  def count(self) -> int:
    """How many groups there are."""
    return len(self.shards)

  @property
  def leads(self) -> list[int]:
    """The processes that lead, by group."""
    return [processes[0] for processes in self.members]

  @property
  def is_lead(self) -> bool:
    """Whether this process leads its group."""
    return self.process == self.leads[self.index]

  @property
  def shared(self) -> bool:
    """Whether any row is held by several processes."""
    return any(len(processes) > 1 for processes in self.members)

  def places(self, total: int, group: int | None = None) -> Int[np.ndarray, " n"]:
    """The places, of `total` rows or prompts of a step, that a group holds (None: this one's),
    ascending. Raises ValueError where the rows do not divide over the shards."""
    ways = sum(map(len, self.shards))
    if total % ways:
      raise ValueError(f"{total} rows do not divide over data x fsdp={ways} devices")
    each = total // ways
    first = np.asarray(self.shards[self.index if group is None else group]) * each
    return (first[:, None] + np.arange(each)).ravel()

  def of_lead(self, make: Callable[[], Any]) -> Any:
    """The JSON value that `make` gives to the lead of this process's group, in every member.

    Two verifiers may decide otherwise at a deadline: only the lead calls `make`.
    """
    if not self.shared:
      return make()
    mine = json.dumps(make()).encode() if self.is_lead else b""
    return json.loads(exchanged(mine)[self.leads[self.index]])

  def arrays_of_lead(self, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`of_lead` of named arrays."""
    if not self.shared:
      return dict(make())
    buffer = io.BytesIO()
    if self.is_lead:
      np.savez(buffer, allow_pickle=False, **dict(make()))
    message = exchanged(buffer.getvalue())[self.leads[self.index]]
    with np.load(io.BytesIO(message), allow_pickle=False) as file:
      return {name: file[name] for name in file.files}

  def of_all(self, mine: Sequence[Any]) -> list[Any]:
    """Each group passes one JSON value a row, in the order of its places; the values of all rows,
    by their places."""
    if self.count == 1:
      return list(mine)
    messages = exchanged(json.dumps(list(mine)).encode() if self.is_lead else b"")
    values: list[Any] = [None] * (len(mine) * self.count)
    for group, lead in enumerate(self.leads):
      for place, value in zip(self.places(len(values), group), json.loads(messages[lead]),
                              strict=True):
        values[place] = value
    return values

  def summed(self, counts: Mapping[str, int]) -> dict[str, int]:
    """Counts of the rows of this group -> counts of all rows."""
    if self.count == 1:
      return dict(counts)
    messages = exchanged(json.dumps(dict(counts)).encode() if self.is_lead else b"")
    parts = [json.loads(messages[lead]) for lead in self.leads]
    return {name: sum(part[name] for part in parts) for name in counts}

  def interleaved(self, mine: np.ndarray, total: int) -> np.ndarray:
    """Group g of n passes rows g, g + n, g + 2 n, ... of `total`; returns all, in order."""
    if self.count == 1:
      return mine
    # the last groups may have one row less, and what is gathered must be of equal length
    short = -(-total // self.count) - len(mine)
    filled = np.concatenate([mine, np.zeros((short, *mine.shape[1:]), mine.dtype)])
    # as bytes: arrays of 64 bits would lose half of them on the way
    raw = np.ascontiguousarray(filled).view(np.uint8).reshape(len(filled), -1)
    parts = np.asarray(multihost_utils.process_allgather(raw))[self.leads]
    rows = np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(-1, raw.shape[1])
    return rows.view(mine.dtype).reshape(-1, *mine.shape[1:])[:total]


ALONE = RowGroups(((0,),), ((0,),))  # one process with one shard of rows


def divided(processes: Int[np.ndarray, "R n"], process: int) -> RowGroups | None:
  """The groups, where each of R shards of rows is on the devices of these processes; None where
  two processes share some rows and not others, or some hold more rows than others."""
  shards: dict[int, set[int]] = {}
  for shard, holders in enumerate(processes.tolist()):
    for holder in holders:
      shards.setdefault(holder, set()).add(shard)
  members: dict[tuple[int, ...], list[int]] = {}
  for holder in sorted(shards):
    members.setdefault(tuple(sorted(shards[holder])), []).append(holder)
  if sum(map(len, members)) != len(processes) or len({len(held) for held in members}) > 1:
    return None
  ordered = sorted(members)
  return RowGroups(tuple(ordered), tuple(tuple(members[held]) for held in ordered),
                   ordered.index(tuple(sorted(shards[process]))), process)


@functools.lru_cache(maxsize=8)
def of(mesh: Mesh) -> RowGroups:
  """The groups of a mesh. Raises ValueError, with the meshes of as many devices that have some,
  where rows do not divide into groups."""
  found = divided(sharding.row_processes(mesh), jax.process_index())
  if found is None:
    devices = sorted(mesh.devices.ravel(), key=lambda device: device.id)
    sizes = dict(mesh.shape)
    raise ValueError(
        f"mesh {sizes}: some processes share a part of their rows, or hold more than others, so "
        "that nobody could say which of them reads and verifies a row; choices for (data, fsdp, "
        f"tensor): {', '.join(map(str, dividing(devices))) or 'none'}")
  return found


def dividing(devices: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
  """The sizes of meshes over all of these devices whose rows divide into groups."""
  count = len(devices)
  for tensor in (n for n in range(1, count + 1) if count % n == 0):
    for fsdp in (n for n in range(1, count // tensor + 1) if count // tensor % n == 0):
      sizes = (count // tensor // fsdp, fsdp, tensor)
      try:
        placed = sharding.arranged(sizes, devices)
      except (ValueError, NotImplementedError):  # no such mesh on this torus
        continue
      if divided(sharding.processes_of(placed), devices[0].process_index) is not None:
        yield sizes


def exchanged(message: bytes) -> list[bytes]:
  """The messages of all processes, by process; they may differ in length."""
  if jax.process_count() == 1:
    return [message]
  lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(message), np.int32)))
  # of few sizes, since each of them compiles a program
  size = SMALLEST
  while size < lengths.max():
    size *= 2
  padded = np.zeros(size, np.uint8)
  padded[:len(message)] = np.frombuffer(message, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def of_array(rows: Array) -> RowGroups:
  """The groups of the mesh that an array of rows is on."""
  return ALONE if jax.process_count() == 1 else of(_mesh(rows))


def everywhere(tree: Any) -> Any:
  """Global arrays on one mesh, whole and as numpy arrays, in every process."""
  if jax.process_count() > 1:
    tree = _gathered(_mesh(jax.tree.leaves(tree)[0]))(tree)
  return jax.tree.map(np.asarray, tree)


def _mesh(array: Array) -> Mesh:
  """Of an array that several processes hold. Raises TypeError for one that is on no mesh."""
  if not isinstance(array.sharding, NamedSharding):
    raise TypeError(f"an array on {array.sharding}, which is no mesh of all processes")
  return array.sharding.mesh  # pyright: ignore[reportReturnType]


@functools.lru_cache(maxsize=8)
def _gathered(mesh: Mesh) -> Callable[[Any], Any]:
  return jax.jit(lambda tree: tree, out_shardings=sharding.whole(mesh))
