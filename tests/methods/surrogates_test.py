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


def _bounds(run):
  """The clip range of a run: `low` and `high`, or `clip` for both, or 0.2."""
  if "clip" in run:
    return dict(low=run["clip"], high=run["clip"])
  return dict(low=run.get("low", 0.2), high=run.get("high", 0.2))


def _surrogate(run, case):
  """(surrogate, aggregation) of one run; what its mode does not read stays unread, and fails."""
  mode, width = run["mode"], case.raw("response_mask").shape[1]
  always = dict(gspo=aggregate.sequence_mean, sapo=aggregate.sequence_mean,
                geo_mean=aggregate.row_mean)  # verl aggregates these in one way
  default = dict(vanilla="token-mean", cispo="token-mean", gpg="token-mean",
                 reinforce="seq-mean-token-sum")
  run.expect(mode=(*always, *default))
  if mode in always:
    scale = term(always[mode])
  else:
    scale = adapters.aggregation(run, width=width, default=default[mode])
  if mode == "vanilla":
    return term(ppo.clipped_ratio, dual=run.get("c", 3.0), **_bounds(run)), scale
  if mode == "sapo":
    return term(sapo.soft_gate, positive=run["tau_pos"], negative=run["tau_neg"]), scale
  if mode in ("gpg", "reinforce"):
    return term(ppo.reinforce), scale
  clipped = dict(gspo=gspo.clipped_sequence, geo_mean=gmpo.geometric_mean,
                 cispo=cispo.clipped_weight)
  return term(clipped[mode], **_bounds(run)), scale


def _metrics(case, name, run, live, mask):
  """The stored clip fractions of a run, from our own tests of what a clip removes."""
  logp, old, adv = live["logp"], case["old_logprobs"], case["advantages"]
  low, high = _bounds(run).values()
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
    case.add(adapters.Row(f"{name}:{key}", abs(got - want) / (abs(want) + 1e-3), adapters.VALUE))


def golden(case):
  logits, mask = case["logits"], case["response_mask"]
  live = case.live(logits)
  case.compare("logprobs", live["logp"], where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  for name, run in case.config["runs"].items():
    tolerance = adapters.VALUE
    run.expect(kl=tuple(KL))
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
