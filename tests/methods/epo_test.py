"""EPO: golden parity, and the code's penalty that cannot teach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import vocab
from entrolab.methods import bonus, epo, kl, ppo
from entrolab.objective import Objective, Penalty, term
from tests import adapters

B = 16
COLUMNS = dict(trajectory=lambda rng: rng.integers(0, 5, B).astype(np.int32),
               history=lambda rng: np.float32(1.1),
               turn_history=lambda rng: rng.uniform(0.5, 2.0, B).astype(np.float32))


def golden(case):
  if case.path.stem.startswith("epo_phase"):
    epochs = case.config["max_epochs"]
    case.compare("weight", epo.code_phase(case["epoch"], epochs=epochs))
    return None
  return _paper(case) if "traj_id" in case else _code(case)


def _paper(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  config.expect(k_mid=config.get("K", 2 * config["k_mid"]) // 2)
  past = case.raw("entropy_history")
  history = jnp.asarray(past.mean() if past.size else -1.0)
  beta = epo.phase_weight(config["k"], gamma=config["gamma"], middle=config["k_mid"])
  case.compare("beta", beta)
  case.raw("turn_id")
  live = case.live(logits)
  case.compare("logprobs", live["logp"], where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  knobs = dict(low=config["kappa_l"], high=config["kappa_r"], alpha=config["alpha"])
  penalty = epo.corridor(live["entropy"], history, **knobs)
  unit = epo.corridor(live["entropy"], history, **{**knobs, "alpha": 1.0})
  case.compare("penalty", unit, where=mask)  # stored without alpha
  trajectory = jnp.asarray(np.unique(case.raw("traj_id"), return_inverse=True)[1])
  scale = epo.trajectory_mean(mask, trajectory)
  case.compare("entropy_loss", (scale * live["entropy"]).sum())
  case.compare("smooth_loss", (scale * penalty).sum())
  lam, spread = config["lam"], term(epo.trajectory_mean)
  objective = Objective(
      surrogate=term(ppo.clipped_ratio, low=config["clip"], high=config["clip"],
                     dual=config["clip_c"]),
      penalties=(Penalty(lam, term(bonus.negative_entropy), scale=spread),
                 Penalty(lam * float(beta), term(epo.corridor, **knobs), scale=spread)),
      extra=("trajectory", "history"))
  plain = Objective(surrogate=objective.surrogate)
  case.compare("pg_loss", adapters.loss_and_grad(plain, case, logits)[0])
  loss, grad = adapters.loss_and_grad(objective, case, logits, trajectory=trajectory,
                                      history=history)
  case.compare("loss", loss)
  case.compare("grad_logits", grad)


def _code(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  step = case.raw("rollout_step")
  center = jnp.asarray(case.raw("entropy_history"))[step]
  live = case.live(logits)
  case.compare("logprobs", live["logp"], where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  weight = jnp.ones(())
  if config["phase"]:  # w(epoch), whether or not the gate is open
    weight = epo.code_phase(case["epoch"], epochs=config["max_epochs"])
  else:
    case.raw("epoch")
    config.ignore("the weight does not depend on the epoch", "max_epochs")
  case.compare("phase_weight", weight)
  # the gate: any row of the micro-batch at or past half of max_step
  gate = float((step >= config["max_step"] // 2).any())
  forms = dict(token=epo.indicator, seq=epo.indicator_rows)
  config.expect(mode=tuple(forms))
  form = forms[config["mode"]]
  knobs = dict(low=config["min_ratio"], high=config["max_ratio"],
               alpha=config["alpha"] * float(weight) * gate)
  penalty = form(live["entropy"], center, **knobs)
  case.compare("penalty", penalty, where=mask)
  # the official ratio counts padding too, and is 0 where the gate is closed: no test was run
  inside = form(live["entropy"], center, **{**knobs, "alpha": 1.0}) == 0.0
  case.compare("in_range_ratio", gate * inside.mean(dtype=float))
  surrogate = term(ppo.clipped_ratio, low=config["clip"], high=config["clip"],
                   dual=config["clip_c"])
  c, scale = config["entropy_coeff"], adapters.aggregation(config, width=mask.shape[1])
  objective = Objective(surrogate=surrogate, extra=("turn_history",), penalties=(
      (c, term(bonus.negative_entropy)), (c * config["smooth_coeff"], term(form, **knobs)),
      (config["kl_coef"], term(kl.k3))), aggregate=scale)
  mean = lambda value: adapters.weighted_mean(case, scale, value)
  case.compare("entropy_loss", mean(live["entropy"]))
  case.compare("penalty_loss", mean(penalty))
  case.compare("kl_loss", mean(kl.k3(live["logp"], case["ref_logprobs"])))
  case.compare("pg_loss", adapters.loss_and_grad(
      Objective(surrogate=surrogate, aggregate=scale), case, logits)[0])
  loss, grad = adapters.loss_and_grad(objective, case, logits, turn_history=center)
  case.compare("loss", loss)
  case.compare("grad_logits", grad)


def test_the_code_s_penalty_changes_the_loss_and_not_the_gradient():
  h = jnp.linspace(0.0, 3.0, 12).reshape(2, 6)
  center = jnp.full(2, 1.0)
  value, grad = jax.value_and_grad(lambda x: epo.indicator(x, center).sum())(h)
  assert value > 0 and (np.asarray(grad) == 0).all()
  hinge = jax.grad(lambda x: epo.corridor(x, jnp.asarray(1.0)).sum())(h)
  assert (np.asarray(hinge) > 0).any()


def test_the_code_s_phase_halves_an_odd_number_of_epochs_downwards():
  """And an epoch outside [0, epochs] is the nearest one in it."""
  for epoch, epochs, want in ((2, 5, 1 - 0.2 * (1 - np.exp(-2.0))), (3, 5, 0.8 * np.exp(-1.0)),
                              (5, 5, 0.8 * np.exp(-3.0)), (9, 5, 0.8 * np.exp(-3.0)), (0, 5, 1.0),
                              (-3, 150, 1.0), (-1, 5, 1.0), (0, 1, 1.0), (1, 1, 0.8 * np.exp(-3.0)),
                              (3, 7, 1 - 0.2 * (1 - np.exp(-2.0))), (4, 7, 0.8 * np.exp(-0.75)),
                              (75, 150, 1 - 0.2 * (1 - np.exp(-2.0)))):
    assert float(epo.code_phase(epoch, epochs=epochs)) == pytest.approx(want, rel=1e-6)
  with pytest.raises(ValueError, match="epochs=0"):
    epo.code_phase(0, epochs=0)


def test_the_history_is_the_mean_of_past_steps_only():
  control = epo.History(strength=0.1, steps=4)
  state = control.init()
  assert float(state["history"]) == -1.0 and np.isclose(float(state["smooth"]), 0.2)
  for k, h in enumerate((1.0, 3.0)):
    state = control.update(state, {"entropy/exact": jnp.asarray(h)})
    assert np.isclose(float(state["history"]), (1.0, 2.0)[k])
    assert np.isclose(float(state["smooth"]), 0.1 * (1 + np.exp(-3.0 * (k + 1) / 2)))


def test_the_hinge_holds_entropy_under_the_corridor():
  """Claim 4: a bonus alone drives the entropy up; with the hinge it stays near high * history."""
  def train(beta):
    z, seen = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)) * 3.0), []
    control = epo.History(strength=1.0, steps=60)
    state = control.init()

    def loss(z, history):
      h = vocab.entropy(z)[:, None]
      return (-0.5 * h + beta * epo.corridor(h, history, high=1.1, alpha=1.0)).mean(), h.mean()

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for _ in range(60):
      (_, h), g = step(z, state["history"])
      z, state = z - 2.0 * g, control.update(state, {"entropy/exact": h})
      seen.append((float(h), float(state["history"])))
    return np.array(seen)

  alone, held = train(0.0), train(2.0)
  assert held[-1, 0] < 0.8 * alone[-1, 0], (held[-1], alone[-1])
  assert (held[5:, 0] <= 1.1 * held[4:-1, 1] + 0.15).all()
