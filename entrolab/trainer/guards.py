"""What guards a run: updates that are not finite are kept for a replay, and alarms say what to do.

`scripts/replay_batch.py` repeats the loss of a kept update and names what is not finite in it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from entrolab import config, sharding
from entrolab.batch import Batch
from entrolab.experiment import Experiment
from entrolab.trainer.files import write_text
from entrolab.verify import unknown_reasons

KEPT = 16  # failures of a run that are kept; parameters are large
UNKNOWN = 0.05  # share of unknown verdicts that is worth a warning
COLLAPSE, EXPLOSION = 0.2, 3.0  # times the entropy before training
ROOM = 0.5  # nats a token above it that are no explosion yet
LARGE_STEP = 0.02  # nats a token between the policy before and after the updates of one rollout
ALARMS = ("collapse", "explosion", "no_signal", "unknown")
CONTROL = "control."  # prefix of controlled values among the saved columns


def save_failure(folder: pathlib.Path, lab: Any, step: int, update: int, rows: Batch, state: Any,
                 metrics: Mapping[str, Any]) -> None:
  """Keeps what an update that was not finite saw, in folder/failures: its rows, controlled values,
  key and numbers, and the parameters, once for all failures at the same ones.

  lab: the run (`experiment` and `key`); state: after the update, which did not move it.
  """
  home = (folder / "failures").resolve()
  place = home / f"step_{step:06d}_update_{update}"
  full = len(set(home.glob("step_*")) - {place}) >= KEPT
  logging.error(
      "step %d, update %d: loss, gradient or entropy is not finite; the update was not applied; %s",
      step, update, f"not kept: {home} holds {KEPT} such updates already" if full else
      f"python scripts/replay_batch.py {place} says where it comes from")
  if full:
    return
  place.mkdir(parents=True, exist_ok=True)
  columns = {**rows.columns(), **{CONTROL + name: x for name, x in state.control.items()}}
  arrays: Any = {n: sharding.local(x) if x.ndim else np.asarray(x) for n, x in columns.items()}
  np.savez(place / f"batch_{jax.process_index()}.npz", **arrays)
  taken = int(state.step)
  params = f"params_{taken:06d}_{config.config_hash(lab.experiment)[:8]}"
  if jax.process_index() == 0:
    write_text(place / "failure.json", json.dumps({
        "step": step, "update": update, "optimiser_step": taken, "params": params,
        "processes": jax.process_count(), "key": np.asarray(jax.random.key_data(lab.key)).tolist(),
        "metrics": {name: repr(float(x)) for name, x in metrics.items()}}, indent=1) + "\n")
  if not (home / params).is_dir():
    with ocp.StandardCheckpointer() as writer:
      writer.save(home / params, state.params)


@dataclasses.dataclass(frozen=True)
class Failure:
  """A kept update: `record` is its failure.json, batch and control are as the update saw them."""
  place: pathlib.Path
  record: dict[str, Any]
  batch: Batch
  control: dict[str, np.ndarray]

  @classmethod
  def load(cls, place: pathlib.Path) -> "Failure":
    """Reads what `save_failure` wrote. Raises FileNotFoundError that names the missing file."""
    record = json.loads((place / "failure.json").read_text(encoding="utf-8"))
    parts = []
    for process in range(record["processes"]):  # rows of a step lie in the order of processes
      with np.load(place / f"batch_{process}.npz") as file:
        parts.append({name: file[name] for name in file.files})
    control = {n.removeprefix(CONTROL): x for n, x in parts[0].items() if n.startswith(CONTROL)}
    rows = {n: np.concatenate([part[n] for part in parts]) for n in parts[0]
            if not n.startswith(CONTROL)}
    return cls(place, record, Batch().replace(**rows), control)

  def params(self, like: Any) -> Any:
    """The parameters it was computed at, placed as `like`."""
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                          like)
    with ocp.StandardCheckpointer() as reader:
      return reader.restore((self.place.parent / self.record["params"]).resolve(), wanted)


def watch(experiment: Experiment, progress: Any, metrics: dict[str, Any], verdicts: Any) -> None:
  """Logs the alarms of a step, each when it begins, and fills alarm/* (1 while it lasts).

  progress: of the run: `before`, `step`, and `alarms`, the names of those that last.
  """
  found = alarms(experiment, progress.before, metrics, verdicts)
  for name in found.keys() - set(progress.alarms):
    logging.warning("step %d: %s", progress.step, found[name])
  progress.alarms = sorted(found)
  metrics |= {f"alarm/{name}": float(name in found) for name in ALARMS}


def alarms(experiment: Experiment, before: Mapping[str, float], metrics: Mapping[str, Any],
           verdicts: Any) -> dict[str, str]:
  """What is wrong with a step that makes a run meaningless, by name: the sentence to show, with
  likely causes and the line to change. before: eval/* before training."""
  said = {}
  entropy, first = float(metrics["entropy/exact"]), float(before["eval/entropy"])
  state = f"{entropy:.3g} nats a token, {first:.3g} before training"
  if entropy < COLLAPSE * first:
    said["collapse"] = (f"entropy has collapsed: {state}; samples of a prompt repeat each other "
                        "and pass@k falls. Likely: " + "; ".join(
                            collapse_causes(experiment, first, metrics)))
  if entropy > max(EXPLOSION * first, first + ROOM):
    said["explosion"] = (f"entropy explodes: {state}; responses turn into noise. Likely: "
                         + "; ".join(explosion_causes(experiment, metrics)))
  if metrics["reward/unknown"] > UNKNOWN:
    said["unknown"] = (f"{100 * metrics['reward/unknown']:.0f} % of the verdicts are unknown: "
                       f"{unknown_reasons(verdicts)}")
  learns = "adv" in experiment.objective.reads  # demonstrations need no group
  if learns and metrics["rollout/groups_with_signal"] == 0.0:
    more = experiment.sampling.refills + 2
    said["no_signal"] = ("no group has a signal; every advantage is zero: take easier or harder "
                         f"problems, or --set sampling.refills={more}")
  return said


def _large_step(experiment: Experiment, metrics: Mapping[str, Any]) -> Iterator[str]:
  t, s = experiment.training, experiment.sampling
  if metrics.get("train/kl", 0.0) > LARGE_STEP:
    yield (f"steps are too large (train/kl {metrics['train/kl']:.2g} nats a token and rollout): "
           f"--set training.lr={t.lr / 3:.1e}")
    fewer = [u for u in range(1, t.updates) if s.prompts % u == 0
             and s.prompts // u * s.samples % t.micro == 0]
    if fewer:
      yield f"too many updates a rollout: --set training.updates={fewer[-1]}"


def _weights(experiment: Experiment, change: str) -> Iterator[str]:
  for entry in experiment.objective.penalties:
    if isinstance(entry.beta, str):
      yield f"the target of {entry.value.name} (weight {entry.beta!r} is controlled): {change} it"
    else:
      yield (f"the weight of {entry.value.name}, {entry.beta:g}: {change} it (beta in most "
             "recipes)")


def collapse_causes(experiment: Experiment, first: float, metrics: Mapping[str, Any]) -> list[str]:
  """Most likely first."""
  causes = list(_large_step(experiment, metrics))
  if experiment.objective.penalties:
    causes += _weights(experiment, "raise")
  else:
    causes.append("nothing in the objective holds entropy up: --config=experiments/siren.py or "
                  f"--config=experiments/entropy_bonus.py:target={first:.2g}")
  if metrics["reward/right"] > 0.9:
    causes.append("the task is solved: stop here, or take harder problems")
  return causes or [f"--set training.lr={experiment.training.lr / 3:.1e}"]


def explosion_causes(experiment: Experiment, metrics: Mapping[str, Any]) -> list[str]:
  """Most likely first."""
  causes = list(_weights(experiment, "lower")) + list(_large_step(experiment, metrics))
  if metrics["reward/right"] < 0.1:
    causes.append("nearly every sample is wrong, and pushing wrong answers down spreads the mass: "
                  "take easier problems")
  if metrics.get("rollout/logp_gap_mean", 0.0) > 0.01:
    causes.append("sampler and trainer disagree about log-probabilities (rollout/logp_gap_mean "
                  f"{metrics['rollout/logp_gap_mean']:.2g}): --set training.dtype=float32")
  return causes or [f"--set training.lr={experiment.training.lr / 3:.1e}"]
