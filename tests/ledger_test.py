"""The entropy ledger: it adds up, its rest falls with the rate, and it changes nothing of a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entrolab import aggregate, vocab
from entrolab.batch import Batch
from entrolab.ledger import account, adamw
from entrolab.methods import bonus, grpo, kl, ppo
from entrolab.objective import Objective, Penalty, term
from tests import adapters, probe

pytestmark = pytest.mark.usefixtures("libraries_promote")

B, T, F, V = 8, 6, 5, 7
ADAMW = dict(b1=0.9, b2=0.99, eps=1e-6, weight_decay=0.05)
CLIP = 0.02  # of the norm of the gradient: every update of these tests is clipped

OBJECTIVE = Objective(
    reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=4),
    surrogate=term(ppo.clipped_ratio, low=0.2, high=0.28),
    penalties=((0.02, term(bonus.negative_entropy)), (0.1, term(kl.k3))))


def rows(seed):
  """Features [B, T, F] of the states, and a batch of tokens on them."""
  rng = np.random.default_rng(seed)
  mask = np.arange(T) < rng.integers(1, T + 1, B)[:, None]
  stat = lambda: jnp.asarray(-rng.exponential(size=(B, T)))
  batch = Batch(tokens=jnp.asarray(rng.integers(0, V, (B, T))), mask=jnp.asarray(mask),
                old_logp=stat(), old_entropy=-stat(), ref_logp=stat(),
                verdict=jnp.asarray(rng.integers(0, 2, B).astype(np.int32)))
  return jnp.asarray(rng.normal(size=(B, T, F))), batch


def statistics(weights, features, batch, names=("entropy", "logp")):
  """Of a policy whose logits are linear in the features: states share their parameters."""
  logits = jnp.einsum("btf,fv->btv", features, weights["w"]) + weights["b"]
  return vocab.from_logits(logits, batch.tokens, vocab.Spec(names=names))


def entropy(weights, features, batch):
  at = statistics(weights, features, batch, ("entropy",))["entropy"]
  return jnp.where(batch.mask, at, 0.0).sum() / batch.mask.sum()


def on_policy(weights, features, batch):
  """The batch with old statistics near the present ones, so that some ratios are clipped."""
  live = statistics(weights, features, batch)
  return batch.replace(old_logp=live["logp"] + 0.2 * (batch.old_logp + 1.0),
                       old_entropy=live["entropy"])


def updates(lr, order, seed=0, count=3, objective=OBJECTIVE):
  """Accounts of `count` updates on fresh states: [(entries, <h, delta>)]."""
  weights = {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(F, V))),
             "b": jnp.zeros(V)}
  tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(lr, **ADAMW))
  opt = tx.init(weights)
  out = []
  fresh = rows(100)
  for number in range(count):
    features, batch = rows(number)
    batch = objective.prepare(on_policy(weights, features, batch))

    def loss(w, features=features, batch=batch):
      return objective.loss({**batch.columns(), **statistics(w, features, batch)})[0]

    grads = jax.grad(loss)(weights)
    norm = optax.tree.norm(grads)
    assert float(norm) > CLIP
    moment = adamw.moment(opt)
    delta, opt = tx.update(grads, opt, weights)
    after = optax.apply_updates(weights, delta)

    start, h = jax.value_and_grad(entropy)(weights, *fresh)
    end, h_end = jax.value_and_grad(entropy)(after, *fresh)
    if order == 2:
      h = jax.tree.map(lambda a, b: (a + b) / 2.0, h, h_end)
    made = adamw.step(opt, norm, schedule=optax.constant_schedule(lr), clip_norm=CLIP, **ADAMW)
    live, moved = jax.jvp(lambda w, f=features, b=batch: statistics(w, f, b),
                          (weights,), (account.direction(made, h),))
    of_tokens = account.effects(objective, batch.columns(), live, moved)
    entries = account.entries(of_tokens, h, made, moment, weights, end - start)
    out.append(({name: float(x) for name, x in entries.items()},
                float(account.inner(h, delta)), of_tokens, live, batch))
    weights = after
  return out


def test_the_account_adds_up_and_its_parts_are_the_step_that_was_made():
  """In float64 to 1e-10: terms, clipping, momentum and decay are <h, delta>, with the moments of
  earlier updates, a clip that acts and weight decay."""
  with adapters.double():
    for entries, along, *_ in updates(1e-3, order=2):
      parts = [x for name, x in entries.items() if name not in ("measured", "rest")]
      assert sum(parts) == pytest.approx(along, rel=1e-10)
      assert sum(parts) + entries["rest"] == pytest.approx(entries["measured"], rel=1e-10)
  assert all(abs(x) > 1e-9 for name, x in entries.items() if name != "rest"), entries
  names = {account.POSITIVE, account.NEGATIVE, "bonus.negative_entropy", "kl.k3", "clipping",
           "momentum", "weight_decay", "rest", "measured"}
  assert entries.keys() == names


def test_a_wrong_part_would_not_add_up():
  """The check above can fail: without the momentum of earlier updates the parts miss the step."""
  with adapters.double():
    entries, along, *_ = updates(1e-3, order=2)[-1]
  parts = [x for name, x in entries.items() if name not in ("measured", "rest", "momentum")]
  assert abs(sum(parts) / along - 1.0) > 1e-2


@pytest.mark.parametrize("order, falls", [(1, 1), (2, 2)])
def test_the_rest_falls_with_the_rate_to_its_order(order, falls):
  """|rest| / |measured| of the first update at three rates, each a third of the one before."""
  with adapters.double():
    shares = []
    for lr in (9e-3, 3e-3, 1e-3):
      entries = updates(lr, order, count=1)[0][0]
      shares.append(abs(entries["rest"] / entries["measured"]))
  slopes = np.diff(np.log(shares)) / np.log(1.0 / 3.0)
  np.testing.assert_allclose(slopes, falls, atol=0.15)
  assert shares[-1] < (2e-2 if order == 1 else 1e-3)


def test_one_state_has_a_closed_form():
  """A softmax over free logits z in one state, no clip: h = -p (log p + H), the gradient of one
  token's loss is A (p - e_a), and its entry -eta <P h, A (p - e_a)>."""
  with adapters.double():
    z = jnp.asarray([0.3, -1.0, 2.0, 0.5])
    tokens = jnp.asarray([[2], [0], [1], [2]])
    batch = Batch(tokens=tokens, mask=jnp.ones((4, 1), bool), verdict=jnp.asarray([1, 0, 0, 1]),
                  old_logp=jax.nn.log_softmax(z)[tokens], group=jnp.zeros(4, jnp.int32))
    objective = Objective(reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=4),
                          surrogate=term(ppo.clipped_ratio, low=0.2, high=0.2),
                          aggregate=term(aggregate.token_mean))
    batch = objective.prepare(batch)
    of = lambda logits: vocab.from_logits(jnp.broadcast_to(logits, (4, 1, 4)), tokens,
                                          vocab.Spec(names=("entropy", "logp")))
    p, log_p = jax.nn.softmax(z), jax.nn.log_softmax(z)
    h = -p * (log_p - (p * log_p).sum())
    made = adamw.Step(jnp.float64(0.1), {"z": jnp.asarray([1.0, 2.0, 0.5, 3.0])},
                      jnp.float64(0.0), jnp.float64(1.0), jnp.float64(1.0), 0.0)
    live, moved = jax.jvp(lambda w: of(w["z"]), ({"z": z},), (account.direction(made, {"z": h}),))
    of_tokens = account.effects(objective, batch.columns(), live, moved)
    got = account.entries(of_tokens, {"z": h}, made, {"z": 0.0 * z}, {"z": z}, jnp.float64(0.0))
    preconditioned = made.preconditioner["z"] * h
    want = {account.POSITIVE: 0.0, account.NEGATIVE: 0.0}
    for token, adv in zip(tokens[:, 0], batch.adv[:, 0], strict=True):
      gradient = adv * (p - jnp.eye(4)[token]) / 4.0
      name = account.POSITIVE if adv >= 0 else account.NEGATIVE
      want[name] += float(-0.1 * (preconditioned * gradient).sum())
    for name, value in want.items():
      assert float(got[name]) == pytest.approx(value, rel=1e-12) and value != 0.0
    assert float(got["momentum"]) == 0.0 and float(got["clipping"]) == 0.0


