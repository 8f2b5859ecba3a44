"""TTRL: golden parity, ties and silence."""

import jax.numpy as jnp
import numpy as np

from entrolab import vocab
from entrolab.methods import bonus, grpo, ppo, ttrl
from entrolab.objective import Objective, term
from entrolab.ranks import masked_mean
from tests import adapters

COLUMNS = dict(cluster=lambda rng: rng.integers(-1, 3, 16).astype(np.int32),
               elected=lambda rng: rng.random(16) < 0.5)


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  answers, truth = case["answers"], case["ground_truth"]
  size, kept = config["n_votes"], config["n_samples"]
  config.expect(P=len(answers), n_votes=answers.shape[1], T=mask.shape[1], V=logits.shape[2],
                std_ddof=1)
  scale = adapters.aggregation(config, width=mask.shape[1])
  divergence = adapters.divergence(config)
  mean = lambda value: adapters.weighted_mean(case, scale, value)
  flat, knobs = answers.reshape(-1), dict(size=size, silent=True)
  case.compare("vote_label", ttrl.label(flat, **knobs))
  rewards = ttrl.agreement(flat, **knobs).reshape(answers.shape)
  case.compare("rewards_all_votes", rewards)
  case.compare("rewards_kept", rewards[:, :kept])
  real = jnp.asarray(answers == truth[:, None], float)
  metrics = dict(
      label_accuracy=ttrl.label(flat, **knobs) == truth, majority_ratio=ttrl.majority_share(
          flat, **knobs), ground_truth_ratio=real.mean(1), majority_voting_reward=rewards.mean(1),
      reward_accuracy=jnp.asarray(rewards == real, float).mean(1), pass_at_nv=real.max(1),
      post_reward_accuracy=jnp.asarray(rewards == real, float)[:, :kept].mean(1))
  for name, value in metrics.items():
    case.compare(f"metric_{name}", jnp.asarray(value, float))
  adv = adapters.per_group(case, grpo.group_advantage, rewards[:, :kept].reshape(-1),
                           eps=config["adv_eps"])
  adv = jnp.where(mask, adv[:, None], 0.0)
  case.compare("advantages", adv)
  live = case.live(logits, temperature=config["temperature"])
  case.compare("logprobs", live["logp"], where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  gap = divergence({"logp": live["logp"], "ref_logp": case["ref_logprobs"]})
  case.compare("kl_per_token", gap, where=mask)
  case.compare("kl_loss", mean(gap))
  case.compare("entropy_mean", mean(live["entropy"]))
  old, clip = case["old_logprobs"], dict(low=config["clip_low"], high=config["clip_high"])
  # fractions and the distance of the policies are over tokens, whatever the loss is over
  case.compare("ppo_kl", masked_mean(old - live["logp"], mask))
  hit = ppo.is_clipped(live["logp"], old, adv, **clip)
  case.compare("clipfrac", masked_mean(jnp.asarray(hit, float), mask))
  loss = ppo.clipped_ratio(live["logp"], old, adv, **clip)
  lower = (loss > -adv * config["clip_c"]) & (adv < 0)
  case.compare("clipfrac_lower", masked_mean(jnp.asarray(lower, float), mask))
  case.compare("pg_loss", mean(ppo.clipped_ratio(live["logp"], old, adv, dual=config["clip_c"],
                                                 **clip)))
  objective = Objective(
      surrogate=term(ppo.clipped_ratio, dual=config["clip_c"], **clip),
      aggregate=scale, vocab=vocab.Spec(temperature=config["temperature"]),
      penalties=((config["kl_coef"], divergence),
                 (config["entropy_coef"], term(bonus.negative_entropy))))
  value, grad = adapters.loss_and_grad(objective, case, logits, adv=adv)
  case.compare("loss", value)
  case.compare("grad_logits", grad)


def test_ties_go_to_the_answer_that_appears_first():
  cluster = jnp.asarray([7, 2, 2, 7, 5, 1], jnp.int32)
  assert int(ttrl.label(cluster, size=6)[0]) == 7
  np.testing.assert_array_equal(ttrl.agreement(cluster, size=6), [1, 0, 0, 1, 0, 0])


def test_silence_is_not_elected():
  cluster = jnp.asarray([-1, -1, -1, 4], jnp.int32)
  np.testing.assert_array_equal(ttrl.agreement(cluster, size=4), [0, 0, 0, 1])
  np.testing.assert_array_equal(ttrl.agreement(cluster, size=4, silent=True), [1, 1, 1, 0])
  nobody = jnp.full(4, -1, jnp.int32)
  np.testing.assert_array_equal(ttrl.agreement(nobody, size=4), [0, 0, 0, 0])


def test_rewards_are_righter_than_labels_when_the_group_is_spread_out():
  """A wrong label still says truly of most responses that they are wrong."""
  rng = np.random.default_rng(0)
  answers = rng.integers(0, 12, (400, 8))  # the truth is 0, found by chance alone
  cluster = jnp.asarray(answers.reshape(-1), jnp.int32)
  labels = np.asarray(ttrl.label(cluster, size=8)) == 0
  rewards = np.asarray(ttrl.agreement(cluster, size=8)).reshape(400, 8) == (answers == 0)
  assert rewards.mean() > labels.mean() + 0.3
