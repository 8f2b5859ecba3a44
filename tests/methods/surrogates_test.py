"""Surrogates and estimators of the KL: verl's golden files, and what surrogates promise."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import aggregate
from entrolab.methods import bonus, cispo, gmpo, gspo, kl, ppo, sapo
from entrolab.objective import Objective, term
from entrolab.ranks import masked_mean
from tests import adapters

KL = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3, "abs": kl.absolute, "k1+": kl.k1_plus,
      "k3+": kl.k3_plus}
PLAIN = {"token-mean": aggregate.token_mean, "seq-mean-token-sum": aggregate.sequence_sum,
         "seq-mean-token-mean": aggregate.sequence_mean}


def _scale(mode, case, factor=None):
  if mode == "seq-mean-token-sum-norm":
    return term(aggregate.fixed_sum, divisor=float(factor or case.raw("response_mask").shape[1]))
  return term(PLAIN[mode])


def _surrogate(run, case):
  """(surrogate, aggregation) of one run of the file's configuration."""
  mode = run["mode"]
  low, high = run.get("low", run.get("clip", 0.2)), run.get("high", run.get("clip", 0.2))
  if mode == "vanilla":
    surrogate = term(ppo.clipped_ratio, low=low, high=high, dual=run.get("c", 3.0))
    return surrogate, _scale(run.get("agg", "token-mean"), case, run.get("loss_scale_factor"))
  if mode == "sapo":
    knobs = dict(positive=run["tau_pos"], negative=run["tau_neg"])
    return term(sapo.soft_gate, **knobs), term(aggregate.sequence_mean)
  fns = dict(gspo=(gspo.clipped_sequence, aggregate.sequence_mean),
             geo_mean=(gmpo.geometric_mean, aggregate.row_mean),
             cispo=(cispo.clipped_weight, aggregate.token_mean),
             gpg=(ppo.reinforce, aggregate.token_mean),
             reinforce=(ppo.reinforce, aggregate.sequence_sum))
  fn, scale = fns[mode]
  knobs = {} if fn is ppo.reinforce else dict(low=low, high=high)
  return term(fn, **knobs), term(scale)


def _metrics(case, name, run, live, mask):
  """The stored clip fractions of a run, from our own tests of what a clip removes."""
  logp, old, adv = live["logp"], case["old_logprobs"], case["advantages"]
  low, high = run.get("low", run.get("clip", 0.2)), run.get("high", run.get("clip", 0.2))
  lower = jnp.zeros(mask.shape, bool)
  if run["mode"] == "geo_mean":
    d = logp - old  # counted outside the range, whether or not the minimum takes the clip
    outside = jnp.clip(d, -low, high) != d
    clipped, lower = outside & (adv > 0), outside & (adv < 0)
  elif run["mode"] == "gspo":
    s = gspo.sequence_ratio(logp, old, mask)
    clipped = -adv * jnp.clip(s, 1.0 - low, 1.0 + high) > -adv * s
  elif run["mode"] == "cispo":
    r = ppo.ratio(logp, old)
    clipped = jnp.clip(r, 1.0 - low, 1.0 + high) != r
  else:
    clipped = ppo.is_clipped(logp, old, adv, low=low, high=high)
    args = dict(low=low, high=high)
    before, after = (ppo.clipped_ratio(logp, old, adv, dual=c, **args)
                     for c in (0.0, run.get("c", 3.0)))
    lower = (before > after) & (adv < 0)
  share = lambda x: float(masked_mean(x.astype(float), mask))
  ours = {"actor/pg_clipfrac": share(clipped), "actor/pg_clipfrac_lower": share(lower),
          "actor/ppo_kl": share(old - logp)}
  for key, want in case.text(f"metrics_{name}").items():
    got = ours[key]
    case.rows.append(adapters.Row(f"{name}:{key}", abs(got - want) / (abs(want) + 1e-3),
                                  adapters.VALUE))


