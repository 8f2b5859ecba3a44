"""T1: golden parity, where centring the KL acts, the detector of repetitions, the moving anchor."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.experiment import Reference
from entrolab.methods import bonus, grpo, kl, ppo, rloo, t1
from entrolab.objective import Objective, Penalty, term
from entrolab.trainer.learner import next_reference
from tests import adapters, bandit


def golden(case):
  if case.path.stem.startswith("t1_ema"):
    case.config.expect(order="update after the policy step")
    return case.compare("ref", _anchors(case["ref0"], case["policy"], case.config["decay"]))
  config, mask, logits = case.config, case["response_mask"], case["logits"]
  bad, columns = case.raw("bad_pattern") > 0, case.columns()
  rewards = t1.broken_output(case["correct"], jnp.asarray(~bad), *(
      columns[k] for k in ("tokens", "old_logp", "mask")))
  case.compare("rewards", rewards)
  args = [columns[k] for k in ("old_logp", "ref_logp", "mask")]
  over = 0 if config["center_kl"] else None
  case.compare("seq_kl", t1.sequence_kl(*args, over=None))
  case.compare("centered_kl", t1.sequence_kl(*args, over=over))
  shaped = t1.kl_in_reward(rewards, *args, beta=config["beta"], over=over)
  case.compare("shaped_rewards", shaped)
  case.arrays["group_ids"] = case.raw("group_id")
  adv = adapters.per_group(case, rloo.leave_one_out, shaped, alone=0.0)
  case.compare("seq_advantage", adv)
  adv = jnp.where(mask, adv[:, None], 0.0)
  case.compare("advantages", adv)
  forms = {"logp": ppo.reinforce, "ratio": ppo.plain_ratio}
  config.expect(form=tuple(forms))
  loss = dict(surrogate=term(forms[config["form"]]),
              aggregate=adapters.aggregation(config, width=mask.shape[1]))
  case.compare("pg_loss", adapters.loss_and_grad(Objective(**loss), case, logits, adv=adv)[0])
  case.compare("entropy", adapters.weighted_mean(case, loss["aggregate"],
                                                 case.live(logits)["entropy"]))
  objective = Objective(**loss, penalties=((config["alpha"], term(bonus.negative_entropy)),))
  loss, grad = adapters.loss_and_grad(objective, case, logits, adv=adv)
  case.compare("loss", loss)
  case.compare("grad_logits", grad)


def _anchors(reference, policies, decay):
  """The trainer's rule, after each of the updates."""
  rule = Reference(rule="ema", decay=decay)
  seen = []
  for policy in policies:
    reference = next_reference(rule, 1, types.SimpleNamespace(reference=reference), policy)
    seen.append(reference)
  return jnp.stack(seen)


def test_centring_acts_outside_the_baseline_alone():
  """The note's inconsistency: inside leave-one-out no centring moves an advantage; in the loss the
  expected gradient stays that of KL(pi || ref) and centring lowers its variance."""
  rng = np.random.default_rng(0)
  old, ref = (jnp.asarray(-rng.exponential(size=(12, 9)), jnp.float32) for _ in range(2))
  rewards, mask = jnp.asarray(rng.integers(0, 2, 12), jnp.float32), jnp.ones((12, 9), bool)
  advantages = [rloo.leave_one_out(t1.kl_in_reward(rewards, old, ref, mask, beta=0.1, over=over),
                                   size=4) for over in (None, 0, 4)]
  np.testing.assert_allclose(advantages[1], advantages[0], atol=1e-6)
  np.testing.assert_allclose(advantages[2], advantages[0], atol=1e-6)
  z, r = (jnp.asarray(rng.normal(size=16) * 2.0, jnp.float32) for _ in range(2))
  ref = jax.nn.log_softmax(r)
  exact = lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - ref)).sum()
  p, logp = jax.nn.softmax(z), jax.nn.log_softmax(z)[:, None]
  w = t1.kl_weight(logp, ref[:, None], jnp.ones((16, 1), bool), over=None)
  scores = jax.jacobian(lambda z: t1.log_prob(jax.nn.log_softmax(z)))(z)
  np.testing.assert_allclose(p @ (w * scores), jax.grad(exact)(z), atol=1e-5)
  spread = lambda w: p @ jnp.square(w * scores).sum(1)
  assert spread(w - exact(z)) < 0.8 * spread(w)


def test_repetitions_are_counted_exactly():
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, 3, (64, 40))
  tokens[1, :] = 5
  lengths = rng.integers(0, 41, 64)
  mask = np.arange(40) < lengths[:, None]
  for n, times in ((1, 9), (3, 3), (4, 2), (5, 2), (20, 10)):
    grams = [collections.Counter(tuple(row[i:i + n]) for i in range(k - n + 1))
             for row, k in zip(tokens.tolist(), lengths, strict=True)]
    want = np.array([max(c.values(), default=0) >= times for c in grams])
    assert n > 5 or 0 < want.sum() < 64
    got = t1.repeats(jnp.asarray(tokens), jnp.asarray(mask), n=n, times=times)
    np.testing.assert_array_equal(got, want)
  calm, mask = jnp.full((1, 64), -1.0), jnp.ones((1, 64), bool)
  assert not t1.garbled(calm, mask)[0]
  assert t1.garbled(calm.at[0, 20:52].set(-6.1), mask)[0]
  assert not t1.garbled(calm.at[0, 20:40].set(-6.1), mask)[0]


def test_a_moving_anchor_bounds_the_kl_that_a_fixed_one_does_not():
  """Claim 2: the policy drifts at a constant rate; KL to the first policy keeps growing, KL to the
  average settles."""
  z = jnp.asarray(np.random.default_rng(2).normal(size=8), jnp.float32)
  drift = jnp.linspace(-0.01, 0.01, 8)
  policies = z[None] + jnp.arange(1.0, 401.0)[:, None] * drift[None]
  anchors = _anchors(z, policies, 0.99)
  logp, near, first = (jax.nn.log_softmax(x) for x in (policies, anchors, z[None]))
  to = lambda other: np.asarray((jnp.exp(logp) * kl.k1(logp, other)).sum(-1))
  fixed, moving = to(jnp.broadcast_to(first, logp.shape)), to(near)
  assert (np.diff(fixed) > 0).all() and fixed[-1] > 3.0 * moving.max()
  assert moving[-1] < moving[200]


def test_more_bonus_more_entropy():
  """Claim 4, three seeds: final entropy rises with alpha."""
  task = bandit.Task(good=4, steps=60)
  ends = []
  for alpha in (0.0, 0.1, 0.3):
    objective = Objective(reward=term(grpo.outcome), surrogate=term(ppo.reinforce),
                          advantage=term(rloo.leave_one_out, size=8, alone=0.0),
                          penalties=(Penalty(alpha, term(bonus.negative_entropy)),))
    ends.append(bandit.train(task, objective)["entropy"][:, -10:].mean(1))
  print("entropy", ends)
  assert (ends[0] < ends[1]).all() and (ends[1] < ends[2]).all()
