"""The whole run in one checkpoint: state, data position, metrics cursor, configuration.

Orbax writes asynchronously and renames when done, so that a checkpoint is there whole or not at
all. Leaves are stored by their path, with shape, type and a fingerprint of their bits: a checkpoint
that is not whole is passed over loudly, and moved aside once an older one has been read.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from entrolab import sharding
from entrolab.experiment import Saving
from entrolab.trainer.state import by_path, names, not_finite, shortened

COMMITTED = ("commit_success.txt", "_CHECKPOINT_METADATA")  # orbax writes them last
KEPT = ("params.", "opt.")  # prefixes of the leaves that must be finite
UNFINISHED = ".orbax-checkpoint-tmp"


def _bits(x: jax.Array) -> jax.Array:
  """The fingerprint of one leaf."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
  # the index of every element in the whole array, so that the sum does not depend on its sharding
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place * jnp.uint32(size) + along
  # an odd factor: no change of a single bit is 0 mod 2^32, and exchanged elements are noticed too
  odd = (place * jnp.uint32(2654435769) << 1) | jnp.uint32(1)
  return (bits.astype(jnp.uint32) * odd).sum(dtype=jnp.uint32)


@jax.jit
def fingerprints(flat: dict[str, Any]) -> dict[str, jax.Array]:
  """Of every leaf, sum_i bits_i odd_i mod 2^32: one flipped bit always changes it, the sharding
  of the leaf never does, and nothing leaves its device."""
  return {name: _bits(x) for name, x in flat.items()}


def fingerprint(tree: Any) -> int:
  """The fingerprint of a whole tree; of replicated arrays, of the copies in this process."""
  return sum(int(x) for x in fingerprints(by_path(tree)).values()) % 2**32


def _described(flat: dict[str, Any]) -> dict[str, list[Any]]:
  """[shape, type, fingerprint] of every leaf, as the meta of a checkpoint has them."""
  bits = fingerprints(flat)
  return {name: [list(x.shape), str(x.dtype), int(bits[name])] for name, x in flat.items()}


def mismatch(saved: dict[str, list[Any]], wanted: dict[str, Any]) -> str | None:
  """The first leaf of a checkpoint that does not fit this run, or None. saved: as in its meta."""
  for name, leaf in wanted.items():
    if name not in saved:
      new = sorted(saved.keys() - wanted.keys())
      return f"has no leaf {name}" + (f"; has {', '.join(new[:3])} instead" if new else "")
    shape, dtype, _ = saved[name]
    if shape != list(leaf.shape) or dtype != str(leaf.dtype):
      return (f"leaf {name} is {dtype}{shape} there and {leaf.dtype}{list(leaf.shape)} in this "
              "run")
  return None


