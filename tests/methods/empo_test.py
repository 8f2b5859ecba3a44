"""EMPO: golden parity with both official codes, and what its reward ascends."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import aggregate
from entrolab.methods import empo, grpo, gspo, ppo
from entrolab.objective import Objective, term
from entrolab.ranks import masked_mean
from entrolab.verify import vote
from tests import adapters

COLUMNS = dict(cluster=lambda rng: rng.integers(-1, 3, 16).astype(np.int32))


def first_member(answers, equal):
  """verl: each answer joins the first class whose first member it equals; -1 stays -1."""
  same = lambda a, b: bool(equal[int(a), int(b)])
  keys = [None if a < 0 else str(i) for i, a in enumerate(answers)]
  return [-1 if c is None else c for c in vote.cluster(keys, same)]


def later_wins(answers, equal):
  """TRL: a class opener takes every later equal answer, even from an earlier class."""
  ids, opened = [-1] * len(answers), 0
  for i in range(len(answers)):
    if ids[i] < 0:
      ids[i] = opened
      for j in range(i + 1, len(answers)):
        if answers[i] >= 0 and answers[j] >= 0 and equal[i, j]:
          ids[j] = opened
      opened += 1
  return ids


def graded(answers, truth, pairs):
  """1 where the grader finds an answer right: its class is that of the truth, or one of the pairs
  of classes that are judged equal says so; -1, no answer, never is. Not transitive."""
  same = {(a, a) for a in [*np.unique(answers), *np.unique(truth)]}
  same |= {(a, b) for a, b in pairs} | {(b, a) for a, b in pairs}
  return np.asarray([[float(a >= 0 and (a, t) in same) for a in row]
                     for row, t in zip(answers, truth, strict=True)])


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  answers, truth, size = case.raw("answers"), case.raw("ground_truth"), config["G"]
  config.expect(G=answers.shape[1], N=len(answers), T=mask.shape[1], V=logits.shape[2], std_ddof=1)
  equal = case.raw("equiv").astype(bool)
  flat = lambda rows: jnp.asarray(np.concatenate(rows), jnp.int32)
  verl = flat([first_member(a, e) for a, e in zip(answers, equal, strict=True)])
  ids = np.asarray([later_wins(a, e) for a, e in zip(answers, equal, strict=True)])
  case.compare("trl_semantic_ids", ids)
  shape = lambda r: r.reshape(answers.shape)
  p = empo.frequency(verl, size=size)
  silent = answers.reshape(-1) < 0
  case.compare("verl_freq", p)
  case.compare("verl_semantic_entropy", empo.semantic_entropy(verl, size=size))
  case.compare("verl_n_clusters", jnp.round((1.0 / (p * size)).sum(1)))
  trl = jnp.asarray(ids.reshape(-1), jnp.int32)  # there every silent response has a class
  entropy = empo.semantic_entropy(trl, size=size)
  case.compare("trl_semantic_entropy", entropy)
  share = empo.class_share(verl, size=size, silent=None)
  right = jnp.asarray(graded(answers, truth, config["extra_equal_pairs"]))
  elected = np.asarray(share).reshape(-1, size).argmax(1)
  mode_right = right[np.arange(len(elected)), elected]
  # the gate of TRL's mathematics as numpy rounds it: for some G it misses G different answers
  q = [np.unique(row, return_counts=True)[1] / size for row in ids]
  fires = np.asarray([-(x * np.log(x)).sum() >= np.log(size) for x in q])
  trl_share = np.where(silent, -1, np.asarray(trl))
  hot = lambda least: empo.class_share(jnp.asarray(trl_share), size=size, least=least)
  natural = empo.class_share(jnp.asarray(trl_share), size=size, silent=-0.5, least=0.2)
  one_class = (ids == ids[:, :1]).all(1)
  rewards = dict(
      verl_entropy=shape(share), verl_voting=shape(empo.largest_class(verl, size=size)),
      verl_gt=right, verl_best=jnp.where(mode_right[:, None] > 0, 0.0, right),
      verl_format=jnp.asarray(answers >= 0, float),
      verl_conf025=shape(empo.class_share(verl, size=size, silent=None, least=0.25)),
      trl_math=jnp.where(fires[:, None], 0.0, shape(hot(0.0))),
      trl_natural=jnp.where(one_class[:, None] & (answers >= 0), shape(hot(0.0)), shape(natural)))
  spread = lambda a: jnp.where(mask, a[:, None], 0.0)
  for name, value in rewards.items():
    case.compare(f"reward_{name}", value)
    adv = grpo.group_advantage(value.reshape(-1), size=size, eps=config["adv_eps_verl"])
    if np.abs(case.raw(f"adv_{name}")).max() < 1e-9:  # equal rewards: theirs is rounding over eps
      case.require(float(jnp.abs(adv).max()) < 1e-9, f"adv_{name} is zero, ours is not")
      case.ignore(f"adv_{name}", "equal rewards: theirs holds rounding under 1e-9, ours is zero")
    else:
      case.compare(f"adv_{name}", spread(adv))
  case.compare("adv_trl_math_eps1e4", grpo.group_advantage(
      rewards["trl_math"].reshape(-1), size=size, eps=config["adv_eps_trl"]))
  config.expect(reward_for_loss=tuple(rewards))
  used = rewards[config["reward_for_loss"]].reshape(-1)
  live, old = case.live(logits), case["old_logprobs"]
  case.compare("logprobs", live["logp"], where=mask)
  clips = dict(low=config["clip_low"], high=config["clip_high"])
  adv = grpo.group_advantage(used, size=size, eps=config["adv_eps_verl"])
  objective = Objective(surrogate=term(gspo.clipped_sequence, path="sequence", **clips),
                        aggregate=term(aggregate.row_mean))
  loss, grad = adapters.loss_and_grad(objective, case, logits, adv=spread(adv))
  case.compare("gspo_loss", loss)
  case.compare("gspo_grad_logits", grad)
  s = gspo.sequence_ratio(live["logp"], old, mask)[:, 0]
  hit = -adv * jnp.clip(s, 1 - clips["low"], 1 + clips["high"]) > -adv * s
  case.compare("gspo_clipfrac", jnp.asarray(hit, float).mean())
  case.compare("gspo_ppo_kl", masked_mean(old - live["logp"], mask))
  eps4 = grpo.group_advantage(rewards["trl_math"].reshape(-1), size=size,
                              eps=config["adv_eps_trl"])
  on_policy = Objective(surrogate=term(ppo.plain_ratio), aggregate=term(aggregate.row_mean))
  loss, grad = adapters.loss_and_grad(on_policy, case, logits, adv=spread(eps4),
                                      old_logp=jax.lax.stop_gradient(live["logp"]))
  # of order 1e-17: advantages of a group cancel on policy, what is left is rounding
  case.require(abs(float(loss) - float(case.raw("trl_loss"))) <= 1e-12, "trl_loss is not ours")
  case.ignore("trl_loss", "checked above to 1e-12 absolute: it is zero but for rounding")
  case.compare("trl_grad_logits", grad)


def test_the_reward_ascends_the_chance_that_two_answers_agree():
  """With the reward held fixed, sum_i pi_i r_i has the gradient of sum_j p_j^2 / 2."""
  z = jnp.asarray([0.3, -0.2, 0.9, 0.1])
  p = jax.nn.softmax(z)
  push = jax.grad(lambda z: (jax.nn.softmax(z) * p).sum())(z)
  want = jax.grad(lambda z: jnp.square(jax.nn.softmax(z)).sum() / 2)(z)
  np.testing.assert_allclose(push, want, atol=1e-7)
  counts = jnp.asarray([0, 0, 0, 1, 2, 2, -1, -1], jnp.int32)
  np.testing.assert_allclose(empo.frequency(counts, size=8)[0] * 8, [3, 3, 3, 1, 2, 2, 1, 1])


def test_different_answers_are_gated_for_every_group_size():
  for size in range(2, 33):
    gate = jax.jit(partial(empo.inside_gate, size=size, high=float(np.log(size))))
    cluster = np.arange(size, dtype=np.int32)
    assert not bool(gate(cluster)[0]), size
    cluster[1] = 0
    assert bool(gate(cluster)[0]), size


def test_the_grader_says_what_is_right():
  """Pairs of classes judged equal, in either order and no further; no answer is never right."""
  right = lambda row, truth, pairs: graded(np.asarray([row]), [truth], pairs)[0].tolist()
  assert right([3, 4, 5, -1], 4, [[3, 4]]) == [1, 1, 0, 0]
  assert right([3, 4, 5, -1], 3, [[3, 4]]) == [1, 1, 0, 0]
  assert right([3, 4, 5, -1], 3, [[3, 4], [4, 5]]) == [1, 1, 0, 0]
  assert right([3, 4, -1], -1, []) == [0, 0, 0] and right([3, 4], 4, []) == [0, 1]


def test_silence_has_no_reward_and_stays_in_the_denominator():
  cluster = jnp.asarray([3, 3, -1, -1], jnp.int32)
  np.testing.assert_allclose(empo.class_share(cluster, size=4), [0.5, 0.5, 0.0, 0.0])
  np.testing.assert_allclose(empo.class_share(cluster, size=4, silent=None), [0.5, 0.5, .25, .25])
