"""Branches: the same by key whatever else runs, on the parent's cache, with its log-probs."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import sharding, vocab
from entrolab.methods import cure, ppo
from entrolab.models import tiny, transformer
from entrolab.rollout import branch, decode
from entrolab.rollout.engine import Engine, with_signal
from entrolab.rollout.strategy import Request, Sampling
from entrolab.tasks.countdown import Countdown

pytestmark = pytest.mark.slow  # minutes on two cores

MAX_TOKENS, KEY = 18, jax.random.key(7)
TREE = branch.Cure(2, 2, most=4, verify="whole", admissible=branch.visible)
EVERYTHING = dict(temperature=1.0, top_p=1.0, top_k=0)


@pytest.fixture(scope="module")
def lab():
  config, params, tokenizer = tiny.load()
  return config, jax.tree.map(jnp.asarray, params), tokenizer


@pytest.fixture(scope="module")
def examples():
  return [Countdown().examples("eval", 5)[i] for i in range(8)]


def grow(lab, examples, tree=TREE, *, mesh=(1, 1, 1), task=None, **sampling):
  config, params, tokenizer = lab
  engine = Engine(config, tokenizer, task or Countdown(), sharding.make_mesh(*mesh))
  sampling = Sampling(**{"samples": tree.samples, "max_tokens": MAX_TOKENS, **sampling})
  fresh = examples if callable(examples) else lambda: examples
  return tree(engine, Request(params, fresh, KEY, 0, {}, sampling))


@pytest.fixture(scope="module")
def whole(lab, examples):
  return grow(lab, examples)


def columns(got):
  return {name: np.asarray(x) for name, x in got.batch.columns().items()}


def responses(got, prompts: Sequence[int] = range(8)):
  """[prompts, G, T] tokens of the responses, and [prompts, G] where they were cut."""
  c = columns(got)
  tokens = np.where(c["mask"], c["tokens"], 0).reshape(-1, TREE.samples, MAX_TOKENS)
  return tokens[list(prompts)], c["branch"].reshape(-1, TREE.samples)[list(prompts)]


def same(got, want, chosen: Sequence[int] = range(8)):
  """Tokens and cuts of `got` are those of the chosen prompts of `want`."""
  for a, b in zip(responses(got, range(len(chosen))), responses(want, chosen), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_branch_does_not_depend_on_the_order_of_the_batch(lab, examples, whole):
  same(grow(lab, examples[::-1]), whole, range(7, -1, -1))


def test_a_branch_does_not_depend_on_padding(lab, examples, whole):
  roomy, task = dataclasses.replace(TREE, room=30), Countdown(max_prompt=23)
  wider = grow(lab, examples, roomy, task=task)
  assert wider.batch.prompt.shape[1] == 53 != whole.batch.prompt.shape[1]
  same(wider, whole)


@pytest.mark.parametrize("mesh", [(8, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_every_mesh_grows_the_same_branches(lab, examples, whole, mesh):
  got = grow(lab, examples, mesh=mesh)
  same(got, whole)
  assert got.texts == whole.texts and got.verdicts == whole.verdicts
  assert got.batch.extra["branch"].sharding == got.batch.tokens.sharding


def test_more_originals_or_branches_leave_the_others_as_they_are(lab, examples, whole):
  """The key of a row names its sample and its branch, not its place in a group."""
  more = columns(grow(lab, examples, dataclasses.replace(TREE, originals=3, branches=3)))
  tokens = np.where(more["mask"], more["tokens"], 0).reshape(8, 12, MAX_TOKENS)
  ours = responses(whole)[0]
  np.testing.assert_array_equal(tokens[:, :2], ours[:, :2])
  np.testing.assert_array_equal(tokens[:, [3, 4, 6, 7]], ours[:, 2:])


def test_branches_draw_other_tokens(whole):
  rows = responses(whole)[0]
  siblings = rows[:, 2:].reshape(8, 2, 2, MAX_TOKENS)
  assert (siblings[:, :, 0] != siblings[:, :, 1]).any(-1).mean() > 0.5
  keys = columns(whole)["row"]
  assert len(np.unique(keys, axis=0)) == len(keys)


@functools.partial(jax.jit, static_argnums=0)
def score(config, params, prompt, prompt_mask, tokens, mask):
  """logp and entropy [B, T] by the trainer's forward pass over whole rows."""
  both, valid = (jnp.concatenate(pair, 1) for pair in ((prompt, tokens), (prompt_mask, mask)))
  positions = jnp.maximum(jnp.cumsum(valid, 1) - 1, 0).astype(jnp.int32)
  hidden = transformer.hidden_states(config, params, both, positions, valid.astype(jnp.int32))
  return vocab.fused(hidden[:, prompt.shape[1] - 1:-1], transformer.head_matrix(params), tokens,
                     vocab.Spec())


