"""Updates that are not finite are kept and replayed to the leaf, term and token."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entrolab import config
from entrolab.objective import term
from entrolab.trainer import failures, loop
from entrolab.trainer.state import State
from entrolab.trainer.step import Lab, train_step
from entrolab.typing import Array, Float, Penalty
from scripts import replay_batch

pytestmark = pytest.mark.usefixtures("libraries_promote")

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "experiments/entropy_bonus.py:target=0.5"
SMALL = ["sampling.prompts=4", "training.updates=1", "training.measure_every=0", "mesh.data=1",
         "training.old_logp=sampler"]  # the trainer's are those of the update itself


@pytest.fixture(scope="module")
def kept(tmp_path_factory, compiled):
  """A step whose controlled weight of the bonus is nan, and the failure that it kept."""
  folder = tmp_path_factory.mktemp("kept")
  lab = Lab(config.load(RECIPE, tuple(SMALL)))
  state = lab.learner.init(lab.params)
  state = dataclasses.replace(state, control={**state.control, "coef": jnp.float32(np.nan)})
  train_step(lab, state, 1, folder)  # at step 0 controllers measure the initial policy
  source = {"config": RECIPE, "set": SMALL}
  (folder / "config.json").write_text(json.dumps(loop.describe(lab, source)))
  return folder / "failures" / "step_000001_update_0"


def replayed(place, text=None, overrides=(), change=lambda failure: failure):
  experiment = replay_batch.rebuild(place.parents[1], text, list(overrides))
  return replay_batch.repeat(experiment, change(failures.Failure.load(place)))


def found(replay):
  return list(replay_batch.findings(replay))


def test_the_failure_holds_rows_key_numbers_and_parameters(kept):
  failure = failures.Failure.load(kept)
  record = failure.record
  np.testing.assert_array_equal(record["key"], jax.random.key_data(jax.random.key(0)))
  assert (record["step"], record["update"], record["optimiser_step"]) == (1, 0, 0)
  assert record["metrics"]["train/loss"] == "nan"
  assert failure.batch.tokens.shape == (32, 18) and failure.batch.mask.dtype == bool
  assert (kept.parent / record["params"]).is_dir()


def test_the_command_line_names_the_weight(kept):
  done = subprocess.run([sys.executable, "scripts/replay_batch.py", str(kept)], cwd=ROOT,
                        capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[1].startswith("- controlled value coef: nan")
  assert lines[2] == ("- weight (beta) of penalty bonus.negative_entropy: nan, the controlled "
                      "value coef")
  assert lines[3].startswith("- loss: nan") and lines[4].startswith("- gradient embed: nan")
  assert "replayed: loss nan" in done.stdout


def test_the_replay_is_the_update_to_the_bit(tmp_path, compiled):
  """Kept as if it had failed: an update with finite numbers, which are then the ones replayed."""
  del compiled
  recipe = "experiments/entropy_bonus.py:beta=0.03"
  lab = Lab(config.load(recipe, (*SMALL, "training.warmup=0")))
  learner, state = lab.learner, lab.learner.init(lab.params)
  batch = learner.prepare(lab.rollout(state, 0).batch, state)
  rows = learner.select(batch, np.int32(0))
  state, _ = learner.step(state, rows)  # the second one is not on the policy that sampled
  before = jax.tree.map(jnp.copy, state)
  _, metrics = learner.step(state, rows)
  failures.save(tmp_path, lab.experiment, lab.key, 0, 1, rows, before, metrics, [])
  source = {"config": recipe, "set": [*SMALL, "training.warmup=0"]}
  (tmp_path / "config.json").write_text(json.dumps(loop.describe(lab, source)))
  replay = replayed(tmp_path / "failures" / "step_000000_update_1")
  assert found(replay) == []
  for name, value in metrics.items():
    assert float(value) == float(replay.metrics[name]), name


def test_a_token_is_named(kept):
  def spoil(failure):
    logp = failure.batch.old_logp.copy()
    logp[5, 2] = np.nan
    logp[6, ~failure.batch.mask[6]] = np.nan  # padding may hold anything
    return dataclasses.replace(failure, batch=failure.batch.replace(old_logp=logp))

  replay = replayed(kept, "experiments/entropy_bonus.py:beta=0.03", SMALL, spoil)
  lines = found(replay)
  token = int(replay.batch.tokens[5, 2])
  assert lines[0].startswith(f"column old_logp of the rollout: nan at row 5, position 2, token "
                             f"{token} ") and "; in 1 rows, at 1 of " in lines[0]
  assert any(line.startswith("surrogate ppo.clipped_ratio: nan at row 5, position 2") for line in
             lines)


def test_a_leaf_is_named(kept):
  place = kept
  experiment = replay_batch.rebuild(place.parents[1], "experiments/entropy_bonus.py:beta=0.03",
                                    SMALL)
  failure = failures.Failure.load(place)

  class Spoilt(failures.Failure):
    def params(self, like):
      tree = super().params(like)
      tree["layers"]["qkv"] = tree["layers"]["qkv"].at[1, 2, 0, 0, 0].set(jnp.inf)
      return tree

  lines = found(replay_batch.repeat(experiment, Spoilt(**vars(failure) | {"control": {}})))
  assert lines[0].startswith("parameter layers.qkv: inf at [1, 2, 0, 0, 0]; 1 of ")
  assert "statistic" in lines[1]  # and everything after it


def root(entropy: Float[Array, "B T"], mask: Float[Array, "B T"]) -> Penalty:
  """Finite everywhere, with an infinite slope where the entropy equals itself."""
  return jnp.where(mask, jnp.sqrt(jnp.abs(entropy - jax.lax.stop_gradient(entropy))), 0.0)


def test_a_slope_is_named(kept):
  experiment = config.load("experiments/entropy_bonus.py:beta=0.03", tuple(SMALL))
  objective = dataclasses.replace(experiment.objective, penalties=((1.0, term(root)),))
  experiment = dataclasses.replace(experiment, objective=objective)
  failure = dataclasses.replace(failures.Failure.load(kept), control={})
  lines = found(replay_batch.repeat(experiment, failure))
  assert lines[0].startswith("slope of penalty failures_test.root by entropy: inf at row 0, "
                             "position 0")


def test_mistakes_name_file_and_leaf(kept, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(kept.parents[1], run)
  saved = json.loads((run / "config.json").read_text())
  changed = saved | {"hash": "0" * 16, "experiment": saved["experiment"] | {"seed": 7}}
  (run / "config.json").write_text(json.dumps(changed))
  with pytest.raises(ValueError, match=r"another configuration than (.|\n)*seed: 7 -> 0"):
    replay_batch.rebuild(run, None, [])
  (run / "config.json").write_text(json.dumps(saved | {"source": None}))
  with pytest.raises(ValueError, match="records no command .* --config"):
    replay_batch.rebuild(run, None, [])
  (run / "failures" / kept.name / "batch_0.npz").unlink()
  with pytest.raises(FileNotFoundError, match="batch_0.npz"):
    failures.Failure.load(run / "failures" / kept.name)


def test_rows_of_several_processes_come_back_in_their_places(tmp_path):
  """On a torus they lie in no order of processes, and some are held by two of them."""
  (tmp_path / "failure.json").write_text(json.dumps({"processes": 3}))
  for process, places in enumerate([(1, 2), (0, 3), (1, 2)]):
    rows = np.asarray(places)
    np.savez(tmp_path / f"batch_{process}.npz", **{
        failures.PLACES: rows, "tokens": np.stack([10 * rows, 10 * rows + 1], 1),
        failures.CONTROL + "beta": np.float32(0.5)})
  failure = failures.Failure.load(tmp_path)
  np.testing.assert_array_equal(failure.batch.tokens, [[0, 1], [10, 11], [20, 21], [30, 31]])
  assert failure.control == {"beta": 0.5}


def test_only_so_many_failures_are_kept(kept, tmp_path, caplog):
  experiment = config.load(RECIPE, tuple(SMALL))
  for number in range(failures.LIMIT):
    (tmp_path / "failures" / f"step_{number:06d}_update_0").mkdir(parents=True)
  failure = failures.Failure.load(kept)
  state = State(jnp.int32(0), {}, (), {})
  failures.save(tmp_path, experiment, jax.random.key(0), 99, 1, failure.batch, state, {}, [])
  assert "not saved" in caplog.text
  assert len(list((tmp_path / "failures").iterdir())) == failures.LIMIT


def spoilt(tx, part):
  """The optimiser, whose updates or moments of the embedding are not finite."""
  def update(grads, state, params=None):
    updates, state = tx.update(grads, state, params)
    leaf = updates["embed"] / jnp.zeros_like(updates["embed"])
    if part == "parameters":
      return {**updates, "embed": leaf}, state
    return updates, jax.tree.map(
        lambda x: x / jnp.zeros_like(x) if x.shape == leaf.shape else x, state)

  return optax.GradientTransformation(tx.init, update)


@pytest.mark.parametrize("part, mesh", [
    ("parameters", ()), pytest.param("moments", (), marks=pytest.mark.slow), pytest.param(
        "parameters", ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"), marks=pytest.mark.slow)])
def test_state_that_is_not_finite_is_not_kept(tmp_path, compiled, caplog, part, mesh):
  """As with an eps of 0, which divides 0 by 0: loss and gradient are finite."""
  del compiled
  lab = Lab(config.load(RECIPE.replace("nan", "0.03"), (*SMALL, *mesh)))
  lab.learner.tx = spoilt(lab.learner.tx, part)
  state = lab.learner.init(lab.params)
  before = jax.tree.map(np.asarray, state)
  state, _, shown = train_step(lab, state, 0, tmp_path)
  assert np.isfinite(shown["train/loss"]) and np.isfinite(shown["train/grad_norm"])
  assert shown["train/applied"] == 0.0
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), before)
  record = json.loads((tmp_path / "failures/step_000000_update_0/failure.json").read_text())
  assert record["not_finite"] and all(name.startswith(f"new {part}") and name.endswith("embed")
                                      for name in record["not_finite"])
  assert f"not finite: new {part}" in caplog.text


def test_an_update_in_which_nothing_is_known_moves_nothing(tmp_path, compiled):
  del compiled
  lab = Lab(config.load("experiments/entropy_bonus.py:beta=0.03",
                        (*SMALL, "training.warmup=0")))
  learner, state = lab.learner, lab.learner.init(lab.params)
  drawn = lab.rollout(state, 0).batch
  before = jax.tree.map(np.asarray, state)
  verdict = np.full(drawn.tokens.shape[0], -1, np.int32)
  rows = learner.select(learner.prepare(drawn.replace(verdict=verdict), state), np.int32(0))
  state, shown = learner.step(state, rows)
  assert shown["train/loss"] == 0.0 and shown["train/applied"] == 1.0
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), before)
  verdict[::2] = 1  # and where some rows are, it does
  rows = learner.select(learner.prepare(drawn.replace(verdict=verdict), state), np.int32(0))
  assert int(learner.step(state, rows)[0].step) == 1
