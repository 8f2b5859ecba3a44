"""Packed rows give the numbers of padded ones: statistics, loss, gradients, whole runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import config, microbatch, sharding, vocab
from entrolab.batch import Batch
from entrolab.cost import hlo
from entrolab.experiment import Evaluation
from entrolab.models import transformer
from entrolab.rollout import compilations
from entrolab.trainer import checkpoint, loop, packing
from entrolab.trainer.learner import BEFORE, Learner
from tests import adapters, resume_test

pytestmark = pytest.mark.usefixtures("libraries_promote")

SHAPE = transformer.Config(vocab_size=24, width=16, layers=2, heads=4, kv_heads=2, head_dim=8,
                           mlp_width=32)
ROWS, LENGTH, MAX_TOKENS = 32, 6, 10  # four groups of eight
SMALL = ("sampling.prompts=4", f"sampling.max_tokens={MAX_TOKENS}", "training.updates=1")
WALL = (*resume_test.WALL, "timing_s/")


def rows(seed, *, turns=False, dtype=np.float32, count=ROWS):
  """A rollout: left-padded prompts, responses of 0 to T tokens, with what nobody drew in between
  where it has turns."""
  rng = np.random.default_rng(seed)
  shape = (count, MAX_TOKENS)
  present = np.arange(MAX_TOKENS) < rng.integers(0, MAX_TOKENS + 1, count)[:, None]
  mask = present & (rng.random(shape) < 0.6) if turns else present
  prompt_mask = np.arange(LENGTH) >= LENGTH - rng.integers(1, LENGTH + 1, count)[:, None]
  real = lambda: (-rng.exponential(size=shape)).astype(dtype)
  batch = Batch(
      prompt=rng.integers(0, 24, (count, LENGTH)).astype(np.int32), prompt_mask=prompt_mask,
      tokens=rng.integers(0, 24, shape).astype(np.int32), mask=mask,
      present=present if turns else None, group=np.arange(count, dtype=np.int32) // 8,
      row=rng.integers(0, 2**31, (count, 2)).astype(np.uint32), finished=rng.random(count) < 0.8,
      old_logp=real(), old_entropy=-real(), sampled_logp=real(), ref_logp=real(),
      verdict=rng.integers(0, 2, count).astype(np.int32))
  return jax.tree.map(jnp.asarray, batch)


def learners(recipe, *overrides, mesh=(1, 1, 1)):
  """The same, padded and packed, on its own small model."""
  made = []
  for packed in ("false", "true"):
    experiment = config.load(f"experiments/{recipe}.py",
                             (*SMALL, *overrides, f"training.packing={packed}"))
    devices = jax.devices()[:int(np.prod(mesh))]
    made.append(Learner(experiment, SHAPE, sharding.make_mesh(*mesh, devices)))
  return made


def toy(config, params, tokens, positions, segments):
  """A model in float64, with attention and positions: what `transformer` keeps in float32."""
  del config
  x = params["embed"][tokens] + params["place"][positions]
  step = jnp.arange(tokens.shape[1])
  allowed = (step[:, None] >= step) & (segments[:, :, None] == segments[:, None]) & (
      segments > 0)[:, None]
  weight = jnp.where(allowed, jnp.exp(jnp.einsum("bnd,bmd->bnm", x @ params["query"], x)), 0.0)
  mixed = weight @ x / jnp.maximum(weight.sum(-1, keepdims=True), 1e-9)
  return jnp.tanh(x + mixed)


def gradients(learner, params, batch, micro):
  """(gradient, metrics, statistics, scores) of the batch, and its plan."""
  batch = learner.objective.prepare(learner.with_noise(batch, jnp.int32(0)))
  control = {"anchor": batch.old_logp.dtype.type(0.7)} if learner.objective.control else {}
  plan, share = learner.plan(batch, micro)
  fn = jax.jit(learner.gradient, compiler_options={"xla_backend_optimization_level": 0})
  return fn(params, batch, control, plan), plan, share


def close(ours, theirs, mask, tolerance):
  """Statistics and scores are compared where they count."""
  np.testing.assert_equal(jax.tree.structure(ours), jax.tree.structure(theirs))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    on = mask if np.shape(a) == mask.shape else np.ones(np.shape(a), bool)
    np.testing.assert_allclose(np.where(on, a, 0), np.where(on, b, 0), rtol=tolerance,
                               atol=tolerance)


@pytest.mark.parametrize("recipe, micro, turns", [
    ("grpo", 1, True), ("grpo", 2, False), ("siren", 1, False), ("siren", 2, True),
    ("siren", 4, True), ("kl_cov", 4, False)])
def test_packed_is_padded_in_float64(recipe, micro, turns, monkeypatch):
  """kl_cov and siren rank the whole batch by the current policy: a score pass over other parts."""
  monkeypatch.setattr(transformer, "hidden_states", toy)
  with adapters.double():
    rng = np.random.default_rng(1)
    params = {"embed": rng.normal(size=(24, 8)), "place": rng.normal(size=(32, 8)),
              "query": 0.3 * rng.normal(size=(8, 8))}
    batch = rows(2, turns=turns, dtype=np.float64)
    padded, packed = learners(recipe, f"training.micro={micro}")
    theirs, none, wasted = gradients(padded, params, batch, micro)
    ours, plan, share = gradients(packed, params, batch, micro)
    assert none is None and plan.bins * plan.width * micro < 0.9 * ROWS * (LENGTH + MAX_TOKENS)
    assert 0.0 <= share < wasted
    assert {x.dtype for x in jax.tree.leaves(ours[0])} == {np.dtype("float64")}
    assert max(np.abs(x).max() for x in jax.tree.leaves(ours[0])) > 1e-3
    close(ours, theirs, np.asarray(batch.mask), 1e-10)


def replayed(learner, batch, again):
  """The second of two updates, with further rows of which most are empty."""
  prepare = learner.objective.prepare
  return learner.select(prepare(batch), np.int32(1), prepare(again))


@pytest.mark.parametrize("mesh", [
    (2, 2, 1), *(pytest.param(m, marks=pytest.mark.slow) for m in ((1, 1, 1), (1, 2, 2)))])
def test_steps_on_meshes_and_with_further_rows(mesh):
  """The real decoder, jitted as in a run; rows never leave their device."""
  params = jax.device_get(transformer.init(SHAPE, jax.random.key(0)))  # a step donates its own
  batch, again = rows(3, turns=True), rows(4, turns=True)
  again = again.replace(mask=again.mask & (jnp.arange(ROWS) % 16 == 3)[:, None])
  again = again.replace(present=again.mask)
  results = []
  for learner in learners("siren", "training.updates=2", "training.micro=2", mesh=mesh):
    on = sharding.rows(learner.mesh)
    both = replayed(learner, *(jax.device_put(x, on) for x in (batch, again)))
    assert both.tokens.shape[0] == ROWS
    state = learner.init(params)
    plan, _ = learner.plan(both, 2)
    whole, _ = learner.plan(jax.device_put(batch, on), 4)
    scored = learner.forward(state.params, jax.device_put(batch, on), BEFORE, whole)
    before = compilations.of(learner.step)
    state, metrics = learner.step(state, both, plan)
    results.append((jax.device_get(state.params), jax.device_get(metrics), jax.device_get(scored)))
    assert compilations.of(learner.step) == before + 1
  (ours, metrics, scored), (theirs, their_metrics, their_scored) = results
  close(ours, theirs, np.asarray(batch.mask), 2e-5)
  close(metrics, their_metrics, np.asarray(batch.mask), 2e-4)
  close(scored, their_scored, np.asarray(batch.mask), 2e-5)


def test_states_stay_on_the_devices_of_their_rows():
  """Packing sends nothing: what is reduced over the vocabulary stays in groups of one device."""
  learner = learners("grpo", mesh=(4, 1, 1))[1]
  batch = jax.device_put(rows(5), sharding.rows(learner.mesh))
  plan, _ = learner.plan(batch, 1)
  spec = vocab.Spec()
  placed = batch.replace(**{packing.START: plan.start})
  fn = jax.jit(lambda p, b: learner.statistics(p, b, spec, plan))
  state = learner.init(transformer.init(SHAPE, jax.random.key(0)))
  text = fn.lower(state.params, placed).compile().as_text()
  assert not [x for x in ("all-gather", "all-to-all", "collective-permute") if x in text]
  reduced = [line for line in text.splitlines() if " all-reduce(" in line]
  assert all(len(hlo.group_of(line)) == 1 for line in reduced), reduced


@pytest.mark.parametrize("seed", range(20))
def test_rows_lie_apart_and_parts_are_even(seed):
  rng = np.random.default_rng(seed)
  ways, parts = rng.integers(1, 4), rng.integers(1, 5)
  size, length, max_tokens = rng.integers(1, 9), rng.integers(5, 40), 5
  real = np.minimum(rng.geometric(3.0 / length, ways * parts * size), length)
  real[rng.random(len(real)) < 0.1] = 0
  counted = np.minimum(rng.integers(0, max_tokens + 1, len(real)), real)
  plan = packing.make(real, counted, length=length, max_tokens=max_tokens, ways=ways, parts=parts,
                      attention=0.01, balanced=True)
  again = packing.make(real, counted, length=length, max_tokens=max_tokens, ways=ways, parts=parts,
                       attention=0.01, balanced=True)
  np.testing.assert_array_equal(plan.start, again.start)
  assert plan.shape == again.shape
  cost = lambda bins, width: bins * width * (1.0 + 0.01 * width)
  assert cost(plan.bins, plan.width) <= cost(size, length) + 1e-9
  each = np.arange(len(real)).reshape(ways, -1)
  split = np.asarray(microbatch.split(each.ravel(), parts, plan.order)).reshape(parts, ways, size)
  np.testing.assert_array_equal(np.sort(split.ravel()), each.ravel())
  back = microbatch.merge(microbatch.split(each.ravel(), parts, plan.order), plan.order)
  np.testing.assert_array_equal(back, each.ravel())
  for way in range(ways):
    sums = real[split[:, way]].sum(1)
    assert set(split[:, way].ravel()) == set(each[way])
    assert sums.max() - sums.min() <= length  # dealt by length: at most one row apart
    for own in split[:, way]:
      taken = np.zeros(plan.bins * plan.width, int)
      for row in own:
        first, last = plan.start[row], plan.start[row] + real[row]
        taken[first:last] += 1
        assert not real[row] or first // plan.width == (last - 1) // plan.width
      assert taken.max(initial=0) <= 1 and taken.sum() == real[own].sum()
      assert counted[own].sum() <= plan.tokens


def test_few_shapes_and_what_is_too_long():
  shapes, rng = set(), np.random.default_rng(0)
  for _ in range(50):
    real = 10 + rng.binomial(30, rng.random(), 64)
    shapes.add(packing.make(real, real - 10, length=40, max_tokens=30, ways=1, parts=2,
                            attention=0.003, balanced=True).shape)
  assert len(shapes) <= 20
  with pytest.raises(ValueError, match="a row of 41 tokens; rows have 40 positions"):
    packing.make(np.asarray([41]), np.asarray([1]), length=40, max_tokens=30, ways=1, parts=1,
                 attention=0.0, balanced=True)


def test_parts_keep_their_rows_where_each_is_scored_alone():
  """scope='micro': what a part computes depends on its rows."""
  batch = rows(6)
  padded, packed = learners("siren", "training.micro=4")
  for learner in (padded, packed):
    learner.objective = dataclasses.replace(learner.objective, scope="micro")
  params = transformer.init(SHAPE, jax.random.key(0))
  theirs, _, _ = gradients(padded, params, batch, 4)
  ours, plan, _ = gradients(packed, params, batch, 4)
  np.testing.assert_array_equal(plan.order, np.arange(ROWS)[None])
  close(ours, theirs, np.asarray(batch.mask), 5e-5)


def lines(folder):
  found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in row.items() if not k.startswith(WALL)} for row in found]


@pytest.mark.slow
def test_a_run_is_the_padded_one_and_resumes_to_the_bit(tmp_path):
  made = config.load("experiments/siren.py", (
      "mesh.data=1", "sampling.prompts=8", "training.updates=2", "training.micro=2",
      "training.steps=2", "training.packing=true", "saving.every=1", "sampling.max_tokens=40"))
  made = dataclasses.replace(made, evaluation=Evaluation(problems=4, samples=2, ks=(1,)))
  learn = lambda **more: dataclasses.replace(
      made, training=dataclasses.replace(made.training, **more))
  loop.run(made, tmp_path / "whole")
  loop.run(learn(steps=1), tmp_path / "parts")
  loop.run(made, tmp_path / "parts")
  loop.run(learn(packing=False), tmp_path / "padded")
  read = lambda name: checkpoint.Checkpoints(tmp_path / name / "checkpoints").meta()
  assert read("whole")["leaves"] == read("parts")["leaves"]  # shapes and fingerprints of all
  trained = {name: [r for r in lines(tmp_path / name) if "train/loss" in r]
             for name in ("whole", "parts", "padded")}
  assert trained["whole"] == trained["parts"] and len(trained["whole"]) == 2
  for ours, theirs in zip(trained["whole"], trained["padded"], strict=True):
    assert ours.keys() == theirs.keys()
    assert ours["train/padding"] <= theirs["train/padding"] < 1.0
    for name in ours.keys() - {"train/padding"}:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=2e-6, err_msg=name)
  total = {name: sum(row["train/padding"] for row in rows) for name, rows in trained.items()}
  assert total["whole"] < total["padded"]