class Checkpoints:
  """Checkpoints of a run by step, of which the newest `saving.keep` stay.

  Without `saving` they are only read. Raises OSError when another process is writing there.
  """

  def __init__(self, folder: pathlib.Path, saving: Saving | None = None):
    self.folder = folder.resolve()
    self.broken = self.folder.with_suffix(".broken")  # where `restore` moves what is not whole
    self.lock: IO[str] | None = None  # of the one process that claims the folder for its run
    if saving is None:
      options = ocp.CheckpointManagerOptions(read_only=True)
    else:
      if jax.process_index() == 0:
        self.lock = _claim(self.folder.with_suffix(".lock"))
      for path in self.folder.glob(f"*{UNFINISHED}*"):
        logging.warning("removing a save that was not finished: %s", path)
      options = ocp.CheckpointManagerOptions(max_to_keep=saving.keep, create=True,
                                             cleanup_tmp_directories=True,
                                             enable_async_checkpointing=True)
    self.manager = ocp.CheckpointManager(self.folder, options=options)

  @property
  def steps(self) -> list[int]:
    """Of everything that looks like a checkpoint, whole or not; newest first."""
    if not self.folder.is_dir():
      return []
    return sorted((int(p.name) for p in self.folder.iterdir() if p.name.isdigit()), reverse=True)

  def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
    """Starts writing; the state may be donated as soon as this returns.

    Raises OSError when the save before it failed, as on a full disk.
    """
    flat = by_path(state)
    # fingerprints are of the state itself, taken before anything is written; the meta goes through
    # JSON first, so that its checksum is of what will be read back
    meta = json.loads(json.dumps({**meta, "leaves": _described(flat)}))
    meta["sum"] = _sum(meta)
    if jax.default_backend() == "cpu":
      # elsewhere orbax copies to the host before it returns; on a CPU it would write from the very
      # arrays that the next step donates
      flat = jax.tree.map(jnp.copy, flat)
    with self._saving():
      self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(flat),
                                                      meta=ocp.args.JsonSave(meta)))

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """Turns whatever fails inside into an OSError that names the newest whole checkpoint."""
    try:
      yield
    except Exception as error:  # the writer's threads raise what they like
      whole = [step for step in self.steps if self._meta(step)[0] is None]
      raise OSError(f"a checkpoint could not be written to {self.folder}; the newest that is whole "
                    f"is of step {max(whole, default=None)}, and the same command goes on from it: "
                    f"{_first_line(error)}") from error

  def restore(self, like: Callable[[dict[str, Any]], Any]
              ) -> tuple[int, Any, dict[str, Any]] | None:
    """(step, state, meta) of the newest whole checkpoint, placed as like(meta); None without any.

    Raises OSError when there are checkpoints and none is whole, and whatever `like` raises.
    """
    failures, steps = [], self.steps
    # a folder that not all hosts share would have each restore another step
    sharding.agree({"the checkpoints found": steps})
    for step in steps:
      # the cheap checks first: marker files, meta, and the shapes that this run needs
      reason, meta = self._meta(step)
      state = wanted = None
      if meta is not None:
        wanted = like(meta)
        reason = mismatch(meta["leaves"], by_path(wanted))
      # reading arrays is collective: no process starts where another one has found a fault
      unreadable_in = sharding.where(reason is not None)
      if not unreadable_in and meta is not None:
        reason, state = self._state(step, wanted, meta)
        unreadable_in = sharding.where(reason is not None)
      if not unreadable_in:
        # newer ones are moved only now that an older one could be read: else nothing would be left
        if failures:
          logging.error("going back to the checkpoint of step %d", step)
          self._move_aside([s for s in steps if s > step])
        return step, state, meta or {}
      failures.append(f"step {step}: {reason or f'processes {unreadable_in} cannot read it'}")
      logging.error("checkpoint %s/%d is not whole: %s", self.folder, step, failures[-1])
    if failures:
      raise OSError(f"no checkpoint in {self.folder} can be read; move the folder away to start "
                    "anew:\n  " + "\n  ".join(failures))
    return None

  def _meta(self, step: int) -> tuple[str | None, dict[str, Any] | None]:
    """(what is wrong, meta) of one checkpoint, without its arrays."""
    for name in COMMITTED:
      if not (self.folder / str(step) / name).is_file():
        return f"no commit marker {name}", None
    try:
      meta = json.loads((self.folder / str(step) / "meta" / "metadata").read_text("utf-8"))
    except (OSError, ValueError) as error:
      return f"meta: {type(error).__name__}: {error}", None
    if "sum" not in meta or meta.pop("sum") != _sum(meta):
      return "meta: is not what was saved, or was saved without a checksum", None
    return None, meta

  def _state(self, step: int, like: Any, meta: dict[str, Any]) -> tuple[str | None, Any]:
    """(what is wrong, state) of one checkpoint."""
    wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
              for name, x in by_path(like).items()}
    try:
      got = self.manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(wanted)))["state"]
    except Exception as error:  # whatever is wrong with this one, an older one may be whole
      return _first_line(error), None
    reason = _flipped(got, meta) or _not_finite(got)
    return reason, jax.tree.unflatten(jax.tree.structure(like), [got[name] for name in wanted])

  def _move_aside(self, steps: list[int]) -> None:
    """Moves checkpoints that are not whole out of the way of those to come."""
    if jax.process_index() == 0:
      self.broken.mkdir(exist_ok=True)
      for step in steps:
        to = self.broken / f"{step}-{len(list(self.broken.iterdir()))}"
        logging.error("moving the checkpoint of step %d to %s", step, to)
        shutil.move(self.folder / str(step), to)
    sharding.agree({"the checkpoints left": None})  # a barrier: no process lists the folder before
    self.manager.reload()

  def params(self, like: Any) -> Any:
    """The parameters of the newest checkpoint as numpy arrays, in the tree of `like`.

    Raises FileNotFoundError without a checkpoint, OSError when the newest is not whole.
    """
    if not self.steps:
      raise FileNotFoundError(f"no checkpoint in {self.folder}")
    reason, meta = self._meta(self.steps[0])
    if reason is None and meta is not None:
      state = self.manager.restore(self.steps[0], args=ocp.args.Composite(
          state=ocp.args.StandardRestore()))["state"]
      reason = _flipped(state, meta) or _not_finite(state)
      if reason is None:
        leaves = [np.asarray(state[f"params.{name}"]) for name in by_path(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)
    raise OSError(f"checkpoint {self.folder}/{self.steps[0]} is not whole: {reason}")

  def meta(self) -> dict[str, Any] | None:
    """The meta of the newest checkpoint whose meta is whole; None without any."""
    return next((meta for _, meta in map(self._meta, self.steps) if meta is not None), None)

  def close(self) -> None:
    """Waits until everything is written, and lets others write. Raises OSError as `save` does."""
    try:
      with self._saving():
        self.manager.wait_until_finished()
      self.manager.close()
    finally:
      if self.lock is not None:
        self.lock.close()


def _first_line(error: Exception) -> str:
  """Kind and first line of an error; of a long line both ends."""
  line = str(error).strip().partition("\n")[0]
  if len(line) > 300:  # the cause stands at its end
    line = f"{line[:140]} ... {line[-140:]}"
  return f"{type(error).__name__}: {line}"


def shapes_under(meta: dict[str, Any], prefix: str, sharding: jax.sharding.Sharding
                 ) -> dict[str, jax.ShapeDtypeStruct]:
  """The leaves that a checkpoint has under a prefix, by their names without it: to restore what
  only the checkpoint knows the shapes of."""
  return {name.removeprefix(prefix): jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
          for name, (shape, dtype, _) in meta["leaves"].items() if name.startswith(prefix)}


def _sum(meta: dict[str, Any]) -> str:
  """The checksum of a meta without it."""
  return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _flipped(flat: dict[str, Any], meta: dict[str, Any]) -> str | None:
  """The leaves whose bits differ from what was saved, as a sentence; None where all agree."""
  bits = fingerprints(flat)
  wrong = [name for name, x in bits.items() if int(x) != meta["leaves"][name][2]]
  return f"the bits of {', '.join(wrong[:3])} are not those that were saved" if wrong else None


def _not_finite(leaves: dict[str, Any]) -> str | None:
  """Parameters and moments that are not finite, as a sentence; None where all are."""
  kept = {name: jnp.asarray(x) for name, x in leaves.items() if name.startswith(KEPT)}
  wrong = names(jax.jit(not_finite)(kept))
  return f"{shortened(wrong)}: not finite" if wrong else None


def _claim(path: pathlib.Path) -> IO[str]:
  """A file locked for this process until it is closed or the process ends, however it ends."""
  path.parent.mkdir(parents=True, exist_ok=True)
  # appending, since opening must not empty the file while another process has the lock
  file = open(path, "a+", encoding="utf-8")
  file.seek(0)
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError):
    writer = file.read().strip()
    file.close()
    raise OSError(f"{path.parent} is being written by {writer}; wait for it, stop it, or "
                  "choose another --workdir") from None
  except OSError as error:
    logging.warning("%s: no locks on this file system (%s): nothing stops a second writer", path,
                    error)
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
  file.flush()
  return file
