"""Trees of episodes: laws of branches, and claims."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import config, sharding, vocab
from entrolab.methods import aepo_agentic, bonus, grpo, ppo
from entrolab.methods.aepo_agentic import Branching, arpo_test
from entrolab.models import transformer
from entrolab.objective import Objective, Penalty, term
from entrolab.rollout import agentic, compilations
from entrolab.rollout.multiturn import MultiTurn
from entrolab.rollout.strategy import Request, Sampling
from entrolab.trainer import loop
from tests.multiturn_test import EXAMPLES, Random, Walk

T, N, KEY, WALK = 44, 8, jax.random.key(7), Walk()
RULE = Branching(samples=N, beam=3, probability=0.75, weight=0.4, penalty=0.1, calls=5,
                 scope="own")
TREE = agentic.Agentic(turns=6, action=4, rule=RULE, initial=2)


@pytest.mark.parametrize("size", [2, 6, 10, 11, 64])
def test_the_entropy_of_a_token_counts_the_ten_likeliest(size):
  rng = np.random.default_rng(size)
  logits = rng.normal(size=(4, size)).astype(np.float32) * 3
  p = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum(1, keepdims=True)
  best = np.sort(p, 1)[:, ::-1][:, :10].astype(np.float64)
  want = -(best * np.log(best)).sum(1) / np.log(size)
  np.testing.assert_allclose(agentic.token_entropy(jnp.asarray(logits), jnp.float32(0.7)), want,
                             rtol=1e-5, atol=1e-6)
  greedy, one = (agentic.token_entropy(jnp.asarray(logits), jnp.float32(x)) for x in (0.0, 1.0))
  np.testing.assert_array_equal(greedy, one)


def test_numbers_that_do_not_fit_are_named():
  for bad in (dict(turns=5), dict(chunk=2), dict(initial=N + 1), dict(initial=-1)):
    with pytest.raises(ValueError, match=r"turns = rule.calls \+ 1, chunk = 0, initial from 0"):
      dataclasses.replace(TREE, **bad)
  with pytest.raises(ValueError, match=r"samples=4, but the rule fills groups of 8"):
    run(samples=4)
  with pytest.raises(ValueError, match="choices: 'prompt', 'own', 'path'"):
    Branching(scope="row")


@functools.cache
def lab():
  made, params, words = Random().load()
  return made, jax.tree.map(jnp.asarray, params), words


@functools.cache
def engine(strategy=TREE, shape=(1, 1, 1), task=WALK):
  made, _, words = lab()
  return strategy.engine(made, words, task, sharding.make_mesh(*shape), ())


def run(strategy=TREE, examples=tuple(EXAMPLES), *, shape=(1, 1, 1), task=WALK, **sampling):
  fresh = examples if callable(examples) else lambda: list(examples)
  sampling = Sampling(**{"samples": strategy.rule.samples, "max_tokens": T, **sampling})
  return strategy(engine(strategy, shape, task), Request(lab()[1], fresh, KEY, 0, {}, sampling))


complete = functools.cache(run)


@pytest.fixture(scope="module")
def whole():
  return complete()


def columns(got):
  return {name: np.asarray(x) for name, x in got.batch.columns().items()}


def same(got, want, prompts=range(8), length=T):
  """Rows, verdicts and families of `got` are those of the chosen prompts of `want`."""
  a, b = columns(got), columns(want)
  at = np.concatenate([np.arange(p * N, (p + 1) * N) for p in prompts])
  for name in ("tokens", "mask", "present", "phase"):
    np.testing.assert_array_equal(a[name][:, :length], b[name][at][:, :length], err_msg=name)
  for name in ("row", "finished", "verdict", "row_kind", "parent", "branch"):
    np.testing.assert_array_equal(a[name], b[name][at], err_msg=name)
  np.testing.assert_allclose(a["old_logp"][:, :length], b["old_logp"][at][:, :length], atol=1e-5)


@pytest.mark.slow
def test_it_is_a_mixed_batch(whole):
  """What the laws are proven on: copies of copies, starts amid them, all rows filled."""
  c = columns(whole)
  kind, parent = (c[name].reshape(8, N) for name in ("row_kind", "parent"))
  assert len(whole.texts) == 8 * N == whole.sampled and (c["mask"].sum(1) > 0).all()
  assert whole.counts["branches"] == kind.sum() > 12
  of_copies = np.take_along_axis(kind, parent, 1)[kind == 1]
  assert of_copies.any() and not of_copies.all()
  late = [(k == 0)[2:].any() and (k == 1).any() for k in kind]
  assert any(late) and 8 * 2 == whole.counts["initial"]
  pairs = {(p, parent[p, g]) for p, g in np.argwhere(kind == 1)}
  assert whole.counts["sources"] == len(pairs) < kind.sum()
  assert (parent[kind == 0] == np.argwhere(kind == 0)[:, 1]).all() and (c["branch"][
      c["row_kind"] == 0] == 0).all()
  assert {v.status for v in whole.verdicts} == {"right", "wrong"}


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [[3], [5, 2], list(range(7, -1, -1))], ids=str)
@pytest.mark.parametrize("strategy", [
    TREE, dataclasses.replace(TREE, initial=0),
    dataclasses.replace(TREE, rule=dataclasses.replace(RULE, scope="path")),
    dataclasses.replace(TREE, rule=dataclasses.replace(RULE, test=arpo_test))],
    ids=["own", "budget", "path", "arpo"])
def test_branches_do_not_depend_on_what_else_is_in_the_batch(strategy, chosen):
  same(run(strategy, [EXAMPLES[i] for i in chosen]), complete(strategy), chosen)


@pytest.mark.slow
def test_branches_do_not_depend_on_room_or_padding(whole):
  same(run(max_tokens=T + 9), whole)
  wider = run(task=Walk(max_prompt=7))
  assert wider.batch.prompt.shape[1] == 7 != whole.batch.prompt.shape[1]
  same(wider, whole)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1, 1), (8, 1, 1), (2, 2, 2)], ids=str)
def test_every_mesh_grows_the_same_trees(whole, shape):
  many = run(shape=shape)
  same(many, whole)
  assert many.texts == whole.texts and many.counts == whole.counts


@pytest.mark.slow
def test_without_branches_they_are_plain_episodes(whole):
  """Where m = n; and the starts of a tree are the first episodes of the same prompts."""
  alone = MultiTurn(turns=6, action=4).engine(*lab()[::2], WALK, sharding.make_mesh(1, 1, 1), ())
  want = columns(alone.rollout(lab()[1], list(EXAMPLES), KEY, 0,
                               Sampling(samples=N, max_tokens=T)))
  full = run(dataclasses.replace(TREE, initial=N))
  assert full.counts["branches"] == full.counts["reused_tokens"] == 0
  for name in ("tokens", "mask", "present", "phase", "row", "verdict"):
    np.testing.assert_array_equal(columns(full)[name], want[name], err_msg=name)
  c = columns(whole)
  for p in range(8):
    starts = p * N + np.flatnonzero(c["row_kind"].reshape(8, N)[p] == 0)
    np.testing.assert_array_equal(c["tokens"][starts], want["tokens"][p * N:][:len(starts)])


@pytest.mark.slow
def test_a_branch_has_its_parent_s_prefix_and_other_tokens_after_it(whole):
  c = columns(whole)
  branches = np.flatnonzero(c["row_kind"])
  of = branches // N * N + c["parent"][branches]
  differ = 0
  for row, parent in zip(branches, of, strict=True):
    cut = c["branch"][row]
    for name in ("tokens", "mask", "present", "phase", "old_logp", "old_entropy", "sampled_logp"):
      np.testing.assert_array_equal(c[name][row, :cut], c[name][parent, :cut], err_msg=name)
    assert c["present"][row, cut - 1] and not c["mask"][row, cut - 1]  # cut after the tool
    assert c["mask"][row, cut]
    differ += (c["tokens"][row, cut:] != c["tokens"][parent, cut:]).any()
  assert differ > 0.9 * len(branches) and len(np.unique(c["row"], axis=0)) == 8 * N


def states(batch):
  made, params, _ = lab()
  tokens = jnp.concatenate([batch.prompt, batch.tokens], 1)
  valid = jnp.concatenate([batch.prompt_mask, batch.present], 1)
  positions = jnp.maximum(jnp.cumsum(valid, 1) - 1, 0).astype(jnp.int32)
  hidden = transformer.hidden_states(made, params, tokens, positions, valid.astype(jnp.int32))
  return hidden[:, batch.prompt.shape[1] - 1:-1]


@pytest.mark.slow
def test_the_trainer_agrees_with_rows_that_went_on_from_a_copied_cache(whole):
  batch = whole.batch
  live = vocab.fused(states(batch), transformer.head_matrix(lab()[1]), batch.tokens, vocab.Spec())
  on = np.asarray(batch.mask)
  for name, column in (("logp", batch.old_logp), ("entropy", batch.old_entropy)):
    np.testing.assert_allclose(np.asarray(live[name])[on], np.asarray(column)[on], atol=1e-4)


@pytest.mark.slow
def test_entropies_of_segments_are_the_note_s(monkeypatch, whole):
  """What the rule got, against the forward pass of the trainer over the finished rows."""
  found, draw = {}, agentic.TreeEpisodes.draw

  def spied(self, rows):
    turns = {row: len(self.episodes[row].actions) for row in rows}
    out = draw(self, rows)
    found.update({(row, turns[row]): h for row, h in zip(rows, out.entropy, strict=True)})
    return out

  monkeypatch.setattr(agentic.TreeEpisodes, "draw", spied)
  same(run(), whole)
  logits = states(whole.batch) @ transformer.head_matrix(lab()[1]).T
  top = jax.lax.top_k(jax.nn.log_softmax(logits), 10)[0]
  c = columns(whole)
  for (row, turn), h in found.items():
    own = c["mask"][row] & (c["phase"][row] == turn)
    want = aepo_agentic.segment_entropy(top[row][own][None], jnp.asarray([own.sum()]),
                                        vocab=logits.shape[-1])
    np.testing.assert_allclose(h, want[0], atol=1e-4)
  assert len(found) > 8 * N


@pytest.mark.slow
def test_no_token_goes_through_the_model_twice(monkeypatch, whole):
  """Every call of the decoder while the program is built, and every real token it is given."""
  calls, extend = [], transformer.extend

  def counted(config, params, tokens, *rest):
    calls.append(tokens.shape)
    return extend(config, params, tokens, *rest)

  monkeypatch.setattr(transformer, "extend", counted)
  chosen = (6, 1, 4)
  got = run(examples=[EXAMPLES[i] for i in chosen], max_tokens=T + 1)  # a shape of its own
  same(got, whole, chosen)
  assert sorted(set(calls)) == [(3, 4), (3 * N, 1), (3 * N, 3)]  # prompts; tokens; observations
  c = columns(got)
  own = np.arange(T + 1)[None] >= c["branch"][:, None]
  prompts = c["prompt_mask"].sum(1)
  seen = (own & c["present"] & ~c["mask"]).sum()
  assert got.counts["prefill_tokens"] == prompts[::N].sum() + seen
  assert got.counts["generated_tokens"] == (own & c["mask"]).sum() < c["mask"].sum()
  assert got.counts["reused_tokens"] == (prompts + c["branch"])[c["row_kind"] == 1].sum() > 0
  assert got.counts["probe_tokens"] == 0


@pytest.mark.slow
def test_samples_for_a_budget_are_thrown_away_and_counted(whole):
  """With the budget that it comes to, a fixed one grows the same rows."""
  one = EXAMPLES[:1]
  got = run(dataclasses.replace(TREE, initial=0), one)
  m = got.counts["initial"]
  fixed = run(dataclasses.replace(TREE, initial=m), one)
  same(got, fixed, [0])
  assert 0 < got.counts["probe_tokens"] == (
      got.counts["generated_tokens"] - fixed.counts["generated_tokens"])


@pytest.mark.slow
def test_observations_have_exactly_zero_gradient(whole):
  objective = Objective(
      reward=term(grpo.outcome), surrogate=term(aepo_agentic.balanced_clip),
      advantage=(term(grpo.group_advantage, size=N), term(aepo_agentic.entropy_aware)),
      penalties=(Penalty(0.01, term(bonus.negative_entropy)),))
  batch = objective.prepare(whole.batch, {})
  logits = states(batch) @ transformer.head_matrix(lab()[1]).T

  def loss(logits):
    live = vocab.from_logits(logits, batch.tokens, objective.statistics)
    return objective.loss({**batch.columns(), **live})[0]

  grads = np.abs(np.asarray(jax.grad(loss)(logits))).max(-1)
  on, there = np.asarray(batch.mask), np.asarray(batch.present)
  assert (grads[~on] == 0.0).all() and (there & ~on).sum() > 50
  assert (grads[on] > 0.0).mean() > 0.99


@pytest.mark.slow
def test_refills_keep_trees_together():
  drawn = []

  def fresh():
    drawn.append([WALK.examples("train", 0)[8 * len(drawn) + i] for i in range(8)])
    return drawn[-1]

  got = run(examples=fresh, refills=3)
  c = columns(got)
  assert got.refills == len(drawn) - 1 >= 1 and got.sampled == 8 * N * len(drawn)
  rows = np.flatnonzero(c["row_kind"])
  of = rows // N * N + c["parent"][rows]
  for row, parent in zip(rows, of, strict=True):
    cut = c["branch"][row]
    np.testing.assert_array_equal(c["tokens"][row, :cut], c["tokens"][parent, :cut])
  assert [v.status for v in WALK.verify(got.texts, got.examples)] == [
      v.status for v in got.verdicts]


@pytest.mark.slow
def test_another_temperature_does_not_recompile(whole):
  before = compilations.total()
  run(temperature=0.7)
  assert compilations.total() == before


@pytest.fixture(scope="module")
def problems():
  """The recipe on one device, with more and larger updates, so that ratios leave their bounds."""
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield loop.Lab(config.load("experiments/aepo_agentic.py", (
        "mesh.data=1", "training.updates=4", "training.lr=1e-3")))


def silent(lab, state, batch):
  """Shares of tokens without a gradient under the balanced clip and under that of PPO, of those
  whose advantage is not 0; once the policy has moved."""
  now = lab.learner.forward(state.params, batch, ("logp",))["logp"]
  shares = []
  for form in (aepo_agentic.balanced_clip, ppo.clipped_ratio):
    grad = jax.grad(lambda logp, f=form: f(logp, batch.old_logp, batch.adv, dual=3.0).sum())(now)
    on = batch.mask & (batch.adv != 0.0)
    shares.append(float((on & (grad == 0.0)).sum() / on.sum()))
  return shares


def branching(lab, seed, penalty):
  """[sources, branches] of trees of 16 from 4 starts, for 32 examples."""
  strategy, task = lab.experiment.rollout, lab.experiment.task
  rule = dataclasses.replace(strategy.rule, samples=16, penalty=penalty)
  tree, total = dataclasses.replace(strategy, rule=rule, initial=4), np.zeros(2, int)
  for step in range(2):
    drawn = [task.examples("train", 9 + seed)[16 * step + i] for i in range(16)]
    got = tree(lab.engine, Request(
        lab.learner.serve(lab.params), lambda drawn=drawn: drawn, jax.random.key(seed), step, {},
        Sampling(samples=16, max_tokens=56)))
    assert got.counts["initial"] == 64 and len(got.texts) == 256 and all(got.texts)
    total += got.counts["sources"], got.counts["branches"]
  return total.tolist()


@pytest.mark.slow
def test_sources_of_branches_with_the_penalty_and_without(problems, capsys):
  """The paper's first claim, at equal n and three seeds: printed whatever the figures are."""
  rows = {penalty: [branching(problems, seed, penalty) for seed in range(3)]
          for penalty in (0.3, 0.05, 0.0)}
  with capsys.disabled():
    print(f"\n[sources, branches] of 512 episodes by penalty, three seeds: {rows}")


