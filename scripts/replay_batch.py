"""Repeats a saved update that was not finite, and says which leaf, column, term or token it was.

  python scripts/replay_batch.py runs/NAME-HASH/failures/step_000012_update_1 [--set mesh.data=1]

The experiment is rebuilt from the command that the run's config.json recorded, or from --config.
Findings are in the order of cause: parameters, columns of the rollout, controlled values,
statistics of the policy, scores, terms and their slopes, gradients. The first one is where to look.
Exit code 0 when the update is again not finite, 1 when it is finite here, 2 on a mistake.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entrolab import config, sharding  # noqa: E402
from entrolab.batch import Batch  # noqa: E402
from entrolab.experiment import Experiment  # noqa: E402
from entrolab.objective import Penalty  # noqa: E402
from entrolab.trainer.failures import Failure  # noqa: E402
from entrolab.trainer.learner import Learner  # noqa: E402

NAMED = 3  # leaves of a tree that are named
REWARDS = ("rewards", "greedy_rewards", "returns")  # columns [B] of rewards
MADE = ("new ", "controlled value ")  # of the faults: what the update would have made


@dataclasses.dataclass(frozen=True)
class Replay:
  """The update once more: its inputs, the metrics of `Learner.step`, and the results of a second
  program, which may round differently."""
  learner: Learner  # of the experiment
  params: Any  # at which the update was computed
  batch: Batch  # its rows
  control: dict[str, Any]  # controlled values by name
  grads: Any  # of the second program, a tree like params
  metrics: dict[str, Any]  # of the step, and sums of the second program
  live: dict[str, Any]  # statistics of the policy [B, T], of the second program
  scored: dict[str, Any]  # what `Objective.score` gave in the second program
  tokenizer: Any  # to show tokens as text

  @property
  def columns(self) -> dict[str, Any]:
    """What terms read, by name."""
    return {**self.batch.columns(), **self.control, **self.live}

  @property
  def norm(self) -> float:
    """Of the gradient."""
    return float(self.metrics["train/grad_norm"])


def repeat(experiment: Experiment, failure: Failure) -> Replay:
  """Computes the loss of a saved update and its gradient, on the devices at hand."""
  m = experiment.mesh
  mesh = sharding.make_mesh(m.data, m.fsdp, m.tensor)
  model, params, tokenizer = experiment.model.load()
  learner = Learner(experiment, model, mesh)
  state = learner.init(params)
  params = failure.params(state.params)
  place = lambda x: jax.device_put(jnp.asarray(x), sharding.whole(mesh))
  step = place(np.int32(failure.record["optimiser_step"]))
  batch = jax.device_put(failure.batch, sharding.rows(mesh))
  control = {name: place(x) for name, x in failure.control.items()}
  # copies, since the step donates its state
  state = dataclasses.replace(state, **jax.tree.map(
      jnp.copy, dict(step=step, control=control, params=params)))
  plan, _ = learner.plan(batch, experiment.training.micro)
  _, metrics = learner.step(state, batch, plan)
  batch = learner.with_noise(batch, step)
  grads, sums, live, scored = jax.jit(learner.gradient)(params, batch, control, plan)
  return Replay(learner, params, batch, control, grads, {**sums, **metrics}, live, scored,
                tokenizer)


def findings(replay: Replay) -> Iterator[str]:
  """What is not finite, in the order of cause."""
  yield from leaves("parameter", replay.params)
  for name, value in replay.batch.columns().items():
    if name in REWARDS and replay.batch.known is not None:  # NaN by design where it is not known
      value = jnp.where(replay.batch.known, value, 0.0)
    yield from tokens(replay, f"column {name} of the rollout", value)
  for name, value in replay.control.items():
    yield from leaves(f"controlled value {name}", value)
  for name, value in replay.live.items():
    yield from tokens(replay, f"statistic {name} of the policy", value)
  for name, value in replay.scored.items():
    if value is not None:
      yield from tokens(replay, f"score {readable(replay, name)}", value)
  for name, value in replay.metrics.items():
    if name.startswith("term/"):
      yield from leaves(f"sum of {name.removeprefix('term/')}", value)
  yield from terms(replay)
  yield from leaves("loss", replay.metrics["train/loss"])
  yield from leaves("gradient", replay.grads)
  if not np.isfinite(replay.norm) and all(bool(jnp.isfinite(g).all()) for g in
                                          jax.tree.leaves(replay.grads)):
    yield f"gradient norm: {replay.norm}, although every leaf is finite: it overflows"


def leaves(what: str, tree: Any) -> Iterator[str]:
  """Leaves of a tree that are not finite somewhere, with how many and the first place."""
  lines = list(_leaves(what, tree))
  yield from lines[:NAMED]
  if len(lines) > NAMED:
    yield f"{what}: and {len(lines) - NAMED} more leaves"


def _leaves(what: str, tree: Any) -> Iterator[str]:
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    value = np.asarray(leaf)
    bad = ~np.isfinite(value) if np.issubdtype(value.dtype, np.floating) else np.zeros((), bool)
    if bad.any():
      name = " ".join(filter(None, [what, jax.tree_util.keystr(path, simple=True, separator=".")]))
      first = tuple(int(i) for i in np.argwhere(bad)[0])
      where = f" at {list(first)}" if first else ""
      yield f"{name}: {value[first]}{where}; {bad.sum()} of {bad.size} are not finite"


def tokens(replay: Replay, what: str, value: Any) -> Iterator[str]:
  """The same for a column: only where the mask holds, and with the row's text around the token."""
  value, mask = np.asarray(value), np.asarray(replay.batch.counted)
  if not np.issubdtype(value.dtype, np.floating):
    return
  if value.shape != mask.shape:
    yield from leaves(what, value)
    return
  bad = ~np.isfinite(value) & mask
  for row, at in np.argwhere(bad)[:1]:
    ids = np.asarray(replay.batch.tokens)[row]
    text = replay.tokenizer.decode(ids[mask[row]].tolist())
    token = replay.tokenizer.decode([int(ids[at])])
    yield (f"{what}: {value[row, at]} at row {row}, position {at}, token {ids[at]} {token!r} of "
           f"{text!r}; in {bad.any(1).sum()} rows, at {bad.sum()} of {mask.sum()} tokens")


