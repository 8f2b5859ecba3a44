"""The loop on real parts: every recipe, meshes, micro-batches, reference policies."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import config
from entrolab.experiment import Reference
from entrolab.trainer import explain, loop
from entrolab.trainer.learner import next_reference
from entrolab.trainer.state import State
from entrolab.trainer.step import Lab, train_step

# runs share most of their programs
pytestmark = pytest.mark.usefixtures("compiled", "libraries_promote")

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "experiments").glob("*.py"))
OBJECTIVES = ("cispo", "corrected", "gmpo", "gpg", "lite_ppo", "opo", "opsm", "otb", "passk",
              "reinforce_pp", "remax", "rloo", "sapo")  # and gspo, the default
SMALL = ("sampling.prompts=8", "evaluation.problems=8", "training.steps=2", "training.updates=2")
ONE = ("mesh.data=1",)
EPISODES = {f"experiments/{name}.py": ("model.steps=10", "sampling.max_tokens=60",
                                       "evaluation.ks=(1,)", "evaluation.samples=8")
            for name in ("empg", "epo", "form_curriculum")}  # whose model is made when it loads

LIKE_ARPO = "experiments/aepo_agentic.py"  # trees in the same environment, a minute of its own


def rows(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", [
    *(pytest.param(r, marks=pytest.mark.slow) if r in (*EPISODES, LIKE_ARPO) else r
      for r in RECIPES), *(
    pytest.param(f"experiments/base_objectives.py:objective={name}", marks=pytest.mark.slow)
    for name in OBJECTIVES)])
def test_every_recipe_runs_and_acts(recipe, tmp_path):
  experiment = config.load(recipe, (*SMALL, *ONE, *EPISODES.get(recipe, ())))
  result = loop.run(experiment, tmp_path)
  assert result["finished"] and 0.0 <= result["after"]["eval/pass@1"] <= 1.0
  steps = [r for r in rows(tmp_path) if "train/loss" in r]
  assert len(steps) == 2 and all(r["train/applied"] == 1.0 for r in steps)
  for row in steps:
    for name, value in row.items():
      assert value is not None, f"{name} is not finite"
  acted = max(max(r["method/tokens_changed"], r["rollout/refills"]) for r in steps)
  assert acted > 0.0 or explain.warnings(experiment) or "tokens_changed is 0" in explain.acts(
      experiment.objective), recipe


def test_the_names_of_the_base_objectives_are_all_tried():
  with pytest.raises(ValueError, match="choices: ") as error:
    config.load("experiments/base_objectives.py:objective=none")
  names = str(error.value).partition("choices: ")[2].split(", ")
  assert {*names} == {*OBJECTIVES, "gspo"}
  for name in names:
    assert config.load(f"experiments/base_objectives.py:objective={name}").name == name


def first_steps(overrides, steps=2):
  """(texts, metrics) of the first steps, and the parameters after them."""
  experiment = config.load("experiments/siren.py", (*SMALL, *overrides))
  lab = Lab(experiment)
  state, seen = lab.learner.init(lab.params), []
  for step in range(steps):
    state, rollout, metrics = train_step(lab, state, step, pathlib.Path("/nonexistent"))
    seen.append((rollout.texts, metrics))
  return seen, jax.device_get(state.params)


@pytest.fixture(scope="module")
def single():
  return first_steps(ONE)


@pytest.mark.parametrize("overrides", [
    ("mesh.data=8",), ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"),
    pytest.param(("mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2"), marks=pytest.mark.slow),
    *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in (
        ("mesh.data=1", "mesh.fsdp=2"), ("mesh.data=2", "mesh.tensor=2"))),
    *(pytest.param(("sampling.slots=16", *mesh), marks=pytest.mark.slow) for mesh in (
        ONE, ("mesh.data=4",), ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"))),
    ("mesh.data=1", "training.micro=4"), ("mesh.data=1", "training.remat=dots"),
    pytest.param(("mesh.data=1", "training.remat=block"), marks=pytest.mark.slow)],
    ids=lambda o: ",".join(x.split(".")[1] for x in o))
def test_meshes_and_micro_batches_give_the_same_steps(single, overrides):
  seen, params = first_steps(overrides)
  for (texts, metrics), (want_texts, want) in zip(seen, single[0], strict=True):
    assert texts == want_texts
    for name in ("train/loss", "train/grad_norm", "entropy/exact", "method/tokens_changed",
                 "term/siren.squared_distance", "control/anchor"):
      np.testing.assert_allclose(metrics[name], want[name], rtol=2e-4, atol=1e-6, err_msg=name)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(single[1]), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_bfloat16_compute_keeps_float32_parameters():
  seen, params = first_steps(("mesh.data=1", "training.dtype=bfloat16"), steps=1)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
  metrics = seen[0][1]
  assert np.isfinite(metrics["train/loss"]) and metrics["train/loss"].dtype == np.float64
  assert 0.0 < metrics["sampling/logp_difference/max"] < 0.5  # of bfloat16: 8 bits


def test_an_update_that_is_not_finite_is_not_applied_and_is_kept(tmp_path):
  # the loss is finite, the norm of its gradient is not
  experiment = config.load("experiments/entropy_bonus.py:beta=1e38", (*SMALL, *ONE,
                                                                      "training.steps=9"))
  with pytest.raises(FloatingPointError, match=r"step 4: 5 steps in a row were not finite"):
    loop.run(experiment, tmp_path)
  kept = tmp_path / "failures" / "step_000000_update_1"
  with np.load(kept / "batch_0.npz") as batch:
    assert batch["tokens"].shape == (32, 18) and {"mask", "adv", "old_logp"} <= set(batch)
  assert len(list((tmp_path / "failures").glob("params_000000_*"))) == 1  # nothing moved
  first, last = [r for r in rows(tmp_path) if "train/loss" in r][::4]
  assert first["train/applied"] == last["train/applied"] == 0.0
  # nothing moved: the policy that sampled is the one that was loaded
  assert abs(first["entropy/exact"] - last["entropy/exact"]) < 0.2
  assert last["entropy/measured"] == 0.0


def test_the_reference_is_there_only_if_a_term_reads_it():
  made = lambda name: Lab(config.load(name, SMALL + ONE))
  without, reading = made("experiments/siren.py"), made("experiments/grpo.py")
  assert without.learner.init(without.params).reference is None
  state = reading.learner.init(reading.params)
  assert jax.tree.structure(state.reference) == jax.tree.structure(state.params)
  moved = jax.tree.map(lambda x: x + 1.0, state.params)
  assert next_reference(Reference(), 2, state, moved) is state.reference  # frozen


@pytest.mark.parametrize("rule, step, moves", [
    (Reference("ema", decay=0.99), 0, 0.01),
    (Reference("every", every=1), 0, 0.0),  # every rollout is every second of two updates
    (Reference("every", every=1), 1, 1.0)])
def test_moving_and_copied_references(rule, step, moves):
  params = {"final_norm": jnp.ones(3)}
  state = State(jnp.int32(step), params, (), {}, reference=params)
  got = next_reference(rule, 2, state, {"final_norm": jnp.full(3, 2.0)})
  np.testing.assert_allclose(got["final_norm"] - 1.0, moves, atol=1e-6)