def test_the_prefix_has_the_log_probs_of_its_parent(lab, whole):
  """Prefix and continuation as one response to the bare prompt, against both rows of the batch."""
  c, b = columns(whole), whole.batch
  rows = np.arange(len(c["tokens"]))
  of = rows // TREE.samples * TREE.samples + c["parent"]
  width = 2 * MAX_TOKENS
  tokens, on = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
  for row in rows:
    cut, own = c["branch"][row], c["tokens"][row][c["mask"][row]]
    line = np.concatenate([c["tokens"][of[row]][:cut], own])
    tokens[row, :len(line)], on[row, :len(line)] = line, True
  found = lambda *rows: jax.tree.map(np.asarray, score(lab[0], lab[1], *rows))
  joined = found(b.prompt[of], b.prompt_mask[of], tokens, on)
  split = found(b.prompt, b.prompt_mask, b.tokens, b.mask)
  compared = 0
  for row in np.flatnonzero(c["row_kind"]):
    cut, count = c["branch"][row], c["mask"][row].sum()
    compared += cut
    for name, sampled in (("logp", "old_logp"), ("entropy", "old_entropy")):
      got, parent = joined[name][row], c[sampled][of[row]]
      np.testing.assert_allclose(got[:cut], split[name][of[row]][:cut], atol=1e-5)
      np.testing.assert_allclose(got[:cut], parent[:cut], atol=2e-5)
      np.testing.assert_allclose(got[cut:cut + count], split[name][row][:count], atol=1e-5)
      np.testing.assert_allclose(got[cut:cut + count], c[sampled][row][:count], atol=2e-5)
  assert compared > 100


def test_a_prefix_counted_once_is_its_copies_with_weights_that_add_up_to_one(lab, whole):
  """The gradient of the tree's rows, against rows that repeat their parent's prefix at 1 / k each.

  k: rows of the family that hold the token, counted one by one. Parameters are not those that
  sampled, so that ratios are not 1.
  """
  c, b, (config, params, _) = columns(whole), whole.batch, lab
  moved = jax.tree.map(lambda x: x * 1.01, params)
  rng, rows = np.random.default_rng(0), np.arange(48)
  of, width = rows // 6 * 6 + c["parent"], 2 * MAX_TOKENS
  one = np.repeat(rng.normal(size=(48, 1)), width, 1).astype(np.float32)  # A of every row
  tokens, on, weight = (np.zeros((48, width), kind) for kind in (np.int32, bool, np.float32))
  old = np.zeros((48, width), np.float32)
  for row in rows:
    cut, own = c["branch"][row], c["mask"][row]
    join = lambda name, r=row, n=cut, m=own: np.concatenate(
        [c[name][of[r]][:n], c[name][r][m]])
    count = cut + own.sum()
    tokens[row, :count], old[row, :count] = join("tokens"), join("old_logp")
    on[row, :count] = True
    family = np.flatnonzero((of == of[row]) & (c["row_kind"] == 1))
    for t in range(count):
      mine = c["row_kind"][row] == 0 or t < cut
      weight[row, t] = 1.0 / (1 + (c["branch"][family] > t).sum()) if mine else 1.0

  def gradient(prompt, prompt_mask, tokens, mask, old, adv, weight):
    def loss(p):
      logp = score(config, p, prompt, prompt_mask, tokens, mask)["logp"]
      return jnp.where(mask, weight * ppo.plain_ratio(logp, old, adv), 0.0).sum()
    return jax.value_and_grad(loss)(moved)

  a, copies = gradient(b.prompt[of], b.prompt_mask[of], *map(jnp.asarray, (
      tokens, on, old, one, weight)))
  family = cure.family_advantage(jnp.asarray(one[:, :MAX_TOKENS]), b.mask, *(
      b.extra[name] for name in ("row_kind", "parent", "branch")), size=6)
  assert (np.asarray(family) != one[:, :MAX_TOKENS])[c["mask"]].mean() > 0.05
  z, tree = gradient(b.prompt, b.prompt_mask, b.tokens, b.mask, b.old_logp, family,
                     jnp.ones((), jnp.float32))
  np.testing.assert_allclose(a, z, rtol=1e-5)
  scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree))
  for x, y in zip(jax.tree.leaves(copies), jax.tree.leaves(tree), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5 * scale)