def golden(case):
  logits, mask = case["logits"], case["response_mask"]
  live = case.live(logits)
  case.compare("logprobs", live["logp"], where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  for name, run in case.config["runs"].items():
    tolerance = adapters.VALUE
    if "mode" in run:
      surrogate, scale = _surrogate(run, case)
      objective = Objective(surrogate=surrogate, aggregate=scale)
      loss, grad = adapters.loss_and_grad(objective, case, logits)
      tolerance = adapters.slack(case, objective, live, loss)
    elif name == "ppo_ent_kl":
      objective = Objective(surrogate=term(ppo.clipped_ratio, dual=3.0), penalties=(
          (run["entropy_coeff"], term(bonus.negative_entropy)),
          (run["kl_coef"], term(KL[run["kl"]]))))
      loss, grad = adapters.loss_and_grad(objective, case, logits)
    elif "kl" in run:
      fn, ref = KL[run["kl"]], case["ref_logprobs"]
      case.compare(name, fn(live["logp"], ref), where=mask)
      loss, grad = _mean(case, logits, mask, lambda now, fn=fn, ref=ref: fn(now["logp"], ref))
    elif name == "entropy_token_mean":
      loss, grad = _mean(case, logits, mask, lambda now: now["entropy"])
    else:
      raise adapters.Mismatch(f"{case.path.name}: no objective for run {name}: {run}")
    case.compare(f"loss_{name}", loss, tolerance=tolerance)
    case.compare(f"grad_{name}", grad)
    if f"metrics_{name}" in case:
      _metrics(case, name, run, live, mask)


def _mean(case, logits, mask, value):
  """Token mean of a statistic, and its gradient."""
  def loss(z):
    return (aggregate.token_mean(mask) * jnp.where(mask, value(case.live(z)), 0.0)).sum()

  return jax.value_and_grad(loss)(logits)


def test_all_surrogates_start_at_the_policy_gradient():
  """Claim 4: on policy the gradient is that of -A log pi, whatever the clip."""
  rng = np.random.default_rng(0)
  shape = (6, 7)
  logp = jnp.asarray(-rng.exponential(size=shape), jnp.float32)
  adv = jnp.broadcast_to(jnp.asarray(rng.normal(size=(6, 1)), jnp.float32), shape)
  mask = jnp.asarray(rng.random(shape) < 0.7)
  scale = aggregate.sequence_mean(mask)
  grad = lambda fn: jax.grad(lambda x: (scale * fn(x)).sum())(logp)
  want = grad(lambda x: ppo.reinforce(x, adv))
  for fn in (ppo.clipped_ratio, ppo.plain_ratio, cispo.clipped_weight, cispo.capped_weight,
             sapo.soft_gate):
    np.testing.assert_allclose(grad(lambda x, fn=fn: fn(x, logp, adv)), want, atol=1e-6)
  for fn in (gspo.clipped_sequence, gmpo.geometric_mean):
    np.testing.assert_allclose(grad(lambda x, fn=fn: fn(x, logp, adv, mask)), want, atol=1e-6)
  np.testing.assert_allclose((scale * ppo.clipped_ratio(logp, logp, adv)).sum(),
                             -(scale * adv).sum(), atol=1e-6)


def test_both_paths_of_gspo_agree_off_policy():
  """Value and gradient, for one advantage a row under a sequence mean."""
  rng = np.random.default_rng(1)
  logp, old = (jnp.asarray(-rng.exponential(size=(6, 7)), jnp.float32) for _ in range(2))
  adv = jnp.broadcast_to(jnp.asarray(rng.normal(size=(6, 1)), jnp.float32), (6, 7))
  mask = jnp.asarray(rng.random((6, 7)) < 0.7)
  scale = aggregate.sequence_mean(mask)

  def loss(x, path):
    return (scale * gspo.clipped_sequence(x, old, adv, mask, low=0.5, high=0.5, path=path)).sum()

  (a, ga), (b, gb) = (jax.value_and_grad(loss)(logp, p) for p in ("token", "sequence"))
  np.testing.assert_allclose(a, b, rtol=1e-6)
  np.testing.assert_allclose(ga, gb, atol=1e-7)
  assert np.abs(ga).max() > 1e-3


def test_clipped_weights_keep_the_gradient_that_ppo_drops():
  """A token far above the range: none from PPO, at the bound from CISPO, little from SAPO."""
  logp, old, adv = (jnp.asarray([[x]]) for x in (-0.5, -3.0, 1.0))
  grad = lambda fn: float(jax.grad(lambda x: fn(x, old, adv).sum())(logp)[0, 0])
  assert grad(ppo.clipped_ratio) == 0.0
  assert abs(grad(cispo.clipped_weight) + 1.28) < 1e-6
  assert -1e-2 < grad(sapo.soft_gate) < -1e-5


def test_width_of_the_padding_matters_to_a_length_that_nobody_named():
  """Claim 5: the gradient of a token mean, or of a named length, does not know the padding."""
  mask = jnp.arange(6)[None] < jnp.asarray([[6], [2]])
  wide = jnp.pad(mask, ((0, 0), (0, 8)))
  for fn in (aggregate.token_mean, aggregate.sequence_mean,
             lambda m: aggregate.fixed_length(m, length=6)):
    np.testing.assert_array_equal(fn(wide)[:, :6], fn(mask))
  assert (np.asarray(aggregate.fixed_length(wide))[:, :6] != aggregate.fixed_length(mask)).any()
