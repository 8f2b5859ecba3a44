"""Sampling: keys, truncation, agreement with the trainer, and independence of what else runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import sharding, vocab
from entrolab.keys import row_keys
from entrolab.models import tiny, transformer
from entrolab.rollout import compilations, decode, draw
from entrolab.rollout.engine import Engine, refilled, with_signal
from entrolab.rollout.strategy import Prompted, Request, Sampling
from entrolab.tasks import prompts
from entrolab.tasks.countdown import Countdown
from entrolab.verify import math

SAMPLES, MAX_TOKENS = 4, 18


@pytest.fixture(scope="module")
def lab():
  return tiny.load()


@pytest.fixture(scope="module")
def examples():
  return [Countdown().examples("eval", 5)[i] for i in range(16)]


def run(lab, examples, *, length=10, max_tokens=MAX_TOKENS, step=0, samples=SAMPLES, **options):
  config, params, tokenizer = lab
  task = Countdown()
  prompt, mask = prompts.padded([task.prompt(e, tokenizer) for e in examples], length, 0)
  ids = jnp.asarray([e.id for e in examples], jnp.int32)
  keys = row_keys(jax.random.key(7), step, ids, samples)
  decoding = decode.Decoding.of(stop_ids=[3], **options)
  out = decode.sample(config, params, prompt, mask, keys, decoding, samples=samples,
                      max_tokens=max_tokens)
  return prompt, mask, out


def rows(out, prompts, samples=SAMPLES, max_tokens=MAX_TOKENS):
  at = np.concatenate([np.arange(p * samples, (p + 1) * samples) for p in prompts])
  return np.where(out.mask, out.tokens, 0)[at, :max_tokens]


def test_tokens_do_not_depend_on_what_else_is_in_the_batch(lab, examples):
  whole = run(lab, examples)[2]
  for chosen in ([3], [9, 2, 15], list(range(15, -1, -1))):
    part = run(lab, [examples[i] for i in chosen])[2]
    np.testing.assert_array_equal(rows(part, range(len(chosen))), rows(whole, chosen))


def test_tokens_do_not_depend_on_padding_or_limit(lab, examples):
  whole = run(lab, examples)[2]
  np.testing.assert_array_equal(rows(run(lab, examples, length=23)[2], range(16)),
                                rows(whole, range(16)))
  short = run(lab, examples, max_tokens=9)[2]
  np.testing.assert_array_equal(rows(short, range(16), max_tokens=9),
                                rows(whole, range(16), max_tokens=9))


def test_other_steps_and_samples_draw_other_tokens(lab, examples):
  first, second = (rows(run(lab, examples, step=s)[2], range(16)) for s in (0, 1))
  assert (first != second).any(1).mean() > 0.5
  groups = first.reshape(16, SAMPLES, -1)
  assert np.mean([len({r.tobytes() for r in g}) for g in groups]) > 2.0


def test_trainer_and_sampler_agree(lab, examples):
  config, params, _ = lab
  prompt, mask, out = run(lab, examples)
  spread = lambda x: jnp.repeat(jnp.asarray(x), SAMPLES, 0)
  tokens = jnp.concatenate([spread(prompt), out.tokens], 1)
  valid = jnp.concatenate([spread(mask), out.mask], 1)
  positions = jnp.maximum(jnp.cumsum(valid, 1) - 1, 0).astype(jnp.int32)
  hidden = transformer.hidden_states(config, params, tokens, positions, valid.astype(jnp.int32))
  hidden = hidden[:, prompt.shape[1] - 1:-1]
  live = vocab.fused(hidden, transformer.head_matrix(params), out.tokens, vocab.Spec())
  on = np.asarray(out.mask)
  for name in ("logp", "entropy"):
    gap = np.abs(np.asarray(live[name]) - np.asarray(getattr(out, name)))[on]
    assert gap.max() < 1e-4, name
  np.testing.assert_array_equal(np.asarray(out.logp)[on], np.asarray(out.sampled_logp)[on])


def test_a_row_ends_with_its_stop_token(lab, examples):
  out = run(lab, examples)[2]
  tokens, on, done = map(np.asarray, (out.tokens, out.mask, out.finished))
  assert done.mean() > 0.8 and int(out.steps) <= MAX_TOKENS
  for row, mask, finished in zip(tokens, on, done, strict=True):
    length = int(mask.sum())
    assert mask[:length].all() and not mask[length:].any()
    assert (3 in row[:length]) == finished
    assert not finished or row[length - 1] == 3
    assert (row[length:] == 0).all()


def test_draws_follow_the_distribution_and_its_truncation():
  """80,000 draws against exact probabilities: within 4.5 standard errors each."""
  count = 80_000
  logits = jnp.log(jnp.asarray([0.4, 0.05, 0.3, 0.0, 0.15, 0.1]))
  u = (jnp.arange(count, dtype=jnp.float32) + jax.random.uniform(jax.random.key(0))) / count
  spread = lambda x, kind: jnp.full(count, x, kind)
  for top_p, top_k, kept in ((1.0, 0, [0, 1, 2, 4, 5]), (0.65, 0, [0, 2]), (0.71, 0, [0, 2, 4]),
                             (1.0, 3, [0, 2, 4]), (0.5, 1, [0])):
    got = draw.draw(jnp.broadcast_to(logits, (count, 6)), u, spread(1.0, jnp.float32),
                    spread(top_p, jnp.float32), spread(top_k, jnp.int32))
    p = np.zeros(6)
    p[kept] = np.exp(np.asarray(logits))[kept]
    p /= p.sum()
    share = np.bincount(np.asarray(got.token), minlength=6) / count
    assert (np.abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / count) + 1e-4).all(), (top_p, top_k)
    h = -sum(x * np.log(x) for x in p if x)
    np.testing.assert_allclose(got.sampled_entropy[0], h, atol=1e-5)
    np.testing.assert_allclose(got.sampled_logp, np.log(p)[np.asarray(got.token)], atol=1e-5)
    np.testing.assert_allclose(got.entropy[0], 1.3916, atol=1e-3)  # of the untruncated one, always


def test_greedy_takes_the_lowest_of_equal_maxima():
  logits = jnp.asarray([[0.0, 2.0, 2.0, 1.0]])
  one = lambda x, kind: jnp.asarray([x], kind)
  got = draw.draw(logits, one(0.9, jnp.float32), one(0.0, jnp.float32), one(1.0, jnp.float32),
                  one(0, jnp.int32))
  assert int(got.token[0]) == 1 and float(got.sampled_logp[0]) == 0.0


def test_other_temperatures_do_not_recompile(lab, examples):
  run(lab, examples)
  before = compilations.total()
  for temperature, top_p, top_k in ((0.0, 1.0, 0), (0.7, 0.9, 0), (1.3, 1.0, 5)):
    run(lab, examples, temperature=temperature, top_p=top_p, top_k=top_k)
  assert compilations.total() == before > 0


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_every_mesh_samples_the_same(lab, examples, shape):
  config, params, tokenizer = lab
  params = jax.tree.map(jnp.asarray, params)
  make = lambda mesh: Engine(config, tokenizer, Countdown(), mesh)
  sampling = Sampling(samples=SAMPLES, max_tokens=MAX_TOKENS)
  single = sharding.make_mesh(1, 1, 1)
  one = make(single).rollout(params, examples, jax.random.key(0), 3, sampling)
  mesh = sharding.make_mesh(*shape)
  many = make(mesh).rollout(params, examples, jax.random.key(0), 3, sampling)
  assert many.texts == one.texts
  assert [v.status for v in many.verdicts] == [v.status for v in one.verdicts]


def test_refills_replace_groups_without_a_signal(lab, examples):
  config, params, tokenizer = lab
  mesh = sharding.make_mesh(1, 1, 1)
  engine = Engine(config, tokenizer, Countdown(), mesh)
  task, drawn = Countdown(), []

  def fresh():
    at = 8 * len(drawn)
    drawn.append([task.examples("train", 0)[at + i] for i in range(8)])
    return drawn[-1]

  def drawn_with(refills):
    sampling = Sampling(samples=4, max_tokens=MAX_TOKENS, refills=refills)
    request = Request(params, fresh, jax.random.key(0), 0, {}, sampling)
    return refilled(lambda chosen: engine.rollout(params, chosen, request.key, 0, sampling),
                    request)

  got = drawn_with(refills=5)
  assert with_signal(got, 4).all() and got.refills == len(drawn) - 1 >= 1
  assert got.batch.tokens.shape[0] == 32 and got.sampled == 32 * len(drawn)
  np.testing.assert_array_equal(got.batch.group, np.repeat(np.arange(8), 4))
  texts = [tokenizer.decode(t[m].tolist()) for t, m in
           zip(np.asarray(got.batch.tokens), np.asarray(got.batch.mask), strict=True)]
  assert texts == got.texts
  assert task.verify(texts, got.examples) == got.verdicts
  drawn.clear()
  none = drawn_with(refills=0)
  assert none.refills == 0 and not with_signal(none, 4).all()


class Thinking:
  """A tokenizer of three tokens, whose prompts end in an open block of reasoning."""
  words = {1: "What is 6 * 7?", 2: "<think>\n", 3: r"\boxed{42} hm", 4: r"</think>\boxed{42}"}

  def decode(self, ids):
    return "".join(self.words[int(at)] for at in ids)


def test_texts_begin_with_what_their_prompt_has_opened(lab, examples):
  config, _, tokenizer = lab
  engine = Engine(config, tokenizer, Countdown(), sharding.make_mesh(1, 1, 1))
  engine.tokenizer = Thinking()  # pyright: ignore
  on = jnp.ones((2, 2), bool)
  prompted = Prompted(examples[:2], jnp.asarray([[1, 2], [2, 1]]), on, jnp.arange(2))
  tokens = jnp.asarray([[3, 4], [3, 3], [3, 4], [3, 3]])
  samples = decode.Samples(tokens, jnp.asarray([[1, 1], [1, 0]] * 2, bool), jnp.ones(4, bool),
                           steps=2)
  texts = engine.texts(samples, prompted)
  assert [text.startswith("<think>") for text in texts] == [True, True, False, False]
  verdicts = math.verify(texts, ["42"] * 4)
  assert [verdict.status for verdict in verdicts] == ["right", "wrong", "right", "right"]