def readable(replay: Replay, name: str) -> str:
  """share0 -> share0 of kl.k3."""
  digits = name.lstrip("abcdefghijklmnopqrstuvwxyz")
  penalties = replay.learner.objective.penalties
  return f"{name} of {penalties[int(digits)].value.name}" if digits else name


def terms(replay: Replay) -> Iterator[str]:
  """Values and slopes of every term by token, and the weights of penalties."""
  objective, columns = replay.learner.objective, replay.columns
  if replay.scored["adv"] is not None:
    columns["adv"] = replay.scored["adv"]
  yield from term(replay, "surrogate", objective.surrogate, columns)
  for entry in objective.penalties:
    yield from weight(entry, columns)
    yield from term(replay, "penalty", entry.value, columns)


def weight(entry: Penalty, columns: dict[str, Any]) -> Iterator[str]:
  """The weight of a penalty, a constant or a controlled value."""
  beta, source = entry.beta, "a constant of the recipe"
  if isinstance(beta, str):
    beta, source = float(columns[beta]), f"the controlled value {beta}"
  if not np.isfinite(beta):
    yield f"weight (beta) of penalty {entry.value.name}: {beta}, {source}"


def term(replay: Replay, what: str, bound: Any, columns: dict[str, Any]) -> Iterator[str]:
  """Value [B, T] of one term, and its slope by each statistic that it reads."""
  mask = replay.batch.mask
  read = {name: replay.live[name] for name in bound.reads if name in replay.live}

  def total(live):
    value = bound({**columns, **live})
    return jnp.where(mask, value, 0.0).sum(), value

  if not read:
    yield from tokens(replay, f"{what} {bound.name}", bound(columns))
    return
  slopes, value = jax.grad(total, has_aux=True)(read)
  yield from tokens(replay, f"{what} {bound.name}", value)
  for name, slope in slopes.items():
    yield from tokens(replay, f"slope of {what} {bound.name} by {name}", slope)


def rebuild(run: pathlib.Path, text: str | None, overrides: list[str]) -> Experiment:
  """The experiment of a run directory; prints the leaves in which it is another one.

  Raises ValueError when the run recorded no command and none is given, or when the recorded one
  gives another configuration by now.
  """
  saved = json.loads((run / "config.json").read_text(encoding="utf-8"))
  source = saved["source"]
  if text is None and source is None:
    raise ValueError(f"{run / 'config.json'} records no command (the run was started from Python); "
                     "name the recipe with --config")
  base, recorded = (text, []) if text is not None else (source["config"], source["set"])
  experiment = config.load(base, (*recorded, *overrides))
  changed = []
  if config.config_hash(experiment) != saved["hash"]:
    changed = config.diff(config.leaves(saved["experiment"]),
                          config.leaves(json.loads(json.dumps(config.to_dict(experiment)))))
  if changed and text is None and not overrides:
    raise ValueError(f"{base} gives another configuration than the run had; go back to its code, "
                     "or repeat with --config:\n  " + "\n  ".join(changed))
  for line in changed:
    print(f"note: differs from the run in {line}")
  return experiment


def main() -> None:
  """Replays one failure and prints what it finds."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("failure", type=pathlib.Path, help="RUN/failures/step_..._update_...")
  parser.add_argument("--config", help="recipe, in place of the recorded one")
  parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
  args = parser.parse_args()
  try:
    failure = Failure.load(args.failure.resolve())
    experiment = rebuild(failure.place.parents[1], args.config, args.set)
    replay = repeat(experiment, failure)
  except (ValueError, TypeError, FileNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  record = failure.record
  print(f"step {record['step']}, update {record['update']} of {experiment.name}: "
        f"{replay.batch.tokens.shape[0]} rows, {int(replay.batch.mask.sum())} tokens")
  found = list(findings(replay))
  # these follow from the moments of the optimiser, too, which are not stored
  found += [f"{name}: was not finite after the optimiser's step" for name in record["not_finite"]
            if name.startswith(MADE)]
  for line in found:
    print(f"- {line}")
  was = record["metrics"]
  print(f"recorded: loss {was['train/loss']}, gradient norm {was['train/grad_norm']}\n"
        f"replayed: loss {float(replay.metrics['train/loss'])}, gradient norm {replay.norm}")
  if not found:
    print("finite here: the run had other devices, libraries or hyper-parameters")
  sys.exit(0 if found else 1)


if __name__ == "__main__":
  main()