def test_the_table_holds_every_token_and_the_whole_surrogate():
  with adapters.double():
    for entries, _, of_tokens, live, batch in updates(1e-3, order=1, count=2):
      effect, tokens = account.table(of_tokens, batch, live)
      assert effect.shape == tokens.shape == account.CELLS
      assert float(tokens.sum()) == int(batch.mask.sum())
      np.testing.assert_allclose(effect[1].sum(), entries[account.POSITIVE], rtol=1e-10)
      np.testing.assert_allclose(effect[0].sum(), entries[account.NEGATIVE], rtol=1e-10)
      # a clipped token has no slope: it moves nothing itself, and some tokens are clipped here
      assert np.abs(effect[..., 1]).max() == 0.0 and float(tokens[..., 1].sum()) > 0
      quarters = np.asarray(tokens.sum((0, 1, 3)))
      assert quarters.max() - quarters.min() <= 1.0


def test_a_state_that_is_not_of_adamw_is_refused():
  opt = optax.sgd(0.1, momentum=0.9).init({"w": jnp.zeros(2)})
  with pytest.raises(ValueError, match="knows AdamW alone"):
    adamw.moment(opt)


@functools.partial(jax.jit, static_argnums=0, compiler_options=adapters.QUICK)
def both_gradients(objective, columns, logits):
  """(gradient of the loss, of the sum of `tokens`, loss less constants, sum of `tokens`)."""
  def live(z):
    return {**columns, **vocab.from_logits(z, columns["tokens"], objective.statistics)}

  scored = objective.score(live(logits))
  constants = sum(entry.beta * scored[f"rest{j}"] for j, entry in enumerate(objective.penalties)
                  if entry.outer is not None)
  loss = lambda z: objective.loss(live(z), scored)[0]
  tokens = lambda z: sum(x.sum() for x in objective.tokens(live(z), scored).values())
  return (jax.grad(loss)(logits), jax.grad(tokens)(logits), loss(logits) - constants,
          tokens(logits))


@pytest.mark.parametrize("fn", probe.functions(), ids=probe.label)
def test_tokens_add_up_to_the_loss_of_every_method(fn):
  columns, logits = probe.batch(fn)
  objective = probe.objective(fn)
  known = {**columns}
  control = {k: v for k, v in known.items() if np.ndim(v) == 0}
  batch = Batch(**{k: v for k, v in known.items() if k in Batch.__dataclass_fields__})
  batch = objective.prepare(
      batch.replace(**{k: v for k, v in known.items()
                       if k in objective.extra and np.ndim(v) > 0}), control)
  assert all(isinstance(entry, Penalty) for entry in objective.penalties)
  of_loss, of_tokens, loss, tokens = both_gradients(
      objective, {**batch.columns(), **control}, jnp.asarray(logits))
  scale = np.abs(of_loss).max()
  np.testing.assert_allclose(of_tokens, of_loss, atol=2e-6 * scale)
  assert float(tokens) == pytest.approx(float(loss), rel=1e-5, abs=1e-6)