def test_going_on_from_the_cache_equals_prefilling_the_prefix(lab, whole):
  config, params, tokenizer = lab
  c = columns(whole)
  more = np.flatnonzero(c["row_kind"])
  keys = jax.random.wrap_key_data(jnp.asarray(c["row"][more]))
  got = decode.sample(config, params, c["prompt"][more], c["prompt_mask"][more], keys,
                      decode.Decoding.of(stop_ids=[3]), samples=1, max_tokens=MAX_TOKENS)
  np.testing.assert_array_equal(got.mask, c["mask"][more])
  np.testing.assert_array_equal(got.tokens, c["tokens"][more])
  np.testing.assert_array_equal(got.finished, c["finished"][more])
  for name, column in (("logp", "old_logp"), ("entropy", "old_entropy"),
                       ("sampled_logp", "sampled_logp")):
    np.testing.assert_allclose(getattr(got, name), c[column][more], atol=1e-5)


def test_no_token_of_a_prefix_goes_through_the_model_twice(lab, examples, whole, monkeypatch):
  """Every call of the decoder while the programs are built: one over the prompts, then steps.

  The batch is a part of the other one, and its branches are those of it.
  """
  calls, extend = [], transformer.extend

  def counted(config, params, tokens, *rest):
    calls.append(tokens.shape)
    return extend(config, params, tokens, *rest)

  monkeypatch.setattr(transformer, "extend", counted)
  chosen = (6, 1, 4)
  got = grow(lab, [examples[i] for i in chosen])  # a shape of its own, hence traced here
  same(got, whole, chosen)
  assert [shape for shape in calls if shape[1] > 1] == [(3, 10)]
  assert {shape for shape in calls if shape[1] == 1} == {(6, 1), (12, 1)}
  c = columns(got)
  first = c["prompt_mask"][::TREE.samples].sum()
  assert got.counts["prefill_tokens"] == first
  context = c["prompt_mask"].sum(1)[c["row_kind"] == 1]
  assert got.counts["reused_tokens"] == context.sum() > 2 * first
  assert got.steps <= 2 * MAX_TOKENS


def test_cuts_obey_the_rule(lab, whole):
  """Position by position: one of the most uncertain admissible tokens, the start without any."""
  tokenizer = lab[2]
  c = columns(whole)
  texts = [tokenizer.decode([t]) for t in range(tokenizer.vocab_size)]
  allowed = branch.visible(texts, [tokenizer.pad_id, *tokenizer.stop_ids])
  assert allowed[tokenizer.encode("+")].all() and not allowed[list(tokenizer.stop_ids)].any()
  cuts = c["branch"].reshape(8, 6)
  np.testing.assert_array_equal(cuts[:, :2], 0)
  for group in range(8):
    for one in range(2):
      row = 6 * group + one
      own = cuts[group, [2 + 2 * one, 3 + 2 * one]]
      assert own[0] == own[1]  # the continuations of a response share its cut
      choices = cure.candidates(*(jnp.asarray(c[name][row:row + 1]) for name in
                                  ("old_entropy", "tokens", "mask")), jnp.asarray(allowed), most=4)
      assert own[0] in np.asarray(choices)[0]
      for twin in (6 * group + 2 + 2 * one, 6 * group + 3 + 2 * one):
        line = np.concatenate([c["prompt"][row][c["prompt_mask"][row]], c["tokens"][row][:own[0]]])
        np.testing.assert_array_equal(c["prompt"][twin][c["prompt_mask"][twin]], line)
  assert len(np.unique(cuts[:, 2:])) > 4


