"""Rows drawn one step ahead, the score pass that is left out, and shares of the roofline."""

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import config
from entrolab.cost import chips, flops
from entrolab.models import transformer
from entrolab.rollout.plain import Plain
from entrolab.trainer import loop
from entrolab.trainer.learner import BEFORE
from entrolab.trainer.log import WALL

pytestmark = pytest.mark.usefixtures("compiled", "libraries_promote")

SMALL = ("sampling.prompts=8", "evaluation.problems=8", "training.steps=2", "training.updates=2")
AHEAD = ("sampling.ahead=1", *SMALL)
CORRECTED = "experiments/base_objectives.py:objective=corrected"
ROOT = pathlib.Path(__file__).resolve().parents[1]
NOWHERE = pathlib.Path("/nonexistent")


def rows(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if not k.startswith(WALL)} for line in lines]


def lab_of(overrides, recipe=CORRECTED):
  lab = loop.Lab(config.load(recipe, ("mesh.data=1", *overrides)))
  return lab, lab.learner.init(lab.params)


def test_rows_are_of_the_policy_of_one_step_ago():
  lab, state = lab_of(AHEAD)
  plain, _ = lab_of(SMALL)
  policies, verified, verify = [], [], type(lab.engine).judged

  def judged(*args, **kwargs):
    verified.append(lab.in_flight.ahead is not None)  # the next rows are on their way already
    return verify(lab.engine, *args, **kwargs)

  lab.engine.judged = judged
  for step in range(3):
    policies.append(jax.device_get(state.params))
    state, rollout, metrics = loop.train_step(lab, state, step, NOWHERE)
    old = jax.tree.map(jnp.asarray, policies[max(step - 1, 0)])
    want = plain.rollout(dataclasses.replace(state, params=old), step)
    for name in ("tokens", "mask", "old_logp"):
      ours = rollout.batch.sampled_logp if name == "old_logp" else getattr(rollout.batch, name)
      theirs = want.batch.sampled_logp if name == "old_logp" else getattr(want.batch, name)
      np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=f"{name} {step}")
    gap = float(metrics["sampling/logp_difference/max"])
    assert (gap > 1e-4) == (step > 0)  # the trainer is one step on
    assert metrics["method/tokens_changed"] > 0.5 or step == 0  # and its weights say so
    assert metrics["rollout/tokens_per_second"] > 0 and "train/roofline" not in metrics
  assert verified == [True] * 3


@pytest.mark.parametrize("mesh", [
    ("mesh.data=1",), pytest.param(("mesh.data=2", "mesh.fsdp=2"), marks=pytest.mark.slow)],
                         ids=["one", "four"])
