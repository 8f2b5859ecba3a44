"""PEAR: golden parity, and what its reward orders."""

import jax.numpy as jnp
import numpy as np

from entrolab.methods import grpo, kl, pear, ppo
from entrolab.objective import Objective, term
from entrolab.ranks import masked_mean
from tests import adapters

COLUMNS = dict(think_end=lambda rng: rng.integers(-1, 12, 16).astype(np.int32))


def golden(case):
  config, mask, end = case.config, case["response_mask"], case["think_end"]
  groups = len(np.unique(case.raw("group_ids")))
  config.expect(
      P=groups, G=len(mask) // groups, T=mask.shape[1], V=case.raw("logits").shape[2], std_ddof=1,
      missing_tag="literal k=T: the last response token is the delimiter, H_answer=0; h_think_all "
                  "counts every token")
  before = case.live(case["old_logits"])
  old_entropy, old_logp = (jnp.where(mask, before[n], 0.0) for n in ("entropy", "logp"))
  case.compare("entropy_old", old_entropy, where=mask)
  case.compare("old_logprobs", old_logp, where=mask)
  case.compare("lengths", mask.sum(1))
  thinking, answer = pear.phases(mask, end)
  case.compare("think_mask", thinking)
  case.compare("answer_mask", answer)
  case.compare("h_think", masked_mean(old_entropy, thinking, axis=1))
  missing = (end < 0)[:, None]
  case.compare("h_think_all", masked_mean(old_entropy, jnp.where(missing, mask, thinking), axis=1))
  case.compare("h_answer", masked_mean(old_entropy, answer, axis=1))
  case.compare("penalty", pear.excess(old_entropy, mask, end, alpha=config["alpha"]))
  verdict = (case["correct"] & case["parseable"]).astype(jnp.int32)
  rewards = pear.phase_reward(verdict, old_entropy, mask, end, alpha=config["alpha"],
                              right=config["s"], wrong=config["r_fmt"])
  case.compare("rewards", rewards)
  adv = adapters.per_group(case, grpo.group_advantage, rewards, eps=config["adv_eps"])
  case.compare("advantages", adv)
  case.compare("logprobs", case.live(case["logits"])["logp"], where=mask)
  objective = Objective(
      surrogate=term(ppo.clipped_ratio, low=config["clip"], high=config["clip"]),
      aggregate=adapters.aggregation(config, rest=" (paper GRPO objective)", width=mask.shape[1]),
      penalties=((config["kl_coef"], term(kl.k3)),))
  loss, grad = adapters.loss_and_grad(objective, case, case["logits"], old_logp=old_logp,
                                      adv=jnp.where(mask, adv[:, None], 0.0))
  case.compare("loss", loss)
  case.compare("grad_logits", grad)


def test_of_two_right_answers_the_calmer_thinking_earns_more():
  entropy = jnp.asarray([[1.0, 1.0, 9.0, 0.4, 0.4], [0.5, 0.5, 9.0, 0.4, 0.4]], jnp.float32)
  mask, end = jnp.ones((2, 5), bool), jnp.asarray([2, 2], jnp.int32)
  calm = pear.phase_reward(jnp.asarray([1, 1]), entropy, mask, end)
  np.testing.assert_allclose(calm, [0.4, 0.9], atol=1e-6)  # the tag's own entropy does not count
  wrong_and_unknown = pear.phase_reward(jnp.asarray([0, -1]), entropy, mask, end)
  np.testing.assert_array_equal(wrong_and_unknown, [0.0, np.nan])


def test_a_missing_end_makes_everything_thinking_but_the_last_token():
  entropy = jnp.asarray([[1.0, 2.0, 3.0, 7.0]], jnp.float32)
  mask = jnp.asarray([[True, True, True, False]])
  for end in (-1, 3):  # absent, or outside the mask
    got = pear.excess(entropy, mask, jnp.asarray([end], jnp.int32))
    np.testing.assert_allclose(got, [1.5])


def test_the_reward_may_fall_under_a_wrong_answers_and_the_floor_stops_it():
  entropy, mask = jnp.full((1, 4), 3.0), jnp.ones((1, 4), bool)
  end, right = jnp.asarray([3], jnp.int32), jnp.asarray([1])
  assert pear.phase_reward(right, entropy, mask, end)[0] == -2.0
  assert pear.phase_reward(right, entropy, mask, end, floor=0.1)[0] == np.float32(0.1)
