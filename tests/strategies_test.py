"""Strategies of rollouts on real parts: tempered blocks, slices, votes, stages."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import presets, sharding
from entrolab.methods import aepo_arbitrary, grpo, ppo, ttrl
from entrolab.models import tiny
from entrolab.objective import Objective, term
from entrolab.rollout import branch, compilations
from entrolab.rollout.engine import Engine, with_signal
from entrolab.rollout.greedy import Greedy
from entrolab.rollout.oversample import Oversample
from entrolab.rollout.plain import Plain
from entrolab.rollout.sft import SFT
from entrolab.rollout.strategy import Request, Sampling, check
from entrolab.rollout.switch import Switch
from entrolab.rollout.tempered import Tempered
from entrolab.rollout.votes import Votes
from entrolab.tasks.countdown import Countdown
from entrolab.trainer import loop

pytestmark = pytest.mark.slow  # minutes on two cores

MAX_TOKENS, KEY = 18, jax.random.key(7)
WARM = {"temperature": jnp.asarray(1.2, jnp.float32)}


@pytest.fixture(scope="module")
def lab():
  config, params, tokenizer = tiny.load()
  return config, jax.tree.map(jnp.asarray, params), tokenizer


@pytest.fixture(scope="module")
def examples():
  return [Countdown().examples("eval", 5)[i] for i in range(8)]


def draw(lab, examples, strategy, *, mesh=(1, 1, 1), control=None, step=3, **sampling):
  config, params, tokenizer = lab
  engine = Engine(config, tokenizer, Countdown(), sharding.make_mesh(*mesh))
  fresh = examples if callable(examples) else lambda: examples
  sampling = Sampling(**{"samples": 4, "max_tokens": MAX_TOKENS, **sampling})
  check(strategy, sampling)
  return strategy(engine, Request(params, fresh, KEY, step, control or {}, sampling))


def columns(got):
  return {name: np.asarray(x) for name, x in got.batch.columns().items()}


@pytest.fixture(scope="module")
def independent(lab, examples):
  return draw(lab, examples, Plain())


def equal(got, want, ours: Any = slice(None), theirs: Any = slice(None)):
  """Tokens, verdicts and identities to the bit; log-probs round with the shape of the batch."""
  a, b = columns(got), columns(want)
  for name in ("tokens", "mask", "row", "verdict"):
    np.testing.assert_array_equal(a[name][ours], b[name][theirs], err_msg=name)
  np.testing.assert_allclose(a["old_logp"][ours], b["old_logp"][theirs], atol=1e-4)


def test_a_tempered_block_stands_beside_the_groups_of_plain(lab, examples, independent):
  got = draw(lab, examples, Tempered(), control=WARM)
  c = columns(got)
  assert got.sampled == 40 == len(got.texts)  # 8 groups and 2 further ones, of 4
  np.testing.assert_array_equal(c["tempered"], np.arange(40) >= 32)
  np.testing.assert_array_equal(c["group"], np.repeat(np.arange(10), 4))
  equal(got, independent, slice(0, 32))
  np.testing.assert_array_equal(c["prompt"][32:], c["prompt"][:8])
  assert [e.id for e in got.examples[32:]] == [e.id for e in got.examples[:8]]
  assert len(np.unique(c["row"], axis=0)) == 40
  # the log-probs of the hot rows are the policy's own, not those of the density drawn from
  on = c["mask"] & (np.arange(40) >= 32)[:, None]
  assert np.abs(c["old_logp"] - c["sampled_logp"])[on].max() > 0.05
  np.testing.assert_allclose(c["old_logp"][:32], c["sampled_logp"][:32], atol=1e-5)


def test_the_temperature_is_the_controllers_and_never_recompiles(lab, examples):
  draw(lab, examples, Tempered(), control=WARM)
  before = compilations.total()
  entropy = {}
  for temperature in (0.5, 1.2, 2.0):
    got = draw(lab, examples, Tempered(one_in=2), control={
        "temperature": jnp.asarray(temperature, jnp.float32)}, samples=16)
    c = columns(got)
    hot = c["tempered"][:, None] & c["mask"]
    entropy[temperature] = -c["old_logp"][hot].mean()
  assert compilations.total() - before <= 1
  assert entropy[0.5] < entropy[1.2] - 0.05 < entropy[2.0] - 0.1


def test_every_mesh_tempers_the_same(lab, examples):
  one = draw(lab, examples, Tempered(one_in=1), control=WARM)
  many = draw(lab, examples, Tempered(one_in=1), control=WARM, mesh=(4, 2, 1))
  assert many.texts == one.texts
  np.testing.assert_array_equal(columns(many)["tempered"], columns(one)["tempered"])
  with pytest.raises(ValueError, match="8 \\+ 2 groups do not divide over data x fsdp=8"):
    draw(lab, examples, Tempered(), control=WARM, mesh=(8, 1, 1))


def test_what_tempered_rows_cannot_be(lab, examples):
  with pytest.raises(TypeError, match="no controller has it; choices: coef"):
    draw(lab, examples, Tempered(), control={"coef": jnp.zeros(())})
  with pytest.raises(ValueError, match="set sampling.refills=0"):
    draw(lab, examples, Tempered(), control=WARM, refills=2)
  with pytest.raises(ValueError, match="one_in at most 8"):
    draw(lab, examples, Tempered(one_in=9), control=WARM)


def test_slices_are_the_samples_of_one_call(lab, examples, independent):
  got = draw(lab, examples, Oversample(2))
  equal(got, independent)
  assert got.texts == independent.texts and got.steps > independent.steps
  with pytest.raises(ValueError, match=r"4 samples a prompt in slices of 3; choices: \[1, 2, 4\]"):
    draw(lab, examples, Oversample(3))


def test_slices_refill(lab):
  drawn = []

  def fresh():
    at = 8 * len(drawn)
    drawn.append([Countdown().examples("train", 0)[at + i] for i in range(8)])
    return drawn[-1]

  got = draw(lab, fresh, Oversample(2), refills=5)
  assert with_signal(got, 4).all() and got.refills == len(drawn) - 1 >= 1
  assert got.sampled == 32 * len(drawn)


def test_all_vote_and_the_first_are_kept(lab, examples):
  every = draw(lab, examples, Plain(), samples=12)
  got = draw(lab, examples, Votes(votes=12, size=4))
  c = columns(got)
  first = (np.arange(96).reshape(8, 12)[:, :4]).reshape(-1)
  equal(got, every, theirs=first)
  assert got.sampled == 96 and got.texts == [every.texts[i] for i in first]
  for group in range(8):
    texts = every.texts[12 * group:12 * group + 12]
    most = max(texts, key=lambda t: (texts.count(t), -texts.index(t)))
    own = slice(4 * group, 4 * group + 4)
    assert [t == most for t in texts[:4]] == c["elected"][own].tolist()
    assert c["cluster"][own].tolist() == [texts.index(t) for t in texts[:4]]
  np.testing.assert_array_equal(ttrl.voted(got.batch.extra["elected"]), c["elected"])
  # a vote among the kept ones alone is another vote
  assert (np.asarray(ttrl.agreement(got.batch.extra["cluster"], size=4)) != c["elected"]).any()


def test_votes_that_cannot_be(lab, examples):
  with pytest.raises(ValueError, match="samples=4 of votes=2"):
    draw(lab, examples, Votes(votes=2, size=2))
  with pytest.raises(ValueError, match="no labels"):
    draw(lab, examples, Votes(votes=8, size=8), refills=1)


def test_a_stage_without_branches_is_plain(lab, examples, independent):
  got = draw(lab, examples, branch.Cure(4, 0))
  equal(got, independent)
  np.testing.assert_array_equal(got.batch.prompt[:, MAX_TOKENS:], independent.batch.prompt)
  assert not got.batch.prompt_mask[:, :MAX_TOKENS].any()
  assert got.counts == {"prefill_tokens": int(independent.batch.prompt_mask[::4].sum()),
                        "reused_tokens": 0}


def test_two_stages_share_one_train_step():
  first = branch.Cure(2, 1, most=4, verify="whole", admissible=branch.visible)
  stages = Switch(first, branch.Cure(4, 0, verify="whole"), 1)
  objective = Objective(reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=4),
                        surrogate=term(ppo.clipped_ratio))
  made = presets.get("tiny").experiment(
      "stages", objective, rollout=stages, sampling=dict(prompts=8, samples=4),
      training=dict(updates=2), mesh=presets.Mesh(data=1),
      evaluation=presets.Evaluation(problems=8))
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    held = loop.Lab(made)
    before = compilations.of(held.learner.step)
    state = held.learner.init(held.params)
    kinds = []
    for step in range(3):
      state, rollout, metrics = loop.train_step(held, state, step, pathlib.Path("/nonexistent"))
      kinds.append(int(rollout.batch.extra["row_kind"].sum()))
      # the trainer scores a branch in its own context
      assert metrics["sampling/logp_difference/max"] < 1e-4
      assert metrics["train/applied"] == 1.0
  assert kinds == [16, 0, 0] and compilations.of(held.learner.step) == before + 1
  with pytest.raises(ValueError, match="columns of Cure are"):
    Switch(first, Plain(), 1)


def test_the_switch_steers_what_is_drawn():
  """From the train state to the rows, and back through the measured entropy."""
  objective = Objective(
      reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=4),
      surrogate=term(ppo.clipped_ratio), weights=(term(aepo_arbitrary.on_policy),),
      extra=("tempered",), control=(aepo_arbitrary.Switch(target=0.01),))
  made = presets.get("tiny").experiment(
      "steered", objective, rollout=Tempered(one_in=1), mesh=presets.Mesh(data=1),
      sampling=dict(prompts=8, samples=4), training=dict(updates=2),
      evaluation=presets.Evaluation(problems=8))
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    held = loop.Lab(made)
    state = held.learner.init(held.params)
    sampling = Sampling(samples=4, max_tokens=MAX_TOKENS)
    for step, temperature in enumerate((1.2, 0.8)):  # cold once the entropy is over the target
      params = jax.tree.map(jnp.copy, state.params)
      assert float(state.control["temperature"]) == np.float32(temperature)
      state, rollout, _ = loop.train_step(held, state, step, pathlib.Path("/nonexistent"))
      again = made.rollout(held.engine, Request(
          params, lambda r=rollout: r.examples[:32:4], held.key, step,
          {"temperature": np.float32(temperature)}, sampling))
      assert rollout.texts == again.texts and len(again.texts) == 64


def test_the_greedy_response_is_the_baseline_of_its_prompt(lab, examples, independent):
  got = draw(lab, examples, Greedy())
  greedy = draw(lab, examples, Plain(), samples=1, temperature=0.0)
  equal(got, independent)
  right = np.asarray([v.status == "right" for v in greedy.verdicts])
  assert right.any() and not right.all()
  np.testing.assert_array_equal(columns(got)["greedy_rewards"], np.repeat(right, 4))
  assert got.sampled == 40 and got.steps == independent.steps + greedy.steps


def test_groups_without_a_signal_are_replaced_with_their_greedy_rewards(lab):
  train_set, at = Countdown().examples("train", 0), iter(range(0, 64, 8))

  def fresh():
    begin = next(at)
    return [train_set[begin + i] for i in range(8)]

  got = draw(lab, fresh, Greedy(), refills=2)
  assert got.refills >= 1
  greedy = draw(lab, got.examples[::4], Plain(), samples=1, temperature=0.0)
  np.testing.assert_array_equal(columns(got)["greedy_rewards"][::4],
                                [v.status == "right" for v in greedy.verdicts])


def test_demonstrations_are_rows_that_nobody_sampled(lab, examples):
  got = draw(lab, examples, SFT(), samples=1)
  c, tokenizer = columns(got), lab[2]
  assert got.texts == [e.answer for e in examples] and got.sampled == 0
  assert (c["verdict"] == 1).all() and "old_logp" not in c
  for tokens, mask, example in zip(c["tokens"], c["mask"], examples, strict=True):
    ids = tokens[mask].tolist()
    assert tokenizer.decode(ids[:-1]) == example.answer and ids[-1] in tokenizer.stop_ids
  with pytest.raises(ValueError, match=r"sampling.samples=4: a prompt has one demonstration"):
    draw(lab, examples, SFT())
  with pytest.raises(ValueError,
                     match=r"the solution of example \d+ has 1\d tokens .*max_tokens=8"):
    draw(lab, examples, SFT(), samples=1, max_tokens=8)
