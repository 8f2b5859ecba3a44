"""Sampling with int8 weights: the arithmetic, its gap to the trainer, meshes, and a run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import config, sharding, vocab
from entrolab.models import parameters, tiny, transformer
from entrolab.trainer import loop
from entrolab.trainer.learner import Learner
from tests import sampler_test

CASES = [dict(), dict(tied=False, qkv_bias=True), dict(qk_norm=True)]


def model(**rest):
  made = transformer.Config(vocab_size=64, width=16, layers=2, heads=4, kv_heads=2, head_dim=4,
                            mlp_width=32, **rest)
  return made, transformer.init(made, jax.random.key(0))


def dequantised(served):
  """The float32 tree that int8 leaves and their scales stand for."""
  def one(tree):
    out = {}
    for name, x in tree.items():
      if name == "layers":
        out[name] = one(x)
      elif f"{name}_scale" in tree:
        axes = parameters.BY_NAME[name].summed_axes
        out[name] = x * np.expand_dims(tree[f"{name}_scale"], axes)
      elif not name.endswith("_scale"):
        out[name] = x
    return out

  return one(jax.tree.map(lambda x: np.asarray(x, np.float32), served))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most(case):
  made, params = model(**case)
  params["embed"] = params["embed"].at[5].set(0.0)  # a channel of zeros stays one
  served = transformer.serving(made, params, int8=True)
  back = dequantised(served)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  flat = {**served, **served["layers"]}
  assert {name for name, x in flat.items() if getattr(x, "dtype", 0) == jnp.int8} == (
      {"embed", "qkv", "out", "gate_up", "down"} | (set() if made.tied else {"head"}))
  for row in parameters.of(made):
    if row.summed:
      got, want = row.within(back), row.within(params)
      half = np.abs(np.asarray(want)).max(row.summed_axes, keepdims=True) / 127.0 / 2.0
      assert (np.abs(got - want) <= half * (1 + 1e-5)).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_forward_pass_is_that_of_the_weights_they_stand_for(case):
  made, params = model(**case)
  served = transformer.serving(made, params, int8=True)
  tokens = jax.random.randint(jax.random.key(1), (3, 7), 0, made.vocab_size)
  at = jnp.broadcast_to(jnp.arange(7), (3, 7))
  hidden = lambda p: transformer.extend(made, p, tokens, at, jnp.ones((3, 7), bool),
                                        transformer.empty_cache(made, 3, 7), 0)[0][:, -1]
  back = jax.tree.map(jnp.asarray, dequantised(served))
  np.testing.assert_allclose(transformer.logits(made, served, hidden(served)),
                             transformer.logits(made, back, hidden(back)), rtol=1e-4, atol=1e-5)


def test_the_sampler_reports_the_log_probs_of_what_it_drew_from():
  """Of the int8 policy; those of the model itself are near, and not the same."""
  made, params, tokenizer = tiny.load()
  served = transformer.serving(made, params, int8=True)
  examples = [sampler_test.Countdown().examples("eval", 5)[i] for i in range(8)]
  prompt, mask, out = sampler_test.run((made, served, tokenizer), examples)
  again = jnp.concatenate([jnp.repeat(prompt, sampler_test.SAMPLES, 0), out.tokens], 1)
  valid = jnp.concatenate([jnp.repeat(mask, sampler_test.SAMPLES, 0), out.mask], 1)
  at = jnp.maximum(jnp.cumsum(valid, 1) - 1, 0).astype(jnp.int32)

  def gap(tree):
    tree = jax.tree.map(jnp.asarray, tree)
    hidden = transformer.hidden_states(made, tree, again, at, valid.astype(jnp.int32))
    live = vocab.fused(hidden[:, prompt.shape[1] - 1:-1], transformer.head_matrix(tree),
                       out.tokens, vocab.Spec())
    return np.abs(np.where(out.mask, live["logp"] - out.logp, 0.0)).max()

  assert gap(dequantised(served)) < 1e-4 < gap(params) < 0.5


@pytest.mark.parametrize("axes", [(2, 1, 1), (1, 2, 2)])
def test_meshes_serve_the_same(axes):
  made = config.load("experiments/toy.py", ("sampling.weights=int8",))
  size, params, _ = made.model.load()
  mesh = sharding.make_mesh(*axes)
  learner = Learner(made, size, mesh)
  served = learner.serve_rollouts(learner.init(params).params)
  want = transformer.serving(size, params, int8=True)
  assert jax.tree.structure(served) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(served), jax.tree.leaves(want), strict=True):
    if a.dtype == jnp.int8:  # where a scale is off in its last bit
      assert b.dtype == jnp.int8 and np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    else:
      np.testing.assert_allclose(a, b, rtol=3e-7)


@pytest.mark.slow
def test_a_run_logs_the_gap_and_evaluates_the_policy_itself(tmp_path):
  rows, small = {}, ("training.steps=1", "evaluation.problems=8", "sampling.prompts=8",
                     "mesh.data=1")
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    for weights in ("model", "int8"):
      made = config.load("experiments/toy.py", (*small, f"sampling.weights={weights}"))
      loop.run(made, tmp_path / weights)
      rows[weights] = [json.loads(line) for line in (tmp_path / weights / "metrics.jsonl")
                       .read_text().splitlines()]
  (before, step, _), (exact_before, exact, _) = rows["int8"], rows["model"]
  assert before["eval/pass@1"] == exact_before["eval/pass@1"]
  assert before["eval/entropy"] == exact_before["eval/entropy"]
  assert exact["sampling/logp_difference/max"] < 1e-4 < step["sampling/logp_difference/max"] < 1.0


def test_another_choice_is_refused():
  with pytest.raises(ValueError, match="sampling.weights='int4'; choices: model, int8"):
    made = config.load("experiments/toy.py")
    dataclasses.replace(made, sampling=dataclasses.replace(made.sampling, weights="int4"))
