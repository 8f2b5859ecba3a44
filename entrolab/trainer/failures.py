"""Updates that were not finite: their inputs are saved, so that a replay can find the cause.

`scripts/replay_batch.py` repeats the loss of a saved update and names what is not finite in it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from entrolab import config, row_groups, sharding
from entrolab.batch import Batch
from entrolab.experiment import Experiment
from entrolab.models.transformer import Params
from entrolab.trainer.files import write_text
from entrolab.trainer.state import State, shortened
from entrolab.typing import Array, Key

LIMIT = 16  # failures of a run that are saved; parameters are large
CONTROL = "control."  # prefix of controlled values among the saved columns
PLACES = "batch.places"  # name, among the saved columns, of the places of the rows in the batch


def save(folder: pathlib.Path, experiment: Experiment, key: Key[Array, ""], step: int, update: int,
         rows: Batch, state: State, metrics: Mapping[str, Array], wrong: list[str]) -> None:
  """Saves the inputs of an update that was not finite in folder/failures: its rows, controlled
  values, key and metrics, and the parameters, once for all failures at the same parameters.

  key: of the run; state: after the update, which did not move it; wrong: what is not finite.
  """
  home = (folder / "failures").resolve()
  place = home / f"step_{step:06d}_update_{update}"
  full = len(set(home.glob("step_*")) - {place}) >= LIMIT
  logging.error(
      "step %d, update %d: not finite: %s; the update was not applied; %s",
      step, update, shortened(wrong),
      f"not saved: {home} has {LIMIT} such updates already" if full else
      f"python scripts/replay_batch.py {place} says where it comes from")
  if full:
    return
  place.mkdir(parents=True, exist_ok=True)

  # every process writes its rows, and where in the batch they lie: on a torus that is in no order
  # of processes, and rows that several processes hold are written by each of them
  arrays: Any = {name: sharding.local(x) for name, x in rows.columns().items()}
  arrays |= {CONTROL + name: np.asarray(x) for name, x in state.control.items()}
  arrays[PLACES] = row_groups.of_array(rows.tokens).places(rows.tokens.shape[0])
  np.savez(place / f"batch_{jax.process_index()}.npz", **arrays)

  optimiser_step = int(state.step)
  params = f"params_{optimiser_step:06d}_{config.config_hash(experiment)[:8]}"
  if jax.process_index() == 0:
    write_text(place / "failure.json", json.dumps({
        "step": step, "update": update, "optimiser_step": optimiser_step, "params": params,
        "processes": jax.process_count(), "key": np.asarray(jax.random.key_data(key)).tolist(),
        "not_finite": wrong,
        "metrics": {name: repr(float(x)) for name, x in metrics.items()}}, indent=1) + "\n")
  if not (home / params).is_dir():
    with ocp.StandardCheckpointer() as writer:
      writer.save(home / params, state.params)


@dataclasses.dataclass(frozen=True)
class Failure:
  """A saved update, read back."""

  place: pathlib.Path  # its folder
  record: dict[str, Any]  # failure.json: step, update, key, metrics, faults, path of parameters
  batch: Batch  # as the update saw it
  control: dict[str, np.ndarray]  # controlled values by name

  @classmethod
  def load(cls, place: pathlib.Path) -> "Failure":
    """Reads what `save` wrote. Raises FileNotFoundError that names the missing file."""
    record = json.loads((place / "failure.json").read_text(encoding="utf-8"))
    parts = []
    for process in range(record["processes"]):
      with np.load(place / f"batch_{process}.npz") as file:
        parts.append({name: file[name] for name in file.files})
    control = {name.removeprefix(CONTROL): x for name, x in parts[0].items()
               if name.startswith(CONTROL)}
    # the places of all parts, together, are those of the batch; `first` is where each is at first
    _, first = np.unique(np.concatenate([part.pop(PLACES) for part in parts]), return_index=True)
    rows = {name: np.concatenate([part[name] for part in parts])[first] for name in parts[0]
            if not name.startswith(CONTROL)}
    return cls(place, record, Batch().replace(**rows), control)

  def params(self, like: Params) -> Params:
    """The parameters at which the update was computed, placed as `like`."""
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                          like)
    with ocp.StandardCheckpointer() as reader:
      return reader.restore((self.place.parent / self.record["params"]).resolve(), wanted)
