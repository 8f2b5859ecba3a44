"""The objectives that other methods build on: golden parity, and what they promise."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import aggregate
from entrolab.methods import (
    bonus,
    cispo,
    dapo,
    gae,
    gmpo,
    gpg,
    grpo,
    gspo,
    highent_tokens,
    kl,
    lite_ppo,
    opo,
    opsm,
    otb,
    passk,
    ppo,
    reinforce_pp,
    remax,
    rloo,
    rollout_correction,
    sapo,
)
from entrolab.objective import Objective, Penalty, term
from entrolab.ranks import masked_mean
from tests import adapters

INF = float("inf")
KL = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3, "abs": kl.absolute, "k1+": kl.k1_plus,
      "k3+": kl.k3_plus}
PLAIN = {"token-mean": aggregate.token_mean, "seq-mean-token-sum": aggregate.sequence_sum,
         "seq-mean-token-mean": aggregate.sequence_mean}


def golden(case):
  kinds = dict(adv=_advantages, pg=_objectives, rollcorr=_correction, misc=_misc, trl=_trl)
  kind = case.path.stem.removeprefix("base_objectives_").split("_")[0]
  if kind not in kinds:
    raise adapters.Mismatch(f"{case.path.name}: kind {kind!r}; have: {', '.join(kinds)}")
  kinds[kind](case)


def _scattered(case, fn, *columns, **knobs):
  """A group function of several columns on ragged, possibly scattered groups."""
  ids, out = case.raw("group_ids"), np.zeros(np.shape(columns[0]))
  for one in np.unique(ids):
    rows = np.flatnonzero(ids == one)
    out[rows] = fn(*(c[rows] for c in columns), size=len(rows), **knobs)
  return jnp.asarray(out)


def _whole_groups(case):
  """The size of the file's groups when they are contiguous and alike, else None."""
  ids = case.raw("group_ids")
  size = int((ids == ids[0]).sum())
  tidy = len(ids) % size == 0 and (ids.reshape(-1, size) == ids[::size, None]).all()
  return size if tidy and len(np.unique(ids)) * size == len(ids) else None


def _compare_whitened(case, name, value, mask):
  value = jnp.where(mask, value, 0.0)
  where = mask if name.startswith("gae") else None  # theirs leaves numbers on padding
  if not np.asarray(value).any():
    # equal returns: ours is exactly 0, theirs about 1e-4 / N of the return (it divides by N + 1e-8)
    assert np.abs(case.raw(name)[np.asarray(mask)]).max(initial=0.0) < 1e-3
    return case.compare(name, value, where=where, tolerance=1.0)
  return case.compare(name, value, where=where)


def _advantages(case):
  config, mask, token_rewards = case.config, case["response_mask"], case["token_level_rewards"]
  rewards = token_rewards.sum(1)  # an empty row has none, whatever its verdict
  eps, gammas = config["epsilon"], config["gamma"]
  spread = lambda row: jnp.where(mask, row[:, None], 0.0)
  per_group = lambda fn, **k: spread(adapters.per_group(case, fn, rewards, **k))
  case.compare("grpo", per_group(grpo.group_advantage, eps=eps))
  case.compare("drgrpo", per_group(grpo.centred_advantage))
  case.compare("rloo", per_group(rloo.leave_one_out))
  case.compare("rloo_vectorized", per_group(rloo.leave_one_out, alone=0.0))
  if "grpo_passk" in case:
    case.compare("grpo_passk", per_group(passk.best_margin, eps=eps))
  case.compare("opo", spread(_scattered(case, opo.length_baseline, rewards, mask)))
  scaled = gpg.rescale(rewards) * adapters.per_group(case, grpo.centred_advantage, rewards)
  case.compare("gpg", spread(scaled))
  if _whole_groups(case):
    case.compare("gpg", spread(gpg.scaled_advantage(rewards, size=_whole_groups(case))))
  for name in ("reinforce_pp", "reinforce_pp_g09"):
    back = gae.return_to_go(token_rewards, mask, gamma=gammas[name], gap="reset")
    _compare_whitened(case, name, reinforce_pp.whitened(back, mask), mask)
  centred = per_group(grpo.centred_advantage)
  _compare_whitened(case, "reinforce_pp_baseline", reinforce_pp.whitened(centred, mask), mask)
  returns = gae.return_to_go(token_rewards, mask)
  case.compare("remax_returns", returns)
  case.compare("remax", remax.less_greedy(returns, mask, case["reward_baselines"]))
  for name in ("gae", "gae_11"):
    gamma, lam = gammas[name]
    raw = gae.generalised(token_rewards, case["values"], mask, gamma=gamma, lam=lam)
    case.compare(f"{name}_returns", raw + case["values"], where=mask)
    _compare_whitened(case, name, reinforce_pp.whitened(raw, mask), mask)
  args = returns, case["old_logprobs"], case["sum_pi_squared"], mask
  case.compare("otb", _scattered(case, otb.less_baseline, *args))


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