def test_a_run_that_goes_on_has_the_rows_that_were_waiting(tmp_path, mesh):
  load = lambda steps: config.load(CORRECTED, (*AHEAD, *mesh, f"training.steps={steps}"))
  loop.run(load(1), tmp_path / "parts")
  loop.run(load(3), tmp_path / "parts")
  loop.run(load(3), tmp_path / "whole")
  ours, theirs = rows(tmp_path / "parts"), rows(tmp_path / "whole")
  trained = lambda found: [r for r in found if "train/loss" in r]
  assert trained(ours) == trained(theirs) and len(trained(ours)) == 3
  lines = map(json.loads, (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
  assert [r["train/recompilations"] for r in lines if "train/loss" in r] == [0, 0, 0]
  assert ours[-1] == theirs[-1]


def test_the_numbers_of_a_run_that_draws_ahead_are_its_own(tmp_path):
  """A step back to rows of the current policy is a change of the run's mathematics."""
  load = lambda *more: config.load(CORRECTED, (*SMALL, "mesh.data=1", *more))
  loop.run(load("sampling.ahead=1", "training.steps=1"), tmp_path)
  with pytest.raises(ValueError, match="sampling.ahead: 1 -> 0"):
    loop.run(load(), tmp_path)
  loop.run(load(), tmp_path, allow_config_change=True)  # rows that wait are used, none follow
  assert [r["step"] for r in rows(tmp_path) if "train/loss" in r] == [1, 2]


@pytest.mark.parametrize("recipe, overrides, match", [
    ("experiments/grpo.py", (), "nothing corrects for it; add weights=term"),
    (CORRECTED, ("sampling.refills=1",), "=1 with sampling.refills=1: .* set one of the two to 0"),
    ("experiments/cure.py", (), "=1 with Switch: .* or use `Plain` without refills"),
    ("experiments/epo.py", (), "=1 with MultiTurn: its rows wait for the verdicts"),
    ("experiments/aepo_agentic.py", (), "=1 with Agentic: its rows wait for the verdicts"),
    (CORRECTED, ("sampling.ahead=2",), "choices: 0 .*, 1")])
def test_what_cannot_draw_ahead_is_refused(recipe, overrides, match):
  with pytest.raises(ValueError, match=match):
    config.load(recipe, ("sampling.ahead=1", *overrides))
  assert config.load("experiments/grpo.py", ("sampling.ahead=1", "training.old_logp=sampler"))


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.py")), ids=lambda p: p.stem)
def test_only_plain_rollouts_are_drawn_apart_from_verifying(path):
  """An episode, a tree or a vote that was drawn like a plain row would train on something else."""
  strategy = config.load(str(path)).rollout
  assert ("ahead" not in strategy.unsupported) == (type(strategy) is Plain)


def test_one_update_in_one_piece_needs_no_score_pass():
  ONE = ("training.updates=1", "sampling.prompts=8")
  lab, state = lab_of((*ONE, "training.measure_every=0"))
  scored, begin = lab_of((*ONE, "training.measure_every=1"))
  assert lab.learner.on_policy and not scored.learner.on_policy

  def never(*args):
    raise AssertionError("a forward pass")

  lab.learner.forward = never
  state, _, metrics = loop.train_step(lab, state, 0, NOWHERE)
  state = jax.device_get(state.params)
  again, _, want = loop.train_step(scored, begin, 0, NOWHERE)
  for a, b in zip(*map(jax.tree.leaves, (state, again.params)), strict=True):
    # Adam's first update is lr times a sign, where a gradient is not rounding
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-6)
  for name in ("entropy/exact", "entropy/surprisal", "train/loss", "train/grad_norm",
               "reward/mean", "sampling/logp_difference/max"):
    np.testing.assert_allclose(metrics[name], want[name], rtol=2e-4, atol=1e-5, err_msg=name)
  assert "entropy/measured" in want and "entropy/measured" not in metrics


@pytest.mark.parametrize("overrides, on_policy, needed", [
    (("training.updates=1", "training.measure_every=0"), True, False),
    (("training.updates=1",), False, True),
    (("training.measure_every=0",), False, True),
    (("training.measure_every=0", "training.old_logp=sampler"), False, False),
    (("training.measure_every=0", "training.old_logp=sampler", "sampling.ahead=1"), False, True),
    (("training.updates=1", "training.measure_every=0", "training.micro=2"), False, True),
    (("training.updates=1", "training.measure_every=0", "sampling.ahead=1"), False, True)])
def test_when_the_score_pass_is_left_out(overrides, on_policy, needed):
  lab, _ = lab_of(("sampling.prompts=8", "training.updates=2", *overrides))
  assert lab.learner.on_policy == on_policy
  measured = bool(lab.experiment.training.measure_every)
  assert lab.learner.needs_forward(SimpleNamespace(old_logp=0), measured) == needed
  assert lab.learner.needs_forward(SimpleNamespace(old_logp=None), False)


def test_the_floating_point_operations_are_those_of_the_compiled_model():
  shape = transformer.Config(vocab_size=512, width=64, layers=2, heads=8, kv_heads=4, head_dim=16,
                             mlp_width=192)
  params = transformer.init(shape, jax.random.key(0))
  rows, size = 4, 32
  tokens = jnp.zeros((rows, size), jnp.int32)
  places = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), tokens.shape)

  def logits(p):
    hidden = transformer.hidden_states(shape, p, tokens, places, jnp.ones_like(tokens))
    return transformer.logits(shape, p, hidden.reshape(-1, shape.width))

  shape = dataclasses.replace(shape, layers=1)  # a loop over layers is counted once
  params = {**params, "layers": jax.tree.map(lambda x: x[:1], params["layers"])}
  counted = jax.jit(logits).lower(params).compile().cost_analysis()["flops"]
  chip = chips.Chip("one", 1.0, 0.0, 1.0, 1.0, 1, "")
  own = flops.ModelRoofline(shape, chip, 1, 1, 4.0)
  dense = own.forward(rows * size, rows * size * size, rows * size)  # attention is dense here
  assert 0.9 < dense / counted < 1.0  # the rest is norms, rotations and exponentials
  lengths = np.asarray([[size] * rows, [size // 2] * rows])
  assert own.trained(lengths) == 3.0 * own.forward(
      rows * size, rows * size * (size + 1) / 2, rows * size / 2)
  twice = dataclasses.replace(own, devices=2)
  assert twice.trained(lengths) == own.trained(lengths) / 2.0
  slow = dataclasses.replace(own, chip=dataclasses.replace(chip, flops=1e30), tensor=2)
  weights = own.matrices + shape.width * shape.vocab_size
  assert slow.sampled(lengths, 2, steps=16) == 16 * weights * 4.0 / 2.0
  prompts = own.sampled(lengths, 2, 0) - own.sampled(lengths, 4, 0)
  assert prompts == own.forward(rows * 16 / 4, rows * 16 * 17 / 2 / 4, 0)


def test_steps_that_are_not_measured_compute_no_more_than_they_report():
  """Log-prob and entropy are the same to the bit whatever else is computed beside them."""
  lab, state = lab_of(SMALL)
  batch = lab.rollout(state, 0).batch
  whole = lab.learner.forward(state.params, batch, BEFORE)
  part = lab.learner.forward(state.params, batch, ("entropy", "logp"))
  for name, values in part.items():
    np.testing.assert_array_equal(np.asarray(values), np.asarray(whole[name]), err_msg=name)
  assert {*part} == {"entropy", "logp"}


def test_a_device_is_in_the_table_or_measured():
  kinds = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5p": "v5p", "TPU v5": "v5p",
           "TPU v6 lite": "v6e", "NVIDIA H100 80GB HBM3": "H100", "TPU7x": "v7x",
           "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA H200": "H200", "NVIDIA B200": "B200"}
  for kind, name in kinds.items():
    assert chips.of([SimpleNamespace(device_kind=kind)]).name == name  # type: ignore
  for other in ("NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA H100 NVL", "TPU v4 lite"):
    assert other not in chips.KINDS  # of other rates than its namesake: measured
  found, half = chips.of(jax.devices()[:1]), chips.of(jax.devices()[:2])
  assert 0.2 < half.flops / found.flops < 1.2
  assert found.source == "measured" and 1e8 < found.flops < 1e13 and 1e7 < found.bandwidth < 1e12


def test_a_step_logs_speeds_and_shares():
  lab, state = lab_of((*SMALL, "mesh.data=1"))
  for step in range(2):
    state, _, metrics = loop.train_step(lab, state, step, NOWHERE)
  for name in ("rollout/roofline", "train/roofline"):
    assert 0.0 < metrics[name] < 1.0, name
  assert metrics["train/tokens_per_second"] > 0 and metrics["rollout/tokens_per_second"] > 0
  for name in ("rollout", "verify", "forward", "train", "measure"):
    assert metrics[f"timing_s/{name}"] > 0, name