@pytest.mark.slow
def test_budgets_and_tokens_without_a_gradient(problems, tmp_path, monkeypatch, capsys):
  """Further claims, three seeds: m grows with H_root - H_avg, all rows are filled, and fewer
  tokens are without a gradient under the balanced clip, after eight steps."""
  gaps, ms, budget, rows = [], [], aepo_agentic.budget, []

  def spied(root, calls, **knobs):
    gaps.extend(root - calls)
    ms.extend(budget(root, calls, **knobs))
    return budget(root, calls, **knobs)

  monkeypatch.setattr(aepo_agentic, "budget", spied)
  for seed in range(3):
    state, problems.key = problems.learner.init(problems.params), jax.random.key(seed)
    for step in range(8):
      state, got, _ = loop.train_step(problems, state, step, tmp_path)
      assert len(got.texts) == 128 and all(got.texts)
    rows.append(silent(problems, state, got.batch))
  with capsys.disabled():
    print(f"\nwithout a gradient, balanced and PPO: {np.round(rows, 4).tolist()}; m for {len(ms)} "
          f"prompts, counted from 0: {np.bincount(ms).tolist()}; gaps of "
          f"{np.round(np.percentile(gaps, [0, 50, 100]), 3)}")
  assert (np.diff(np.asarray(ms)[np.argsort(gaps, kind="stable")]) >= 0).all()
  assert all(balanced <= ppos for balanced, ppos in rows)