def _objectives(case):
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
      tolerance = slack(case, objective, live, loss)
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


def slack(case, objective, live, loss):
  """A loss may be off by 3e-8 of its terms, which counts where they cancel: the row means of the
  official code divide by n + 1e-8."""
  columns = {**case.columns(), **live}
  scored = objective.score(columns)
  terms = jnp.abs(scored["scale"] * scored["weight"] * objective.surrogate(columns))
  size = jnp.where(columns["mask"], terms, 0.0).sum()
  return max(adapters.VALUE, float(3e-8 * size / jnp.maximum(jnp.abs(loss), 1e-12)))


def _mean(case, logits, mask, value):
  """Token mean of a statistic, and its gradient."""
  def loss(z):
    return (aggregate.token_mean(mask) * jnp.where(mask, value(case.live(z)), 0.0)).sum()

  return jax.value_and_grad(loss)(logits)


def _correction(case):
  mask = case["response_mask"]
  args = case["old_logprobs"], case["rollout_logprobs"], mask
  for name in list(case.arrays):
    if found := re.fullmatch(r"is_(token|sequence)_([0-9.]+)_(raw|bn)", name):
      level, cap, norm = found.groups()
      fn = dict(token=rollout_correction.token_weight,
                sequence=rollout_correction.sequence_weight)[level]
      case.compare(name, fn(*args, cap=float(cap), norm=dict(raw="none", bn="mean")[norm]))
    elif name.startswith("metrics_is_"):
      case.ignore(name, "statistics for a log, which the weights do not need")
    elif found := re.fullmatch(r"rs_((?:token|seq)_.*?)_([0-9].*)", name):
      keep = mask
      options, thresholds = (g.split("-") for g in found.groups())
      for option, threshold in zip(options, thresholds, strict=True):
        keep = keep & (_rejection(option, threshold, args) > 0)
      case.compare(name, keep)
  case.config  # noqa: B018  (the source and the safety bound, which is LIMIT)
  ours = _over_all_rows(rollout_correction.mismatch(*args), mask)
  for key, want in case.text("offpolicy_metrics").items():
    error = abs(float(ours[key]) - want) / (abs(want) + 1e-3)
    case.rows.append(adapters.Row(f"offpolicy:{key}", error, 1e-5))  # theirs are float32
  objective = Objective(surrogate=term(ppo.clipped_ratio, dual=3.0),
                        weights=(term(rollout_correction.token_weight, cap=2.0),))
  loss, grad = adapters.loss_and_grad(objective, case, case["logits"])
  case.compare("loss_ppo_tis2", loss)
  case.compare("grad_ppo_tis2", grad)


def _over_all_rows(gap, mask):
  """Theirs averages over all rows, where an empty one has perplexity and ratio 1."""
  share = float(mask.any(1).mean())
  for key in gap.keys() - {"kl", "k3_kl", "chi2_token"}:
    empty = 1.0 if key in ("training_ppl", "rollout_ppl", "ppl_ratio") else 0.0
    if key.endswith(("_max", "_min")):
      clip = jnp.maximum if key.endswith("_max") else jnp.minimum
      gap[key] = clip(gap[key], 0.0) if share < 1.0 else gap[key]
    else:
      gap[key] = share * gap[key] + (1.0 - share) * empty
  return gap


def _rejection(option, threshold, args):
  level, *rest = option.split("_")
  low, high = ([0.0, *map(float, threshold.split("_"))])[-2:]
  knobs = dict(measure=rest[-1], low=low, high=high)
  if level == "token":
    return rollout_correction.keep_tokens(*args, **knobs)
  return rollout_correction.keep_rows(*args, by=rest[0], **knobs)


