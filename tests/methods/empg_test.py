"""EMPG: golden parity and the sign of the modulation."""

import jax.numpy as jnp
import numpy as np

from entrolab import ranks
from entrolab.methods import empg, grpo, ppo
from entrolab.objective import Objective, term
from tests import adapters


def golden(case):
  config, mask, phase = case.config, case["response_mask"], case["segment_id"]
  rows, index = case.raw("step_row"), case.raw("step_index")
  steps = int(case.raw("segment_id").max()) + 1
  entropy = case["old_entropy"]
  count = ranks.step_sums(jnp.ones(mask.shape), phase, mask, steps=steps)
  mean = ranks.step_sums(entropy, phase, mask, steps=steps) / jnp.maximum(count, 1.0)
  knobs = dict(sharpness=config["k"], clarity=config["k_prime"], eps=config["eps"])
  n, g, f = empg.gains(mean, count > 0, **knobs)
  at = lambda x: np.asarray(x)[index, rows]
  for name, value in dict(step_entropy=mean, step_entropy_norm=n, g=g, f=f,
                          f_next=jnp.concatenate([f[1:], jnp.zeros_like(f[:1])])).items():
    case.compare(name, at(value))
  case.raw("group_id")
  ids, rewards = case.raw("group_id"), case["rewards"]
  case.arrays["group_ids"] = ids  # the same column under the name of the other files
  row_adv = adapters.per_group(case, lambda r, size: grpo.group_advantage(r, size=size), rewards)
  case.compare("traj_advantage", row_adv)
  adv = jnp.where(mask, row_adv[:, None], 0.0)
  knobs |= dict(steps=steps, zeta=config["zeta"])
  raw = empg.modulate(adv, entropy, phase, mask, recentre=False, **knobs)
  final = empg.modulate(adv, entropy, phase, mask, **knobs)

  def of_step(x):
    return at(ranks.step_sums(x, phase, mask, steps=steps) / jnp.maximum(count, 1.0))

  case.compare("modulated", of_step(raw))
  case.compare("final_step_advantage", of_step(final))
  case.compare("advantages", final)
  objective = Objective(surrogate=term(ppo.clipped_ratio, low=config["clip_low"],
                                       high=config["clip_high"], dual=config["clip_c"]),
                        aggregate=adapters.aggregation(config, width=mask.shape[1]))
  loss, grad = adapters.loss_and_grad(objective, case, case["logits"], adv=final)
  case.compare("loss", loss)
  case.compare("grad_logits", grad)


def test_gains_have_mean_one_and_confident_steps_gain():
  """Claims 1 and 2: mean g is 1; with a constant advantage, |A| falls with the step entropy."""
  rng = np.random.default_rng(0)
  phase = jnp.asarray(np.tile(np.arange(24) // 4, (8, 1)), jnp.int32)
  mask, entropy = jnp.ones((8, 24), bool), jnp.asarray(rng.gamma(2.0, size=(8, 24)), jnp.float32)
  count = ranks.step_sums(jnp.ones((8, 24)), phase, mask, steps=6)
  mean = ranks.step_sums(entropy, phase, mask, steps=6) / count
  _, g, _ = empg.gains(mean, count > 0)
  assert abs(float(g.mean()) - 1.0) < 1e-6
  adv = empg.modulate(jnp.ones((8, 24)), entropy, phase, mask, steps=6, zeta=0.0, recentre=False)
  assert np.corrcoef(np.asarray(adv)[:, ::4].ravel(), np.asarray(mean).T.ravel())[0, 1] < -0.9


def test_a_step_too_many_is_not_merged():
  phase = jnp.asarray([[0, 1, 2, 3]], jnp.int32)
  out = empg.modulate(jnp.ones((1, 4)), jnp.ones((1, 4)), phase, jnp.ones((1, 4), bool), steps=3)
  assert np.isnan(np.asarray(out)[0, 3]) and np.isfinite(np.asarray(out)[0, :3]).all()
