"""AEPO (agentic): golden parity of loss and branching, and what budget, penalty and clip buy."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.methods import aepo_agentic, ppo
from entrolab.objective import Objective, term
from entrolab.ranks import masked_mean
from tests import adapters

INF = float("inf")


def golden(case):
  kinds = dict(loss=_loss, branch=_branch, arpo=_branch, budget=_budget, segent=_segment)
  kinds[case.path.stem.removeprefix("aepo_agentic_").split("_")[0]](case)


def _budget(case):
  config, steps = case.config, case.raw("step_entropies")
  config.expect(rule="clip(floor(n*sigmoid(beta*(H_root-mean_step)))+1,1,n)")
  count, root = case.raw("n_steps"), case.raw("h_root")
  on = np.arange(steps.shape[1]) < count[:, None]
  mean = np.where(count > 0, (steps * on).sum(1) / np.maximum(count, 1), root)
  case.compare("h_step_mean", mean)
  case.compare("initial_rollouts", aepo_agentic.budget(root, mean, samples=config["n"],
                                                       sharpness=config["beta"]))


def _segment(case):
  config = case.config
  config.expect(top=case.raw("top_logprobs").shape[-1])
  case.compare("segment_entropy", aepo_agentic.segment_entropy(
      case["top_logprobs"], case["n_tokens"], vocab=config["vocab"],
      first=config["first_tokens"]))


def _branch(case):
  config = case.config
  tests = dict(arpo=aepo_agentic.arpo_test, aepo=aepo_agentic.aepo_test)
  config.expect(variant=tuple(tests))
  test = tests[config["variant"]]
  if config["variant"] == "arpo":
    config.ignore("ARPO knows no streak", "consecutive_penalty")
  rule = aepo_agentic.Branching(
      samples=config["n"], beam=config["beam_size"], probability=config["branch_probability"],
      weight=config["entropy_weight"], penalty=config.get("consecutive_penalty", 0.0),
      calls=config["tool_call_limit"], test=test)
  entropy, asks = case.raw("segment_entropy"), case.raw("segment_is_tool_call") > 0
  tree = rule.start([config["initial_rollouts"]] * config["prompts"])
  draws, widths = iter(case.raw("uniform_draws").tolist()), []

  def draw(i):
    number = next(draws, None)
    if number is None:
      raise adapters.Mismatch(f"{case.path.name}: more draws than are stored")
    return number

  while tree.active:
    call = len(widths)
    widths.append(len(tree.active))
    if call >= len(entropy) or widths[-1] > entropy.shape[1]:
      raise adapters.Mismatch(f"{case.path.name}: more calls or rollouts than are stored")
    tree = rule.advance(tree, entropy[call], asks[call], draw)
  case.compare("n_calls", len(widths))
  case.compare("active_per_call", widths)
  case.compare("segment_call", np.repeat(np.arange(len(widths)), widths))
  case.compare("segment_slot", np.concatenate([np.arange(w) for w in widths]))
  case.compare("n_draws_used", len(case.raw("uniform_draws")) - len(list(draws)))
  out = rule.outputs(tree)
  want = case.raw("paths")
  case.require(len(out) == len(want), f"{len(want)} paths are stored, ours are {len(out)}")
  if max(len(r.path) for r in out) > want.shape[1]:
    raise adapters.Mismatch(f"{case.path.name}: a path is longer than what is stored")
  fill = lambda x, width, value: [*x, *[value] * (width - len(x))]
  case.compare("paths", [fill(r.path, want.shape[1], -1) for r in out])
  # two tokens a segment, two of its tool's result, one that ends a rollout at its limit
  masks = [[1, 1, 0, 0] * (len(r.path) - 1) + [1, 1] + [1] * r.limited for r in out]
  width = case.raw("response_loss_mask").shape[1]
  case.compare("response_loss_mask", [fill(m, width, 0) for m in masks])


def _loss(case):
  config, mask, logits = case.config, case["response_mask"], case["logits"]
  live, old = case.live(logits), case["old_logprobs"]
  logp, adv = live["logp"], case["advantages"]
  case.compare("logprobs", logp, where=mask)
  case.compare("entropy", live["entropy"], where=mask)
  case.compare("ratio", ppo.ratio(logp, old, limit=INF), where=mask)
  knobs = dict(low=config["clip_low"], high=config["clip_high"], limit=INF)
  shape = ()
  if not config["entropy_balanced_advantage"]:
    config.ignore("the advantage is not balanced by entropy", "adv_coef")
  else:
    adv = aepo_agentic.entropy_aware(adv, live["entropy"], mask, coef=config["adv_coef"])
    shape = term(aepo_agentic.entropy_aware, coef=config["adv_coef"])
  case.compare("adjusted_advantages", adv, where=mask)
  form = (aepo_agentic.balanced_clip if config["entropy_balanced_clipping"]
          else ppo.clipped_ratio)
  objective = Objective(surrogate=term(form, dual=config["clip_c"], **knobs), advantage=shape,
                        aggregate=adapters.aggregation(config, width=mask.shape[1]))
  loss, grad = adapters.loss_and_grad(objective, case, logits)
  case.compare("loss", loss)
  case.compare("grad_logits", grad)
  share = lambda x: masked_mean(x.astype(float), mask)
  clipped = ppo.is_clipped(logp, old, adv, **knobs)
  plain = ppo.clipped_ratio(logp, old, adv, **knobs)
  case.compare("clipfrac", share(clipped))
  case.compare("clipfrac_lower", share((adv < 0) & (plain > -adv * config["clip_c"])))
  case.compare("ppo_kl", share(old - logp))


def test_the_gradient_of_a_clipped_token_is_bounded_and_kept():
  """All five cases of the note, and claim 2: fewer tokens without a gradient than under PPO."""
  r = jnp.asarray([[1.5, 1.5, 0.5, 0.5, 4.0, 1.1]])
  adv = jnp.asarray([[1.0, -1.0, 1.0, -1.0, -1.0, 2.0]])
  grad = lambda form, r, adv, **knobs: jax.grad(
      lambda x: form(x, jnp.zeros_like(x), adv, **knobs).sum())(jnp.log(r))
  got = grad(aepo_agentic.balanced_clip, r, adv)
  np.testing.assert_allclose(got, [[-1.2, 1.5, -0.5, 0.0, 0.0, -2.2]], rtol=1e-5)
  np.testing.assert_allclose(grad(aepo_agentic.balanced_clip, r, adv, dual=10.0)[0, 4], 4.0,
                             rtol=1e-5)
  rng = np.random.default_rng(0)
  r, adv = (jnp.asarray(x, jnp.float32) for x in (np.exp(rng.normal(size=(64, 64))),
                                                  rng.normal(size=(64, 64))))
  dead = [float((grad(form, r, adv, dual=3.0) == 0).mean())
          for form in (aepo_agentic.balanced_clip, ppo.clipped_ratio)]
  print("share without gradient", dead)
  assert dead[0] < 0.6 * dead[1]


def test_confident_batches_and_outliers_keep_their_sign():
  mask = jnp.ones((1, 400), bool)
  flat = jnp.full((1, 400), np.log(16.0), jnp.float32) + 1e-7 * (jnp.arange(400.0)[None] % 3)
  adv = jnp.asarray(np.random.default_rng(1).normal(size=(1, 400)), jnp.float32)
  np.testing.assert_array_equal(aepo_agentic.entropy_aware(adv, flat, mask), adv)
  h = jnp.ones((1, 400)).at[0, 0].set(-1.0)  # z of about -20
  out = aepo_agentic.entropy_aware(adv, h, mask)
  assert (np.asarray(out) * np.asarray(adv) >= 0).all() and float(out[0, 0]) == 0.0


def _grow(seed, **knobs):
  """Distinct fresh rollouts behind the branches, a branch; one in three has risen for good."""
  rng = np.random.default_rng(seed)
  rule = aepo_agentic.Branching(samples=16, beam=3, calls=8, weight=0.4, **knobs)
  tree, sources = rule.start([3] * 4), []
  while tree.active:
    paths = [tree.rollouts[i].path for i in tree.active]
    h = rng.gamma(2.0, 0.2, len(paths)) + [2.0 * (p[:1] != () and p[0] % 3 == 0) for p in paths]
    before = len(tree.rollouts)
    tree = rule.advance(tree, h, rng.random(len(h)) < 0.9, lambda i: rng.random())
    sources += [r.path[0] for r in tree.rollouts[before:] if r.path]
  assert (np.bincount([r.prompt for r in rule.outputs(tree)]) == 16).all()  # claim 5
  return len(set(sources)) / len(sources)


def test_the_penalty_spreads_the_branches_and_all_slots_are_filled():
  """Claim 1: more distinct sources a branch with the penalty than without, 60 seeds."""
  ends = {(p, scope): np.mean([_grow(s, penalty=p, scope=scope) for s in range(60)])
          for p in (0.3, 0.0) for scope in ("prompt", "path")}
  print("distinct sources a branch", ends)
  assert ends[0.3, "prompt"] > ends[0.0, "prompt"] and ends[0.3, "path"] > ends[0.0, "path"]


def test_the_budget_grows_with_the_prompt_s_own_entropy():
  """Claim 3, and its ends: from 1 to n, half and one at equality."""
  gap = np.linspace(-20, 20, 41)
  m = aepo_agentic.budget(gap, np.zeros(41), samples=16)
  assert (np.diff(m) >= 0).all() and (m[0], m[20], m[-1]) == (1, 9, 16)


def test_small_entropies_are_told_apart_as_far_as_their_type_can():
  """A confident policy's entropies of 1e-6 nats differ in float64; in float32 that is rounding."""
  adv, h = jnp.ones((1, 4)), np.asarray([[1e-6, 2e-6, 3e-6, 4e-6]])
  with adapters.double():
    for kind, acts in ((np.float64, True), (np.float32, False)):
      out = aepo_agentic.entropy_aware(jnp.asarray(adv, kind), jnp.asarray(h, kind),
                                       jnp.ones((1, 4), bool))
      assert bool((np.asarray(out) != 1.0).any()) == acts
