"""One-shot RLVR: golden parity, saturation, and the selection score."""

import jax.numpy as jnp
import numpy as np

from entrolab import aggregate, vocab
from entrolab.methods import bonus, grpo, kl, one_shot, ppo
from entrolab.objective import Objective, term
from entrolab.ranks import masked_mean
from tests import adapters

K3, TOKENS = term(kl.k3), term(aggregate.token_mean)


def recipe(config, divergence=K3, scale=TOKENS):
  return Objective(
      surrogate=term(one_shot.policy_loss, coefficient=config["pg_loss_coeff"],
                     clip=config["clip"]),
      penalties=((config["entropy_coeff"], term(bonus.negative_entropy)),
                 (config["kl_coef"], divergence)),
      aggregate=scale, vocab=vocab.Spec(temperature=config["temperature"]))


def golden(case):
  config = case.config
  if "history" in case:
    history = case["history"]
    config.expect(N=len(history), epochs=history.shape[1], ddof=0,
                  ragged=bool(np.isnan(np.asarray(history)).any()))
    variance = one_shot.historical_variance(history)
    case.compare("variance", variance)
    case.compare("std", jnp.sqrt(variance))
    case.compare("order_std", one_shot.ranked(variance))
    case.compare("lim_score", one_shot.lim_score(history))
    case.compare("order_lim", one_shot.ranked(one_shot.lim_score(history)))
    return
  logits, mask = case["logits"], case["response_mask"]
  groups = len(np.unique(case.raw("group_ids")))
  config.expect(P=groups, G=len(mask) // groups, T=mask.shape[1], V=logits.shape[2], std_ddof=1)
  rest = " per micro-batch, weighted by rows/total rows"
  scale = adapters.aggregation(config, rest=rest, width=mask.shape[1])
  divergence = adapters.divergence(config)
  live = case.live(logits, temperature=config["temperature"])
  case.compare("logprobs", live["logp"], where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  adv = adapters.per_group(case, grpo.group_advantage, case["rewards"], eps=config["adv_eps"])
  adv = jnp.where(mask, adv[:, None], 0.0)
  case.compare("advantages", adv)
  parts = [np.asarray(rows) for rows in config["micro"]]
  over = lambda x, mean: jnp.stack([mean(x[rows], mask[rows]) for rows in parts])
  mean = lambda x: over(x, lambda x, on: (scale({"mask": on}) * jnp.where(on, x, 0.0)).sum())
  old = case["old_logprobs"]
  whole = dict(pg_loss=ppo.clipped_ratio(live["logp"], old, adv, low=config["clip"],
                                         high=config["clip"]),
               entropy_loss=live["entropy"])
  for name, value in whole.items():
    case.compare(name, mean(value))
  clipped = ppo.is_clipped(live["logp"], old, adv, low=config["clip"], high=config["clip"])
  case.compare("ppo_kl", over(old - live["logp"], masked_mean))
  case.compare("clipfrac", over(jnp.asarray(clipped, float), masked_mean))
  if config["kl_coef"]:
    case.compare("kl_loss", mean(divergence({"logp": live["logp"],
                                             "ref_logp": case["ref_logprobs"]})))
  else:
    config.ignore("the loss has no KL at coefficient 0", "kl")
    case.ignore("kl_loss", "the official loss leaves the term out at coefficient 0")
  total, grads = 0.0, np.zeros(logits.shape)
  for rows in parts:  # the official sum over micro-batches, weighted by rows
    part = _Rows(case, rows)
    loss, grad = adapters.loss_and_grad(recipe(config, divergence, scale), part, logits[rows],
                                        adv=adv[rows])
    share = len(rows) / len(mask)
    total, grads[rows] = total + share * loss, share * np.asarray(grad)
  case.compare("loss", total)
  case.compare("grad_logits", grads)


class _Rows:
  """Some rows of a case."""

  def __init__(self, case, rows):
    self.case, self.rows = case, rows

  def __getitem__(self, name):
    return self.case[name][self.rows]

  def columns(self, **more):
    own = {k: v[self.rows] for k, v in self.case.columns().items()}
    return {**own, **more}


def test_the_most_undecided_example_comes_first():
  history = jnp.asarray([[0.0] * 4, [0.0, 1.0, 0.0, 1.0], [1.0] * 4, [0.5, 0.6, 0.5, 0.6]])
  order = one_shot.ranked(one_shot.historical_variance(history))
  np.testing.assert_array_equal(order, [1, 3, 0, 2])


def test_when_every_answer_is_right_only_the_penalties_move_the_policy():
  config = dict(pg_loss_coeff=1.0, clip=0.2, entropy_coeff=0.0, kl_coef=0.0, temperature=1.0)
  rng = np.random.default_rng(0)
  shape = (8, 5)
  adv = grpo.group_advantage(jnp.ones(8), size=8)[:, None] * jnp.ones(shape)
  columns = dict(mask=jnp.ones(shape, bool), adv=adv, ref_logp=jnp.zeros(shape),
                 old_logp=jnp.asarray(-rng.random(shape), jnp.float32),
                 logp=jnp.asarray(-rng.random(shape), jnp.float32), entropy=jnp.ones(shape))
  assert float(recipe(config).loss(columns)[0]) == 0.0
  loss = recipe({**config, "entropy_coeff": 0.1}).loss(columns)[0]
  np.testing.assert_allclose(loss, -0.1, rtol=1e-6)  # a sum of 40 numbers, in any order


def test_histories_that_agree_with_a_perfect_mean_score_one():
  assert np.asarray(one_shot.lim_score(jnp.ones((3, 4)))).tolist() == [1.0] * 3
  none = jnp.full((2, 3), jnp.nan)
  assert np.asarray(one_shot.lim_score(none)).tolist() == [1.0] * 2
