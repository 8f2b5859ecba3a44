"""GTPO and GRPO-S: golden parity, conservation, and which normalisation learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import aggregate, vocab
from entrolab.batch import Batch
from entrolab.methods import grpo, gtpo, ppo
from entrolab.objective import Objective, term
from tests import adapters, bandit

CLIP = dict(low=0.2, high=0.28)


def golden(case):
  """Groups of a file may differ in size and lie scattered, which `grouped` refuses: each is
  gathered and computed alone, as groups do not read each other."""
  config, mask, rewards = case.config, case["response_mask"], case["rewards"]
  entropy = case.live(case["old_logits"])["entropy"]
  config.expect(agg="token mean (GTPO), mean over rows (GRPO-S); no dual clip")
  std_eps = dict(std_eps=config["std_epsilon"])
  # the stored ratios have no limit
  clip = dict(low=config["clip_low"], high=config["clip_high"], limit=float("inf"))
  tokens, rows = (dict(base=config[f"{letter}1"], bonus=config[f"{letter}2"], eps=config["epsilon"])
                  for letter in ("alpha", "beta"))

  def each_token(fn, **more):
    alone = lambda h, r, m, size: fn(r, h, m, size=size, **tokens, **more)
    return adapters.per_group(case, alone, entropy, rewards, mask)

  def rounded(name, reward):
    """The tolerance of an advantage: the rewards behind it are stored to one part in 2^52, and
    divided by a deviation of 1e-6 where they are equal."""
    error = 2.0**-52 * np.abs(case.raw(reward)).max() / config["std_epsilon"]
    return max(adapters.VALUE, error / (1e-3 * np.abs(case.raw(name)).max() + 1e-9))

  def trained(name, adv, **objective):  # from stored advantages, so that each array is judged alone
    loss, grad = adapters.loss_and_grad(Objective(**objective), case, case["logits"], adv=adv)
    case.compare(f"loss_{name}", loss)
    case.compare(f"grad_{name}", grad)

  case.compare("reward_gtpo", each_token(gtpo.token_reward))
  for name, fn in (("gtpo_split", gtpo.split_advantage), ("gtpo_joint", gtpo.joint_advantage)):
    case.compare(f"adv_{name}", each_token(fn, **std_eps),
                 tolerance=rounded(f"adv_{name}", "reward_gtpo"))
    trained(name, case[f"adv_{name}"], surrogate=term(ppo.clipped_ratio, **clip))
  for name, fn, more in (("reward", gtpo.sequence_reward, {}),
                         ("adv", gtpo.sequence_advantage, std_eps)):
    value = adapters.per_group(case, fn, rewards, entropy, mask, **rows, **more)
    case.compare(f"{name}_grpo_s", value, tolerance=rounded(f"{name}_grpo_s", "reward_grpo_s"))
  trained("grpo_s", jnp.where(mask, case["adv_grpo_s"][:, None], 0.0),
          surrogate=term(gtpo.mean_ratio, **clip), aggregate=term(aggregate.row_mean))


def columns(seed=0, groups=50, size=8, length=12):
  """(rewards, entropy, mask) of groups with any number of right rows, none and all included."""
  rng = np.random.default_rng(seed)
  right = rng.random((groups, size)) < rng.choice([0.0, 0.2, 0.5, 0.8, 1.0], (groups, 1))
  mask = np.arange(length) < rng.integers(1, length + 1, (groups * size, 1))
  entropy = jnp.asarray(rng.gamma(1.0, size=mask.shape), jnp.float32)
  return jnp.asarray(right.reshape(-1), jnp.float32), entropy, jnp.asarray(mask)


def test_a_side_gets_the_same_at_every_position_whatever_its_entropy():
  """Claim 1: over active rows of a side, rewards of a position sum to +-(base + bonus) a row."""
  rewards, entropy, mask = columns()
  right, on = np.asarray(rewards).reshape(-1, 8, 1) > 0.0, np.asarray(mask).reshape(-1, 8, 12)
  got = gtpo.token_reward(rewards, entropy, mask, size=8, base=0.8, bonus=0.3)
  got = np.asarray(got).reshape(-1, 8, 12)
  for sign, side in ((1.0, on & right), (-1.0, on & ~right)):
    total, rows = np.where(side, got, 0.0).sum(1), side.sum(1)
    np.testing.assert_allclose(total, sign * 1.1 * rows, rtol=2e-6)
    assert (rows == 0).any() and (rows > 2).any()
  sequence = np.asarray(gtpo.sequence_reward(rewards, entropy, mask, size=8, base=0.8, bonus=0.3))
  for sign, side in ((1.0, right[..., 0]), (-1.0, ~right[..., 0])):
    total = np.where(side, sequence.reshape(-1, 8), 0.0).sum(1)
    np.testing.assert_allclose(total, sign * 1.1 * side.sum(1), rtol=2e-6)


def test_uncertain_right_tokens_earn_more_and_certain_wrong_tokens_cost_more():
  rewards = jnp.asarray([1.0, 1.0, 0.0, 0.0])
  entropy, mask = jnp.asarray([[2.0], [0.5], [2.0], [0.5]]), jnp.ones((4, 1), bool)
  got = gtpo.token_reward(rewards, entropy, mask, size=4)[:, 0]
  np.testing.assert_allclose(got, [1.16, 1.04, -1.04, -1.16], rtol=1e-6)
  got = gtpo.sequence_reward(rewards, entropy, mask, size=4)
  np.testing.assert_allclose(got, [1.16, 1.04, -1.04, -1.16], rtol=1e-6)


def test_without_a_bonus_joint_is_grpo_over_tokens_and_split_is_nothing():
  """Claim 4. Over N tokens of which a share p is right, rewards of +-1 have mean 2 p - 1 and
  variance 4 p (1 - p) N / (N - 1)."""
  rewards, entropy, mask = columns(seed=1)
  right, on = np.asarray(rewards).reshape(-1, 8, 1) > 0.0, np.asarray(mask).reshape(-1, 8, 12)
  n = on.sum((1, 2), keepdims=True)
  p = (on & right).sum((1, 2), keepdims=True) / n
  std = np.sqrt(4.0 * p * (1.0 - p) * n / np.maximum(n - 1, 1))
  want = np.where(on, (np.where(right, 1.0, -1.0) - (2.0 * p - 1.0)) / (std + 1e-6), 0.0)
  args = dict(size=8, bonus=0.0)
  got = np.asarray(gtpo.joint_advantage(rewards, entropy, mask, **args)).reshape(on.shape)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert (np.asarray(gtpo.split_advantage(rewards, entropy, mask, **args)) == 0.0).all()
  # rows alike in length: GRPO's own, but for n - 1 tokens in place of n - 1 rows
  full = jnp.ones_like(mask)
  got = gtpo.joint_advantage(rewards, entropy, full, **args)
  want = grpo.group_advantage(2.0 * rewards - 1.0, size=8) * np.sqrt(95 / 96 * 8 / 7)
  np.testing.assert_allclose(got, np.tile(np.asarray(want)[:, None], 12), rtol=1e-5, atol=1e-6)


def test_equal_entropies_of_one_side_give_nothing():
  """All right, all wrong or a group of one: no rounding is blown up to a signal."""
  mask = jnp.asarray(np.arange(9) < np.asarray([9, 3, 5, 1, 7, 9, 2])[:, None])
  for h in (0.3, 0.7, 2.1):
    entropy = jnp.full(mask.shape, h, jnp.float32)
    for fn in (gtpo.joint_advantage, gtpo.split_advantage):
      for run in (fn, jax.jit(fn, static_argnames=("size",))):
        assert (np.asarray(run(jnp.zeros(7), entropy, mask, size=7)) == 0.0).all()
        # the eps beside the sum of entropies stays: 0.1 * 1e-8 / 0.3 of a reward, over 1e-6
        assert np.abs(run(jnp.ones(7), entropy, mask, size=7)).max() < 4e-3
  entropy = jnp.asarray(np.random.default_rng(0).gamma(1.0, size=mask.shape), jnp.float32)
  assert (np.asarray(gtpo.sequence_advantage(jnp.ones(7), entropy, mask, size=1)) == 0.0).all()


def test_split_favours_no_side_and_joint_the_right_one():
  """What claim 2 rests on: the mean advantage of right tokens."""
  rewards, entropy, mask = columns(seed=2)
  right = np.asarray(rewards).reshape(-1, 8, 1) > 0.0
  on = np.asarray(mask).reshape(-1, 8, 12)
  both = right.any(1)[:, 0] & ~right.all(1)[:, 0]
  means = {}
  for fn in (gtpo.joint_advantage, gtpo.split_advantage):
    adv = np.asarray(fn(rewards, entropy, mask, size=8)).reshape(on.shape)
    for side in (right, ~right):
      count = np.maximum((on & side).sum((1, 2)), 1)
      means[fn, side is right] = (np.where(on & side, adv, 0.0).sum((1, 2)) / count)[both]
  assert both.sum() > 20
  assert (means[gtpo.joint_advantage, True] > 0.1).all()
  assert (means[gtpo.joint_advantage, False] < -0.1).all()
  assert all(np.abs(means[gtpo.split_advantage, side]).max() < 1e-5 for side in (True, False))


def test_one_nearly_certain_token_takes_the_bonus_of_its_position_unless_floored():
  """A trap of 1 / H: of eight wrong rows at 0.5 nats, one at -1e-8, as rounding may leave it."""
  entropy = jnp.full((8, 1), 0.5, jnp.float32).at[3].set(-1e-8)
  args = (jnp.zeros(8), entropy, jnp.ones((8, 1), bool))
  got = np.asarray(gtpo.token_reward(*args, size=8))[:, 0]
  np.testing.assert_allclose(got, np.where(np.arange(8) == 3, -1.8, -1.0), atol=1e-5)
  got = np.asarray(gtpo.token_reward(*args, size=8, floor=0.25))[:, 0]
  np.testing.assert_allclose(got[3] + 1.0, 2.0 * (got[0] + 1.0), rtol=1e-5)


@pytest.mark.parametrize("knobs", [dict(bonus=-0.1), dict(eps=0.0), dict(floor=-1.0)])
def test_wrong_knobs_are_refused(knobs):
  name, value = next(iter(knobs.items()))
  with pytest.raises(ValueError, match=f"{name}={value}"):
    gtpo.joint_advantage(*columns(), size=8, **knobs)


def test_the_ratio_of_a_row_is_the_mean_of_its_tokens():
  """Ratios 10, 1, 1, 1 have mean 3.25; their likelihood ratio to the power 1/4 is 1.78."""
  logp, mask = jnp.log(jnp.asarray([[10.0, 1.0, 1.0, 1.0, 9.0]])), jnp.arange(5)[None] < 4
  loss = lambda adv: gtpo.mean_ratio(logp, jnp.zeros_like(logp), jnp.full((1, 5), adv), mask)
  np.testing.assert_allclose(loss(1.0)[0, 0], -1.28, rtol=1e-6)
  np.testing.assert_allclose(loss(-1.0)[0, 0], 3.25, rtol=1e-6)


PROMPTS, SIZE, ACTIONS, STEPS = 16, 8, 8, 150


def objective(fn):
  loss = dict(surrogate=term(ppo.clipped_ratio, **CLIP))
  if fn is gtpo.sequence_advantage:
    loss = dict(surrogate=term(gtpo.mean_ratio, **CLIP), aggregate=term(aggregate.sequence_mean))
  return Objective(reward=term(grpo.outcome), advantage=term(fn, size=SIZE), **loss)


def test_joint_learns_and_split_does_not_where_rows_have_equal_entropies():
  """Claim 2. In a bandit every row of a group has the same entropies, so that split has nothing to
  move: success stays at its start. Bounds set before they were measured."""
  task = bandit.Task(states=PROMPTS, samples=SIZE, length=2, actions=ACTIONS)
  reward = {fn: bandit.train(task, objective(fn))["reward"] for fn in
            (gtpo.joint_advantage, gtpo.split_advantage, gtpo.sequence_advantage)}
  still = reward[gtpo.split_advantage]
  start = still[:, :20].mean(1)
  assert (np.abs(still[:, -20:].mean(1) - start) < 0.05).all()
  for fn in (gtpo.joint_advantage, gtpo.sequence_advantage):
    assert (reward[fn][:, -20:].mean(1) > start + 0.4).all()


@functools.cache
def curves(fn, seeds=8, rate=4.0):
  """Exact (success, entropy) [seed, step] of a tabular policy of two tokens, the second given the
  first, so that rows of a group differ in entropy. Right: the second token is 0; best success 1."""
  made = objective(fn)
  rows = jnp.repeat(jnp.arange(PROMPTS), SIZE)
  names = vocab.Spec(names=("entropy", "logp"))

  def live(z, tokens):
    first, second = z
    logits = jnp.stack([first[rows], second[rows, tokens[:, 0]]], 1)
    return vocab.from_logits(logits, tokens, names)

  def exact(z):
    first, second = (jax.nn.softmax(x) for x in z)
    entropy = vocab.entropy(z[0]) + (first * vocab.entropy(z[1])).sum(-1)
    return (first * second[..., 0]).sum(-1).mean(), entropy.mean() / 2.0

  def step(z, key):
    keys = jax.random.split(key)
    first = jax.random.categorical(keys[0], z[0][rows])
    second = jax.random.categorical(keys[1], z[1][rows, first])
    tokens = jnp.stack([first, second], 1)
    old = live(z, tokens)
    batch = made.prepare(Batch(
        tokens=tokens, mask=jnp.ones(tokens.shape, bool), group=rows, old_logp=old["logp"],
        old_entropy=old["entropy"], verdict=(second == 0).astype(jnp.int32)))
    loss = lambda z: made.loss({**batch.columns(), **live(z, tokens)})[0]
    moved = jax.tree.map(lambda x, g: x - rate * PROMPTS * g, z, jax.grad(loss)(z))
    return moved, exact(z)

  def run(key):
    start, draws = jax.random.split(key)
    shapes = ((PROMPTS, ACTIONS), (PROMPTS, ACTIONS, ACTIONS))
    z = tuple(jax.random.normal(k, s) for k, s in zip(jax.random.split(start), shapes, strict=True))
    return jax.lax.scan(step, z, jax.random.split(draws, STEPS))[1]

  found = jax.jit(jax.vmap(run))(jnp.stack([jax.random.key(seed) for seed in range(seeds)]))
  return tuple(np.asarray(x) for x in found)


def test_split_learns_less_than_joint_where_rows_differ_in_entropy():
  """Claim 2 to the letter does not hold here: split was to rise by less than 0.05 and rises by 0.15
  to 0.48 (joint: 0.86 to 0.89). Its advantages have mean 0, but of the fifth of tokens that is most
  certain at the start, wrong ones have -1.5 and right ones -0.5, which favours right answers there.
  The bound of 0.2 between the two was set on seeds 0 to 2, before seeds 3 to 7 were measured."""
  rise = {fn: curves(fn)[0][:, -1] - curves(fn)[0][:, 0]
          for fn in (gtpo.joint_advantage, gtpo.split_advantage)}
  assert (rise[gtpo.joint_advantage] > 0.4).all()
  assert (rise[gtpo.joint_advantage] - rise[gtpo.split_advantage] > 0.2)[3:].all()


def test_entropy_at_equal_success_is_not_shown_to_be_above_grpos():
  """Claim 3 is not shown: at a success of 0.3 joint GTPO has 1.481 nats a token and GRPO 1.512
  (difference -0.031, standard error 0.006, 8 seeds), at 0.6 0.959 and 0.999 (-0.040, 0.021), at 0.8
  0.563 and 0.556 (0.007, 0.016)."""
  for level in (0.3, 0.6, 0.8):
    ours, plain = (entropy_at(level, *curves(fn))
                   for fn in (gtpo.joint_advantage, grpo.group_advantage))
    more = ours - plain
    print(level, ours.mean(), plain.mean(), more.mean(), more.std(ddof=1) / np.sqrt(len(more)))
    assert more.mean() < 2.0 * more.std(ddof=1) / np.sqrt(len(more))


def entropy_at(level, success, entropy):
  """The entropy of each seed where its success first reaches the level."""
  return np.asarray([h[np.argmax(s >= level)] for s, h in zip(success, entropy, strict=True)])
