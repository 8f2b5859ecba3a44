"""Unknown is not wrong: a verdict of -1 is in no statistic, no gradient, no evaluation, no vote."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.batch import Batch
from entrolab.environments import judge
from entrolab.environments.adapters import Attempts
from entrolab.methods import (
    canon,
    dapo,
    gae,
    gpg,
    grpo,
    lite_ppo,
    nsr,
    opo,
    passk,
    pear,
    ppo,
    qae,
    rloo,
    spear,
)
from entrolab.objective import Objective, term
from entrolab.rollout.engine import with_signal
from entrolab.tasks.countdown import Countdown
from entrolab.trainer import evaluate, log, metrics
from entrolab.typing import Array, Int, Reward
from entrolab.verify import Verdict

R, W, U = 1, 0, -1
STATUS = {R: "right", W: "wrong", U: "unknown"}
NOISE = jnp.asarray(np.random.default_rng(0).random((4, 3)), jnp.float32)
MASK = jnp.asarray([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
ADVANTAGES = {
    "group": lambda r: grpo.group_advantage(r, size=4),
    "centred": lambda r: grpo.centred_advantage(r, size=4),
    "leave one out": lambda r: rloo.leave_one_out(r, size=4),
    "length baseline": lambda r: opo.length_baseline(r, MASK, size=4),
    "best margin": lambda r: passk.best_margin(r, size=4),
    "quantile": lambda r: qae.quantile_advantage(r, size=4),
    "scaled": lambda r: gpg.scaled_advantage(r, size=4),
    "batch scaled": lambda r: lite_ppo.batch_scaled(r, size=4),
    "widest groups": lambda r: spear.of_widest_groups(
        grpo.centred_advantage(r, size=4)[:, None] + jnp.zeros((4, 3)), r, MASK, NOISE, size=4,
        fraction=1.0)[:, 0],
    "within halves": lambda r: canon.by_length(r, MASK, NOISE, size=4, mu=0.5)}


def verdicts(codes):
  return [Verdict(STATUS[code], "as told") for code in codes]


@pytest.mark.parametrize("codes", [(R, R, U, U), (R, U, U, U), (W, W, W, U), (U, U, U, U),
                                   (U, R, R, R)], ids=str)
@pytest.mark.parametrize("name", ADVANTAGES)
def test_what_is_known_agrees_and_so_nothing_is_learned(name, codes):
  if name == "within halves" and len({c for c in codes if c != U}) == 1 and codes.count(U) == 1:
    pytest.skip("halves of two and of one: between halves every reward is compared with another")
  rewards = grpo.outcome(jnp.asarray(codes, jnp.int32))
  np.testing.assert_array_equal(ADVANTAGES[name](rewards), np.zeros(4))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_known_rows_that_differ_are_learned_from(name):
  for codes in ((R, W, W, W), (R, W, U, W), (U, W, W, R)):
    got = np.asarray(ADVANTAGES[name](grpo.outcome(jnp.asarray(codes, jnp.int32))))
    known = np.asarray(codes) != U
    assert np.isfinite(got).all() and got[known].any() and not got[~known].any()


def test_unknown_moves_no_known_advantage():
  """Right, right, unknown, unknown was +0.87, +0.87, -0.87, -0.87 when unknown was wrong."""
  rewards = grpo.outcome(jnp.asarray([R, R, U, U, R, W, U, W], jnp.int32))
  got = grpo.group_advantage(rewards, size=4)
  alone = grpo.group_advantage(jnp.asarray([1.0, 0.0, 0.0]), size=3)
  np.testing.assert_array_equal(got[:4], np.zeros(4))
  np.testing.assert_allclose(np.delete(np.asarray(got[4:]), 2), alone, rtol=1e-6)
  assert got[6] == 0.0


def test_verdicts_that_are_read_without_a_reward():
  verdict = jnp.asarray([R, W, U], jnp.int32)
  np.testing.assert_array_equal(nsr.positive(verdict), [1.0, 0.0, 0.0])
  np.testing.assert_array_equal(nsr.negative(verdict), [0.0, -1.0, 0.0])
  np.testing.assert_allclose(nsr.weighted(verdict), [0.1, -1.0, 0.0])
  mask = jnp.ones((3, 2), bool)
  paid = pear.phase_reward(verdict, jnp.zeros((3, 2)), mask, jnp.zeros(3, jnp.int32))
  np.testing.assert_array_equal(paid, [1.0, 0.0, np.nan])
  np.testing.assert_array_equal(gae.last_token(paid, mask)[2], [0.0, 0.0])


def test_a_group_of_right_and_unknown_has_no_signal():
  groups = [(R, W), (R, U), (W, U), (U, U), (R, R), (W, W)]
  rollout = types.SimpleNamespace(batch=Batch(verdict=jnp.asarray(groups, jnp.int32).ravel()))
  assert with_signal(rollout, 2).tolist() == [True, False, False, False, False, False]
  rewards = grpo.outcome(jnp.asarray(groups, jnp.int32).ravel())
  weight = dapo.has_signal(rewards, jnp.ones((12, 1), bool), size=2)
  assert weight[:, 0].tolist() == [1.0, 1.0] + [0.0] * 10


def prepared(verdict, reward=grpo.outcome):
  objective = Objective(reward=term(reward), advantage=term(grpo.centred_advantage, size=4),
                        surrogate=term(ppo.reinforce))
  rows = len(verdict)
  batch = Batch(tokens=jnp.zeros((rows, 3), jnp.int32), mask=jnp.ones((rows, 3), bool),
                verdict=jnp.asarray(verdict, jnp.int32))
  return objective, objective.prepare(batch)


def test_the_token_mean_counts_the_tokens_of_known_rows():
  objective, batch = prepared((R, W, U, U))
  logp = jnp.full((4, 3), jnp.nan).at[:2].set(-1.0)  # whatever stands in rows that are not known
  loss_of = lambda x: objective.loss({**batch.columns(), "logp": x})[0]
  loss, slope = jax.value_and_grad(loss_of)(logp)
  np.testing.assert_allclose(slope, [[-0.5 / 6] * 3, [0.5 / 6] * 3, [0.0] * 3, [0.0] * 3])
  assert np.isfinite(loss) and batch.known.tolist() == [True, True, False, False]
  assert batch.mask.all() and int(batch.counted.sum()) == 6  # what was drawn is still there


def pays_a_root_of(verdict: Int[Array, " B"]) -> Reward:
  return jnp.sqrt(jnp.asarray(verdict, float) - 0.5)


def test_a_reward_that_is_broken_is_not_taken_for_unknown():
  _, batch = prepared((R, W, U, R), reward=pays_a_root_of)
  assert jnp.isnan(batch.adv[1]).all()  # so that the update is refused
  np.testing.assert_array_equal(batch.adv[2], np.zeros(3))



def test_metrics_of_a_rollout():
  _, batch = prepared((R, W, U, U, R, R, U, R))
  batch = batch.replace(finished=jnp.ones(8, bool))
  before = {"entropy": jnp.ones((8, 3)), "logp": -jnp.ones((8, 3))}
  got = metrics.of_rollout(before, batch, None, samples=4, top_p=0.8)
  assert float(got["reward/accuracy"]) == pytest.approx(0.8)
  assert float(got["reward/unknown"]) == 0.375
  assert float(got["reward/mean"]) == pytest.approx(0.8)
  assert float(got["reward/std"]) == pytest.approx(0.4)
  assert (float(got["rollout/groups_with_signal"]), int(got["rollout/tokens"])) == (0.5, 24)
  nothing = batch.replace(verdict=jnp.full(8, U), rewards=jnp.full(8, jnp.nan))
  got = metrics.of_rollout(before, nothing, None, samples=4, top_p=0.8)
  assert math.isnan(got["reward/accuracy"]) and float(got["reward/unknown"]) == 1.0


def test_evaluation_leaves_unknown_out():
  right = np.asarray([[R, W, U, U], [R, R, W, W], [U, U, U, U]])
  np.testing.assert_allclose(evaluate.pass_at_k(right, 1), [0.5, 0.5, np.nan])
  np.testing.assert_allclose(evaluate.pass_at_k(right, 2), [1.0, 5 / 6, np.nan])
  np.testing.assert_allclose(evaluate.pass_at_k(right, 4)[[0, 2]], [np.nan, np.nan])
  texts = ["1", "2", "2", "2", "1", "1", "2", "2", "1", "1", "1", "1"]
  got = evaluate.metrics(right, texts, (1, 2))
  assert got["eval/pass@1"] == 0.5 and got["eval/maj@4"] == 0.5  # no vote of unknown ones
  assert evaluate.majority_right(["a", "b", "b"], [R, U, U]) == 1.0
  assert math.isnan(evaluate.majority_right(["a", "b"], [U, U]))
  assert all(map(math.isnan, evaluate.interval(np.full(3, np.nan))))
  assert log.left_out({"eval/unknown": 0.0}) == ""
  assert "12.5% of the samples" in log.left_out({"eval/unknown": 0.125})


@dataclasses.dataclass(frozen=True)
class Undecided(Countdown):
  """Answers by their text alone."""

  def verify(self, texts, examples):
    return [Verdict(text, "as told") for text in texts]


@pytest.mark.parametrize("said, status", [
    (("wrong", "wrong"), "wrong"), (("unknown",), "unknown"), (("wrong", "right"), "right"),
    (("wrong", "unknown"), "unknown")])
def test_an_episode_with_an_unknown_attempt_is_unknown(said, status):
  world = Attempts(Undecided(), tries=2)
  state, total, done = world.reset(world.examples("eval", 0)[0])[0], 0.0, False
  for text in said:
    assert not done
    (state, _, reward, done), = world.steps([state], [text])
    total += reward
  assert done and judge(total, len(said), "done").status == status


def test_a_replay_buffer_stores_known_rows_and_means_of_them():
  buffer = spear.Replay(size=8, tools=False)
  rows = {"rewards": np.asarray([1, 0, np.nan, 1, np.nan, np.nan, np.nan, np.nan], np.float32),
          "row_adv": np.asarray([0.3, -0.7, 0, 0.3, 0, 0, 0, 0], np.float32),
          "usable": np.ones(8, bool), "tool_calls": np.zeros(8, int)}
  state = buffer.admit(buffer.init(), 0, rows, size=4)
  assert state["rows"]["rewards"].tolist() == [1.0, 1.0]
  np.testing.assert_allclose(state["groups"]["mean"], [2 / 3])
  np.testing.assert_allclose(state["groups"]["std"], [np.std([1, 0, 1], ddof=1)])