def _misc(case):
  mask, clip = case["response_mask"], 0.2  # the file's clip range, which it does not store
  old, target = case["old_values"], case["returns"]
  scale = aggregate.token_mean(mask)

  def loss(v):
    return (scale * jnp.where(mask, gae.clipped_value_loss(v, old, target, clip=clip), 0.0)).sum()

  value, grad = jax.value_and_grad(loss)(case["vpreds"])
  case.compare("vf_loss", value)
  case.compare("grad_vpreds", grad)
  clipped = gae.is_value_clipped(case["vpreds"], old, target, clip=clip)
  case.compare("vf_clipfrac", masked_mean(clipped.astype(float), mask))
  cfg, lengths = case.text("overlong_cfg"), case.raw("overlong_lengths")
  rows = jnp.arange(max(lengths.max(), 1))[None] < jnp.asarray(lengths)[:, None]
  case.compare("overlong_penalty", dapo.overlong(
      jnp.zeros(len(lengths)), rows, max_tokens=cfg["max_resp_len"], buffer=cfg["buffer_len"],
      factor=cfg["penalty_factor"]))
  cfg = case.text("akl_cfg")
  control = kl.Adaptive(cfg["target"], start=cfg["init"], rows=cfg["n_steps"],
                        horizon=float(cfg["horizon"]))
  state, seen = control.init(), []
  for now in case["akl_inputs"]:
    state = control.update(state, {"term/kl.k3": now})
    seen.append(state["kl_coef"])
  case.compare("akl_values", jnp.stack(seen))