def test_what_the_verifier_sees(lab, examples, whole):
  task, c, tokenizer = Countdown(), columns(whole), lab[2]
  alone = grow(lab, examples, dataclasses.replace(TREE, verify="continuation"))
  same(alone, whole)
  right = {name: np.asarray([v.status == "right" for v in got.verdicts]).reshape(8, 6)
           for name, got in (("whole", whole), ("alone", alone))}
  np.testing.assert_array_equal(right["whole"][:, :2], right["alone"][:, :2])
  assert right["whole"][:, 2:].mean() > 0.25
  assert right["whole"][:, 2:].sum() > right["alone"][:, 2:].sum()
  of = np.arange(48) // 6 * 6 + c["parent"]
  for row in range(48):
    ids = [*c["tokens"][of[row]][:c["branch"][row]], *c["tokens"][row][c["mask"][row]]]
    assert whole.texts[row] == tokenizer.decode([int(i) for i in ids])
  assert task.verify(whole.texts, whole.examples) == whole.verdicts
  np.testing.assert_array_equal(c["verdict"] == 1, right["whole"].reshape(-1))


def test_a_prefix_that_does_not_fit_moves_its_cut(lab, examples, whole):
  free = responses(whole)[1]
  length = columns(whole)["prompt_mask"].sum(1).reshape(8, 6)[:, :1]
  room = 10 + 3 - length  # of the narrower prompt
  moved, skipped = np.minimum(free, room), np.where(free > room, 0, free)
  assert (moved != free).any() and (moved != skipped).any()
  for overflow, want in (("move", moved), ("skip", skipped)):
    got = grow(lab, examples, dataclasses.replace(TREE, room=3, overflow=overflow))
    np.testing.assert_array_equal(responses(got)[1], want)
    same_cut = (want == free)[:, 2:]
    np.testing.assert_array_equal(responses(got)[0][:, 2:][same_cut],
                                  responses(whole)[0][:, 2:][same_cut])


def test_cuts_at_random_are_other_cuts(lab, examples, whole):
  got = responses(grow(lab, examples, dataclasses.replace(TREE, choose="random")))
  np.testing.assert_array_equal(got[0][:, :2], responses(whole)[0][:, :2])
  assert (got[1] != responses(whole)[1])[:, 2:].mean() > 0.3


def test_refills_keep_families_together(lab, examples):
  drawn = []

  def fresh():
    at = 8 * len(drawn)
    drawn.append([Countdown().examples("train", 0)[at + i] for i in range(8)])
    return drawn[-1]

  got = grow(lab, fresh, refills=4)
  c, (kind, parent) = columns(got), cure.family(2, 2)
  assert got.refills == len(drawn) - 1 >= 1 and got.sampled == 48 * len(drawn)
  np.testing.assert_array_equal(c["row_kind"].reshape(8, 6), np.tile(kind, (8, 1)))
  np.testing.assert_array_equal(c["parent"].reshape(8, 6), np.tile(parent, (8, 1)))
  assert with_signal(got, 6).all()
  assert got.counts["prefill_tokens"] > c["prompt_mask"][::6].sum()
  assert Countdown().verify(got.texts, got.examples) == got.verdicts


def test_numbers_that_do_not_fit_are_named(lab, examples):
  with pytest.raises(ValueError, match=r"samples=8, but 2 originals with 2 branches each are .* 6"):
    grow(lab, examples, samples=8)
  with pytest.raises(ValueError, match="originals >= 1"):
    branch.Cure(originals=0)
  with pytest.raises(ValueError, match="choices: continuation, whole"):
    dataclasses.replace(TREE, verify="part")
