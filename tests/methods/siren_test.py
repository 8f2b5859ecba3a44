"""SIREN: golden parity, and what the anchor and the nucleus promise."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import aggregate, vocab
from entrolab.methods import grpo, ppo, siren
from entrolab.objective import Objective, Penalty, term
from tests import adapters

entropy_of, mask_of = (jax.jit(fn, static_argnums=(1, 2))
                       for fn in (vocab.nucleus_entropy, vocab.nucleus_mask))


def recipe(*, fraction, beta, top_p, anchor=-1.0, length=0):
  penalty = Penalty(beta, term(siren.selected_entropy),
                    scale=term(siren.peak_scale, fraction=fraction),
                    outer=term(siren.squared_distance))
  return Objective(advantage=term(grpo.centred_advantage, size=2), penalties=(penalty,),
                   surrogate=term(ppo.clipped_ratio, dual=3.0),
                   aggregate=term(aggregate.fixed_length, length=length),
                   control=(siren.Anchor(anchor),), vocab=vocab.Spec(top_p=top_p))


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  top_p, fraction = config["p"], 1.0 - config["tau"]
  config.expect(entropy_agg="seq-mean-token-mean, mean over ALL B rows",
                pg="dual-clip PPO low=high=0.2 c=3, Dr.GRPO advantages, seq-mean-token-sum-norm = "
                   "mean_b(sum_t)/T")
  # ours searches the whole vocabulary: the same where no nucleus is as large as theirs may be
  largest = int(mask_of(logits, top_p, True).sum(-1).max())
  case.require(config["topk"] >= min(largest, logits.shape[2]),
               f"a nucleus of {largest} tokens, theirs has at most {config['topk']}")

  def entropies(z, inclusive=False):
    return jnp.where(mask, entropy_of(z, top_p, inclusive), 0.0)

  def mean(z):
    h = entropies(z)
    scale = siren.peak_scale(jax.lax.stop_gradient(h), mask, fraction=fraction)
    return (scale * h).sum()

  h = entropies(logits)
  case.compare("topp_entropy", h)
  case.compare("full_entropy", jnp.where(mask, vocab.entropy(logits), 0.0))
  nucleus = mask_of(logits, top_p, False)
  on = np.asarray(mask)[..., None]
  case.compare("nucleus_mask", nucleus, where=on)
  case.compare("nucleus_size", nucleus.sum(-1), where=mask)
  case.compare("alt_nucleus_mask_inclusive", mask_of(logits, top_p, True), where=on)
  case.compare("alt_topp_entropy_inclusive", entropies(logits, True))
  keep = siren.peak_positions(h, mask, fraction=fraction)
  bound = siren.quantile(h, mask, 1.0 - fraction, rows=True)[:, 0]
  case.compare("quantile_bound", jnp.where(mask.any(-1), bound, jnp.nan))
  case.compare("position_mask", keep)
  case.compare("masked_entropy", jnp.where(keep, h, 0.0))
  anchor = mean(case["anchor_logits"]) if "anchor_logits" in case else case["anchor"]
  case.compare("anchor", anchor)
  case.compare("agg_entropy", mean(logits))
  case.compare("grad_agg_entropy", jax.grad(mean)(logits))
  case.compare("reg_sq", siren.squared_distance(mean(logits), anchor))
  case.compare("grad_reg_sq", jax.grad(lambda z: siren.squared_distance(mean(z), anchor))(logits))
  objective = recipe(fraction=fraction, beta=config["beta"], top_p=top_p)
  loss, grad = adapters.loss_and_grad(objective, case, logits, anchor=anchor)
  case.compare("loss_total", loss)
  case.compare("grad_total", grad)


def test_only_the_nucleus_gets_a_gradient():
  z = jax.random.normal(jax.random.key(0), (1, 5, 32)) * 2.0
  grad = jax.grad(lambda z: vocab.nucleus_entropy(z, 0.8, False).sum())(z)
  outside = ~np.asarray(vocab.nucleus_mask(z, 0.8, False))
  assert outside.any() and (np.asarray(grad)[outside] == 0.0).all()
  assert np.abs(np.asarray(grad)[~outside]).max() > 1e-3


def test_anchor_is_set_once_and_never_moves():
  anchor = siren.Anchor()
  state = anchor.init()
  assert np.isnan(state["anchor"])
  state = anchor.begin(state, {"siren.selected_entropy": jnp.asarray(0.7)})
  moved = anchor.update(state, {"entropy/exact": jnp.asarray(0.1)})
  assert float(moved["anchor"]) == float(np.float32(0.7))


def test_collapsed_policy_cannot_be_pulled_back():
  """Every nucleus empty: mean 0 and no gradient, whatever the anchor (a limit of the method)."""
  z = jnp.zeros((2, 4, 8)).at[..., 0].set(30.0)
  h = vocab.nucleus_entropy(z, 0.8, False)
  assert (np.asarray(h) == 0.0).all()
  assert (np.asarray(jax.grad(lambda z: vocab.nucleus_entropy(z, 0.8, False).sum())(z)) == 0).all()


def test_one_outcome_has_no_entropy_and_is_no_peak():
  """In a row of empty nuclei, one singleton and one nucleus of two only the last is a peak, in
  float64 too, where 1e-12 in the logarithm would tell a singleton from an empty nucleus."""
  rows = [[0.95, 0.03, 0.01, 0.01]] * 8 + [[0.7, 0.2, 0.06, 0.04], [0.4, 0.35, 0.2, 0.05]]
  with adapters.double():
    h = entropy_of(jnp.log(jnp.asarray([rows])), 0.8, False)
    assert h.dtype == np.float64 and (np.asarray(h)[0, :9] == 0.0).all() and h[0, 9] > 0.5
    on = siren.peak_positions(h, jnp.ones((1, 10), bool))
  assert np.flatnonzero(on).tolist() == [9]


def test_a_nucleus_may_be_larger_than_ten_thousand_tokens():
  size = mask_of(jnp.zeros((1, 32_768)), 0.8, False).sum()
  assert abs(int(size) - 0.8 * 32_768) <= 1
