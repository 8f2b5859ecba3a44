"""SPEAR: golden parity of reward, schedules, buffer and loss; bursts, and who survives a rise."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.methods import clip_cov, grpo, ppo, spear
from entrolab.objective import Objective, term
from entrolab.ranks import masked_mean
from entrolab.typing import Array, Weight
from tests import adapters

B, INF = 16, float("inf")
COLUMNS = dict(tool_calls=lambda rng: rng.integers(0, 13, B).astype(np.int32),
               tool_weight=lambda rng: np.float32(0.7), sil_weight=lambda rng: np.float32(0.3),
               usable=lambda rng: rng.random(B) < 0.8, replayed=lambda rng: rng.random(B) < 0.4)


def kept(drawn: Array) -> Weight:
  """The official draw, as a weight."""
  return drawn


def golden(case):
  kind = case.path.stem.removeprefix("spear_").split("_")[0]
  {"buffer": _buffer, "repeat": _repeat, "schedules": _schedules, "sil": _loss,
   "toolreward": _tools}[kind](case)


def _schedules(case):
  config, step = case.config, case["step"]
  grown = spear.growing(step, length=config["max_replay_loss_steps"])
  case.compare("sil_weight", config["replay_loss_coef"] * grown)
  case.compare("tool_weight", spear.fading(step, length=config["max_toolcall_steps"]))


def _repeat(case):
  rule = dict(n=case.config["n"], times=case.config["threshold"])
  case.compare("repeated", [spear.repeats(np.array(s), **rule) for s in case.text("sequences")])


def _tools(case):
  case.config.expect(columns=["mode(0 none,1 constant,2 cosine)", "global_step", "n_tool_calls",
                              "outcome"])
  mode, step, calls, outcome = case["inputs"].T
  length = case.config["max_toolcall_steps"]
  weight = jnp.where(mode == 2, spear.fading(step, length=length), mode)
  for name, once in (("score_default", False), ("score_qwen3", True)):
    # the weight is one number a step, and the rows of the file are of several steps
    each = jax.vmap(lambda r, n, w, once=once: spear.tool_reward(r[None], n[None], w, once=once)[0])
    case.compare(name, each(outcome, calls, weight))


def _buffer(case):
  config, size = case.config, case.config["group_size"]
  config.expect(variant="verl", replay_trigger="size>1.5*buffer_size",
                selection="identity permutation (the first rows)")
  decay = max(config["weight_decay_trajectory_replay"], 0.0)
  if decay:
    config.ignore("a decayed advantage is not taken anew", "norm_by_std")
  rule = spear.Replay(size=config["buffer_size"], baseline=config["baseline_buffer_size"],
                      tolerance=config["tolerate_steps"], decay=decay,
                      by_std=config.get("norm_by_std", False))
  rewards, tools = case.raw("rewards"), case.raw("has_tool_call")
  adv = np.stack([grpo.centred_advantage(jnp.asarray(r), size=size) for r in rewards])
  case.compare("group_advantage", adv)
  state, width = rule.init(), rewards.shape[1]
  seen = {k: [] for k in ("admitted", "size_after", "replayed", "p50_after", "replay_step",
                          "replay_rows", "replay_advantage", "replay_p50")}
  steps = []
  for i, step in enumerate(case.raw("global_step")):
    median = np.median(state["groups"]["mean"]) if i else 0.0
    batch, state = rule.replay(state, np.arange)
    seen["replayed"].append(batch is not None)
    if batch is not None:
      for name, value in dict(step=step, rows=batch["id"], advantage=batch["row_adv"],
                              p50=median).items():
        seen[f"replay_{name}"].append(value)
    rows = dict(rewards=rewards[i], row_adv=adv[i], tool_calls=tools[i],
                usable=np.ones(width, bool), id=i * width + np.arange(width))
    state = rule.admit(state, step, rows, size=size)
    stored = state["rows"]
    seen["admitted"].append(np.isin(rows["id"], stored["id"]))
    seen["size_after"].append((rule.recalibrated(state) > 0).sum())
    seen["p50_after"].append(np.median(state["groups"]["mean"]))
    steps.append(np.unique(stored["step"]).tolist())
  case.require(steps == case.text("kept_steps_json"), "kept_steps_json is not ours")
  for name, value in seen.items():
    want = case.raw(name)
    fill = {"replay_rows": -1, "replay_advantage": 0.0}.get(name)
    case.compare(name, np.asarray(value, want.dtype) if fill is None
                 else padded(value, want.shape, fill))


def padded(rows, shape, fill):
  """Rows of unequal length as they are stored: one row of padding where there is none.

  What does not fit stays as large as it is, so that a comparison of shapes finds it."""
  height = max(len(rows), 1)
  width = max([shape[1], *map(len, rows)])
  out = np.full((height, width), fill, np.result_type(fill))
  for row, values in zip(out, rows, strict=False):
    row[:len(values)] = values
  return out


def _loss(case):
  config, mask, logits = case.config, case["response_mask"], case["logits"]
  config.expect(variant=("agent", "verl"))  # one loss, with the bounds that are stored
  live, old, adv = case.live(logits), case["old_logprobs"], case["advantages"]
  logp = live["logp"]
  case.compare("logprobs", logp, where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  case.compare("ratio", ppo.ratio(logp, old, limit=INF), where=mask)
  case.compare("covariance", clip_cov.covariance(logp, adv, mask))
  clip = dict(low=config["clip_low"], high=config["clip_high"])
  window = dict(lower=config["clip_cov_lb"], upper=config["clip_cov_ub"], **clip)
  pool = clip_cov.candidates(logp, old, adv, mask, **window)
  case.compare("eligible", pool)
  fraction = config["clip_cov_ratio"]
  case.compare("clip_num", max(int(fraction * case.raw("response_mask").sum()), 1))
  keep = clip_cov.keep_mask(logp, old, adv, mask, jnp.zeros(mask.shape), fraction=fraction,
                            **window)
  dropped, ours = case.raw("dropped") > 0, np.asarray(keep) == 0.0
  if dropped.sum() == np.asarray(pool).sum():
    case.compare("dropped", ours)
  case.require(ours.sum() == dropped.sum(), "another number of dropped tokens than ours")
  case.require(not (dropped & ~np.asarray(pool)).any(), "a dropped token is not eligible")
  scale = adapters.aggregation(config, width=mask.shape[1])
  parts = dict(surrogate=term(ppo.clipped_ratio, limit=INF, **clip), aggregate=scale)
  drawn = dict(drawn=jnp.asarray(1.0 - dropped))
  plain = Objective(weights=(term(kept),), extra=("drawn",), **parts)
  case.compare("pg_loss", adapters.loss_and_grad(plain, case, logits, **drawn)[0])
  weight = jnp.ones(())
  if config["is_replay"]:
    weight = config["replay_loss_coef"] * spear.growing(config["global_step"],
                                                        length=config["max_replay_loss_steps"])
  else:
    config.ignore("an on-policy batch has weight 1", "replay_loss_coef", "global_step",
                  "max_replay_loss_steps")
  case.compare("loss_weight", weight)
  both = Objective(weights=(term(kept), term(spear.replay_weight)),
                   extra=("drawn", "replayed", "sil_weight"), **parts)
  loss, grad = adapters.loss_and_grad(both, case, logits, sil_weight=weight, **drawn,
                                      replayed=jnp.ones(mask.shape[0], bool))
  case.compare("loss", loss)
  case.compare("grad_logits", grad)
  share = lambda x: masked_mean(x.astype(float), mask)
  case.compare("clipfrac", share(jnp.asarray(dropped)))
  case.compare("ppo_kl", share(old - logp))


def test_replay_comes_in_bursts_and_only_the_best_survive_a_rise():
  """Claims 2 and 4: with a success rate that rises, the median never falls far, the buffer is
  replayed now and then, and the older a row the likelier it has fallen below the median."""
  rng, rule = np.random.default_rng(0), spear.Replay(size=64, tolerance=8, baseline=64)
  state, due, medians, alive = rule.init(), [], [], []
  for step in range(1, 61):
    batch, state = rule.replay(state, rng.permutation)
    due.append(batch is not None)
    if batch is not None:
      count = len(batch["row_adv"])
      assert count & (count - 1) == 0 and count <= 64 and (batch["row_adv"] > 0).all()
    rewards = rng.normal(size=(8, 8)) + 0.1 * step
    adv = (rewards - rewards.mean(1, keepdims=True)).ravel()
    rows = dict(rewards=rewards.ravel(), row_adv=adv, tool_calls=rng.integers(0, 3, 64),
                usable=np.ones(64, bool))
    state = rule.admit(state, step, rows, size=8)
    medians.append(np.median(state["groups"]["mean"]))
    alive.append(np.stack([step - state["rows"]["step"], rule.recalibrated(state) > 0]))
  age, alive = np.concatenate(alive, axis=1)
  share = [alive[age == a].mean() for a in range(4)]
  assert 5 < sum(due) < 30 and np.corrcoef(np.arange(60), medians)[0, 1] > 0.99
  assert share == sorted(share, reverse=True) and share[3] < share[0] - 0.02, share
  empty = spear.Replay(size=1).replay(spear.Replay().init(), np.arange)
  assert empty[0] is None


def test_padding_fits_what_was_never_replayed_and_hides_no_row():
  assert padded([], (1, 4), -1).tolist() == [[-1] * 4]
  assert padded([np.asarray([5, 6])], (1, 4), -1).tolist() == [[5, 6, -1, -1]]
  assert padded([np.asarray([5]), np.asarray([6])], (1, 2), -1).shape == (2, 2)
  assert padded([np.asarray([5, 6, 7])], (1, 2), 0.0).shape == (1, 3)


def test_an_empty_buffer_has_no_advantages():
  for rule in (spear.Replay(), spear.Replay(by_std=True), spear.Replay(decay=0.5)):
    state = rule.init()
    assert rule.recalibrated(state).shape == (0,) and rule.replay(state, np.arange)[0] is None
    rows = dict(rewards=np.ones(4), row_adv=np.zeros(4), tool_calls=np.ones(4), usable=np.ones(4))
    state = rule.admit(state, 1, rows, size=4)  # equal rewards: no row is good
    assert rule.recalibrated(state).shape == (0,) and rule.replay(state, np.arange)[0] is None


def test_usable_rows_may_be_marked_by_numbers():
  rule = spear.Replay()
  rows = dict(rewards=np.asarray([1.0, 1.0, 0, 0]), row_adv=np.asarray([0.5, 0.5, -0.5, -0.5]),
              tool_calls=np.ones(4))
  for kind in (bool, np.int32, np.float32):
    state = rule.admit(rule.init(), 1, {**rows, "usable": np.asarray([1, 0, 1, 1], kind)}, size=4)
    assert state["rows"]["row_adv"].tolist() == [0.5]


def test_schedules_of_no_length_are_over():
  assert [float(spear.growing(s, length=0)) for s in (0, 1)] == [1.0, 1.0]


def test_a_gap_ages_nothing_and_equal_groups_admit_nothing():
  rule = spear.Replay(size=100, tolerance=2)
  def rows(r):
    r = np.asarray(r, float)
    return dict(rewards=r, row_adv=r - r.mean(), tool_calls=np.ones(4), usable=np.ones(4, bool))
  state = rule.admit(rule.init(), 5, rows([1, 0, 0, 0]), size=4)
  state = rule.admit(state, 6, rows([1, 1, 1, 1]), size=4)
  state = rule.admit(state, 10, rows([1, 0, 0, 0]), size=4)
  assert state["rows"]["step"].tolist() == [5, 10]  # 5 was the newest entry at step 10
  state = rule.admit(state, 11, rows([1, 0, 0, 0]), size=4)
  assert state["rows"]["step"].tolist() == [10, 11]


def test_the_widest_groups_stay():
  rewards = jnp.asarray([0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 0, 3, 3, 3, 3], jnp.float32)
  mask = jnp.ones((16, 2), bool)
  w = spear.widest_groups(rewards, mask, jnp.zeros((16, 2)), size=4, fraction=0.5)
  assert np.asarray(w)[::4, 0].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_the_curriculum_hands_over():
  """Tool reward fades exactly as imitation grows; both end on time whatever the updates."""
  control = spear.Curriculum(tools=10, imitation=10, updates=3)
  state, seen = control.init(), []
  for _ in range(36):
    seen.append((float(state["tool_weight"]), float(state["sil_weight"])))
    state = control.update(state, {})
  tool, sil = np.array(seen)[::3].T
  assert np.allclose(tool + sil, 1.0, atol=1e-6) and (np.diff(tool) <= 1e-6).all()
  assert tool[0] < 1.0 and abs(tool[9]) < 1e-6 and tool[11] == 0.0