def _trl(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  rewards, eps = case["rewards"], config["adv_eps"]
  live = case.live(logits)
  case.compare("logprobs", live["logp"], where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  centred = adapters.per_group(case, grpo.centred_advantage, rewards)
  advs = dict(group=adapters.per_group(case, grpo.group_advantage, rewards, eps=eps), none=centred,
              batch=centred / (lite_ppo.deviation(rewards) + eps))
  if _whole_groups(case):
    advs["batch"] = lite_ppo.batch_scaled(rewards, size=_whole_groups(case), eps=eps)
  for kind, adv in advs.items():
    case.compare(f"adv_{kind}", adv)
  top = highent_tokens.quantile_mask(live["entropy"], mask, fraction=0.2)
  case.compare("top20_mask", top > 0, where=mask)
  for name, run in config["runs"].items():
    objective = _trl_objective(run, config)
    adv = jnp.where(mask, advs[run["advantage"]][:, None], 0.0)
    loss, grad = adapters.loss_and_grad(objective, case, logits, adv=adv)
    case.compare(f"loss_{name}", loss)
    case.compare(f"grad_{name}", grad)


def _trl_objective(run, config):
  low = run.get("epsilon_low", 0.2)
  high = run.get("epsilon_high", low)
  scale = {"grpo": term(aggregate.row_mean), "sapo": term(aggregate.row_mean),
           "dr_grpo": term(aggregate.fixed_length, length=config["max_completion_length"])}
  kind = run["loss_type"]
  if kind == "cispo":
    surrogate = term(cispo.capped_weight, cap=high)
  elif kind == "sapo":
    surrogate = term(sapo.soft_gate, limit=INF)
  elif run.get("importance_sampling_level") == "sequence":
    surrogate = term(gspo.clipped_sequence, low=low, high=high, path="sequence")
  else:  # TRL's delta bounds the ratio where A < 0, which is the dual clip
    surrogate = term(ppo.clipped_ratio, low=low, high=high, dual=run.get("args_delta", 0.0),
                     limit=INF)
  weights, penalties = [], []
  if "top_entropy_quantile" in run:
    weights.append(term(highent_tokens.quantile_mask, fraction=run["top_entropy_quantile"]))
  if "off_policy_mask_threshold" in run:
    weights.append(term(opsm.keep_rows, threshold=run["off_policy_mask_threshold"]))
  if run.get("beta"):
    penalties.append((run["beta"], term(kl.k3, limit=INF, cap=INF)))
  if run.get("_entropy_bonus_enabled"):
    penalties.append(Penalty(run["entropy_coef"], term(bonus.negative_entropy),
                             scale=term(aggregate.token_mean)))
  return Objective(surrogate=surrogate, aggregate=scale.get(kind, term(aggregate.token_mean)),
                   weights=tuple(weights), penalties=tuple(penalties))


G = 4
ESTIMATORS = dict(grpo=grpo.group_advantage, drgrpo=grpo.centred_advantage,
                  rloo=rloo.leave_one_out, gpg=gpg.scaled_advantage, batch=lite_ppo.batch_scaled)


def test_group_estimators_sum_to_zero_and_point_the_same_way():
  """Claim 1: for binary rewards in one group the estimators differ by a factor alone."""
  rewards = jnp.asarray([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
  for fn in ESTIMATORS.values():
    adv = np.asarray(fn(rewards, size=G)).reshape(-1, G)
    np.testing.assert_allclose(adv.sum(1), 0.0, atol=1e-6)
    first = np.asarray(rewards[:G] - rewards[:G].mean())
    np.testing.assert_allclose(adv[0] / adv[0, 0], first / first[0], rtol=1e-5)


def test_equal_groups_are_exactly_zero_unless_the_batch_is_whitened():
  """Claim 2: with a third of the batch right, 1 / 3 does not come back from its own mean."""
  rewards = jnp.asarray([1 / 3] * G + [1.0, 0.0, 0.0, 0.0])
  mask = jnp.arange(5)[None] < jnp.asarray([[1, 2, 3, 5] * 2]).T
  rows = {name: fn(rewards, size=G) for name, fn in ESTIMATORS.items()}
  rows["opo"] = opo.length_baseline(rewards, mask, size=G)
  rows["passk"] = passk.best_margin(rewards, size=G)
  for name, adv in rows.items():
    assert (np.asarray(adv)[:G] == 0.0).all() and np.asarray(adv)[G:].any(), name
  adv = reinforce_pp.whitened(gae.return_to_go(gae.last_token(rewards, mask), mask), mask)
  assert (np.asarray(adv)[:G][np.asarray(mask)[:G]] != 0.0).all()


def test_opo_is_the_group_mean_for_equal_lengths():
  rewards, mask = jnp.asarray([1.0, 0.0, 0.0, 0.0]), jnp.ones((4, 3), bool)
  want = grpo.centred_advantage(rewards, size=G)
  np.testing.assert_allclose(opo.length_baseline(rewards, mask, size=G), want, atol=1e-7)
  longer = mask.at[1:, 1:].set(False)  # the right one is three times as long: its reward counts so
  np.testing.assert_allclose(opo.length_baseline(rewards, longer, size=G)[0], 0.5, atol=1e-7)


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


def test_the_optimal_baseline_lowers_the_variance_of_the_gradient():
  """Four responses of two tokens under a softmax policy: sum of variances of the logit gradient,
  over 4000 groups, less than without a baseline."""
  rng = np.random.default_rng(2)
  p = np.array([0.6, 0.2, 0.15, 0.05])
  tokens = rng.choice(4, p=p, size=(4000 * G, 2))
  rewards = jnp.asarray((tokens.sum(1) <= 1).astype(np.float32))
  mask, onehot = jnp.ones((len(tokens), 2), bool), np.eye(4)[tokens] - p
  logp, p2 = np.log(p)[tokens].astype(np.float32), np.full(tokens.shape, (p**2).sum(), np.float32)
  returns = gae.return_to_go(gae.last_token(rewards, mask), mask)
  adv = np.asarray(otb.less_baseline(returns, jnp.asarray(logp), jnp.asarray(p2), mask, size=G))
  spread = lambda a: (a[..., None] * onehot).sum(1).var(0).sum()
  assert spread(adv) < 0.8 * spread(np.asarray(returns))


def test_correction_weights_make_the_sampler_s_batch_the_trainer_s():
  """Mean of w f over tokens of the sampler = mean of f under the trainer, with a cap never met."""
  rng = np.random.default_rng(3)
  theirs, ours = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.25, 0.35])
  tokens = rng.choice(3, p=theirs, size=(400, 100))
  old, sampled = (jnp.asarray(np.log(p)[tokens], jnp.float32) for p in (ours, theirs))
  mask = jnp.ones(tokens.shape, bool)
  w = rollout_correction.token_weight(old, sampled, mask)
  for token in range(3):
    assert abs(float(jnp.where(tokens == token, w, 0.0).mean()) - ours[token]) < 0.01
  dropped = rollout_correction.token_weight(old, sampled, mask, cap=1.2, over="drop")
  np.testing.assert_array_equal(dropped == 0.0, tokens == 2)  # 0.35 / 0.2
  normal = rollout_correction.token_weight(old, sampled, mask, cap=1.2, norm="mean")
  assert abs(float(normal.mean()) - 1.0) < 1e-6


def test_rejections_close_in_on_the_sampler():
  rng = np.random.default_rng(4)
  sampled = jnp.asarray(-rng.exponential(size=(8, 6)), jnp.float32)
  old = sampled + jnp.asarray(rng.normal(size=(8, 6)) * 0.3, jnp.float32)
  mask = jnp.asarray(rng.random((8, 6)) < 0.8)
  for measure, bounds in dict(k1=(1.01, 1.2, 9.0), k2=(1e-3, 0.05, 9.0),
                              k3=(1e-3, 0.05, 9.0)).items():
    kept = [float(rollout_correction.keep_tokens(old, sampled, mask, measure=measure,
                                                 high=h).sum()) for h in bounds]
    assert kept[0] < kept[1] < kept[2] == float(mask.sum())
  same = rollout_correction.keep_rows(sampled, sampled, mask, measure="k3", high=1e-6)
  np.testing.assert_array_equal(same > 0, mask)
