"""The whole run in one checkpoint: state, data position, metrics cursor, configuration.

Orbax writes asynchronously and renames when done, so that a checkpoint is there whole or not at
all. Leaves are stored by their path; a checkpoint that cannot be read is passed over loudly.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from entrolab.experiment import Saving


def _flat(tree: Any) -> dict[str, Any]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


class Checkpoints:
  """Checkpoints of a run by step; `keep` newest stay."""

  def __init__(self, folder: pathlib.Path, saving: Saving):
    self.folder = folder.resolve()
    options = ocp.CheckpointManagerOptions(max_to_keep=saving.keep, create=True,
                                           enable_async_checkpointing=True)
    self.manager = ocp.CheckpointManager(self.folder, options=options)

  def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
    """Starts writing; the state may be donated as soon as this returns."""
    if jax.default_backend() == "cpu":
      state = jax.tree.map(jnp.copy, state)  # here "device" memory is what the writer reads
    self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(_flat(state)),
                                                    meta=ocp.args.JsonSave(meta)))

  def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """(step, state, meta) of the newest readable checkpoint, placed as `like`; None without any.

    Raises RuntimeError when there are checkpoints and none can be read.
    """
    steps = sorted(self.manager.all_steps(), reverse=True)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                          like)
    failures = []
    for step in steps:
      try:
        got = self.manager.restore(step, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_flat(wanted)), meta=ocp.args.JsonRestore()))
      except Exception as error:  # whatever is wrong with this one, an older one may be whole
        reason = str(error).strip().split("\n")[0][:300]
        failures.append(f"step {step}: {type(error).__name__}: {reason}")
        logging.error("checkpoint %s/%d cannot be read, trying an older one: %s", self.folder,
                      step, failures[-1])
        continue
      for bad in steps[:steps.index(step)]:
        logging.error("removing the unreadable checkpoint of step %d", bad)
        self.manager.delete(bad)
      leaves = [got["state"][name] for name in _flat(like)]
      return step, jax.tree.unflatten(jax.tree.structure(like), leaves), got["meta"]
    if failures:
      raise RuntimeError(f"no checkpoint in {self.folder} can be read; move the folder away to "
                         "start anew:\n  " + "\n  ".join(failures))
    return None

  def params(self, like: Any) -> Any:
    """The parameters of the newest checkpoint as numpy arrays, in the tree of `like`.

    Raises FileNotFoundError without a checkpoint.
    """
    step = self.manager.latest_step()
    if step is None:
      raise FileNotFoundError(f"no checkpoint in {self.folder}")
    state = self.manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore()))["state"]
    leaves = [np.asarray(state[f"params.{name}"]) for name in _flat(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

  def meta(self) -> dict[str, Any] | None:
    """What the newest checkpoint says of its run, without its arrays; None without any."""
    step = self.manager.latest_step()
    if step is None:
      return None
    return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

  def close(self) -> None:
    """Waits until everything is written."""
    self.manager.wait_until_finished()
    self.manager.close()
