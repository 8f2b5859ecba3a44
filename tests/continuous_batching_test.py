"""Refilled slots: the responses of all rows at once, in fewer ticks, in one compilation."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import config, sharding
from entrolab.keys import row_keys
from entrolab.models import tiny
from entrolab.rollout import (
  branch,
  compilations,
  continuous_batching,
  decode,
  multiturn,
  plain,
  tempered,
)
from entrolab.rollout.engine import Engine
from entrolab.rollout.strategy import Request, Sampling, check
from entrolab.tasks import prompts
from entrolab.tasks.countdown import Countdown
from entrolab.trainer import explain, loop
from entrolab.trainer.learner import Learner

PROMPTS, SAMPLES, MAX_TOKENS = 4, 5, 18
ROWS = PROMPTS * SAMPLES
STATISTICS = ("logp", "entropy", "sampled_logp", "sampled_entropy")
MIXES = [[0, 1, 2, 3], [7, 7, 4, 12]]  # of prompts
SOME = [9, 10]  # the numbers 5 and 6 end a row: at 1 to 18 tokens
PLAIN = (1.0, 1.0, 0)  # temperature, top_p, top_k
SETTINGS = [(MIXES[0], SOME, PLAIN), (MIXES[1], [3, 13], PLAIN), (MIXES[0], [-1, -1], PLAIN),
            (MIXES[1], [3, 105], (0.0, 1.0, 0)), (MIXES[0], SOME, (0.7, 0.9, 0)),
            (MIXES[1], SOME, (1.3, 1.0, 5)),
            (MIXES[0], SOME, (np.where(np.arange(ROWS) % 3, 1.0, 0.6), 0.9, 0))]


@functools.cache
def lab():
  return tiny.load()


@functools.cache
def examples():
  return [Countdown().examples("eval", 5)[i] for i in range(16)]


@functools.cache
def served(mesh):
  """(model, parameters to sample with) as a run has them on a mesh."""
  model, params, _ = lab()
  learner = Learner(whole(), model, mesh)
  return learner.config, learner.serve_rollouts(jax.device_put(params, learner.param_shardings))


def run(fn, chosen=(0, 1, 2, 3), shape=PLAIN, stop=(3, -1), max_tokens=MAX_TOKENS, **options):
  model, params, tokenizer = lab()
  task, some = Countdown(), [examples()[i] for i in chosen]
  prompt, mask = prompts.padded([task.prompt(e, tokenizer) for e in some], 12, 0)
  keys = row_keys(jax.random.key(7), 0, jnp.arange(len(some)), SAMPLES)
  temperature, top_p, top_k = shape
  if "mesh" in options:
    model, params = served(options["mesh"])
    prompt, mask, keys = jax.device_put((prompt, mask, keys), sharding.rows(options["mesh"]))
  decoding = decode.Decoding.of(temperature, top_p, top_k, stop)
  return fn(model, params, prompt, mask, keys, decoding, samples=SAMPLES, max_tokens=max_tokens,
            **options)


def same(got, want):
  for name in ("tokens", "mask", "finished"):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
  for name in STATISTICS:
    # products of another number of rows round otherwise: 4e-5 seen for one row on jax 0.7.2
    np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("slots", [1, 3, 8, pytest.param(ROWS, marks=pytest.mark.slow)])
def test_responses_are_those_of_all_rows_at_once(slots, monkeypatch):
  monkeypatch.setattr(continuous_batching, "IDLE", 3)  # 8 slots: two are filled together
  lengths = set()
  for number, (chosen, stop, shape) in enumerate(SETTINGS):
    want = run(decode.sample, chosen, shape, stop)
    before = compilations.total()
    got = run(continuous_batching.sample, chosen, shape, stop, slots=slots)
    # neither lengths nor prompts compile anew, only [B] temperatures beside numbers
    assert compilations.total() - before <= (number == 0 or np.ndim(shape[0]))
    same(got, want)
    length = np.asarray(got.mask).sum(1)
    lengths |= set(length.tolist())
    if slots == 1:
      assert int(got.steps) == length.sum()
    # idle slots are fewer than one in IDLE while rows wait; then the longest row may begin
    busy = slots - max(1, slots // continuous_batching.IDLE) + 1
    assert length.sum() / slots <= int(got.steps) <= length.sum() / busy + length.max()
  assert len(lengths) > 8


far = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("axes, slots, settings", [
    ((2, 1, 1), 4, SETTINGS[:2]), far((2, 1, 1), 16, SETTINGS), far((4, 1, 1), 4, SETTINGS),
    far((4, 1, 1), 12, SETTINGS), far((1, 2, 1), ROWS, SETTINGS), far((2, 2, 1), 8, SETTINGS),
    far((2, 1, 2), 6, SETTINGS), far((1, 2, 2), 2, SETTINGS), far((2, 2, 2), 8, SETTINGS)])
def test_devices_refill_their_own_slots(axes, slots, settings, monkeypatch):
  monkeypatch.setattr(continuous_batching, "IDLE", 3)
  mesh = sharding.make_mesh(*axes)
  ways, paces = sharding.row_devices(mesh), set()
  for number, (chosen, stop, shape) in enumerate(settings):
    want = run(decode.sample, chosen, shape, stop)
    before = compilations.total()
    got = run(continuous_batching.sample, chosen, shape, stop, slots=slots, mesh=mesh)
    assert compilations.total() - before <= (number == 0 or np.ndim(shape[0]))
    assert got.tokens.sharding.is_equivalent_to(sharding.rows(mesh), 2)
    same(got, want)
    length = np.asarray(got.mask).sum(1).reshape(ways, -1)
    own, total = slots // ways, length.sum(1)
    paces |= {tuple(total)}
    busy = own - max(1, own // continuous_batching.IDLE) + 1
    assert total.max() / own <= int(got.steps) <= (total / busy + length.max(1)).max()
    if own == 1:
      assert int(got.steps) == total.max()  # of the slowest device
  assert any(len(set(pace)) > 1 for pace in paces)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(2, 2, 1), (2, 1, 2)])
def test_rows_exchange_nothing(axes):
  """But the ticks at the end. Along "tensor" only groups meet: a permutation is one of all."""
  lower = functools.partial(continuous_batching.sample.lower, slots=8)
  text = run(lower, mesh=sharding.make_mesh(*axes)).compile().as_text()
  found = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text)
  assert "all-reduce" in found and "collective-permute" not in found and "all-to-all" not in found
  assert axes[2] > 1 or len(found) == 1


def test_slots_become_fewer_as_rows_run_out():
  assert continuous_batching.sizes(64) == [64, 32, 16, 0]
  assert continuous_batching.sizes(20) == [20, 10, 0] and continuous_batching.sizes(8) == [8, 0]


def test_the_cache_is_updated_in_place():
  """Temporaries: one cache of S slots, a layer of it to attend to, the prompts, little beside; a
  copy of the keys alone would be half a cache more."""
  slots, max_tokens, c = 8, 512, lab()[0]
  lower = functools.partial(continuous_batching.sample.lower, slots=slots)
  made: Any = run(lower, max_tokens=max_tokens).compile()
  token = 2 * 4 * c.layers * c.kv_heads * c.head_dim
  cache = token * (slots * (12 + max_tokens) + PROMPTS * 12)
  assert made.memory_analysis().temp_size_in_bytes < (1.2 + 1 / c.layers) * cache


@pytest.mark.parametrize("slots", [-1, 0, ROWS + 1])
def test_slots_are_rows(slots):
  with pytest.raises(ValueError, match=f"slots={slots} for {ROWS} rows"):
    run(continuous_batching.sample, slots=slots)
  if slots:
    with pytest.raises(ValueError, match=rf"sampling.slots={slots}: .*\(?.*all rows at once\)"):
      dataclasses.replace(whole(), sampling=Sampling(
          prompts=PROMPTS, samples=SAMPLES, slots=slots))


@functools.cache
def whole():
  return config.load("experiments/toy.py", ())


def draw(strategy, *, mesh=(1, 1, 1), slots):
  model, params, tokenizer = lab()
  engine = Engine(model, tokenizer, Countdown(), sharding.make_mesh(*mesh))
  sampling = Sampling(samples=SAMPLES, max_tokens=MAX_TOKENS, slots=slots)
  return strategy(engine, Request(params, lambda: examples()[:PROMPTS], jax.random.key(0), 3,
                                  {"temperature": np.float32(1.2)}, sampling))


@pytest.mark.parametrize("strategy, mesh", [
    (plain.Plain(), (1, 1, 1)), (plain.Plain(), (1, 1, 2)), (tempered.Tempered(), (1, 1, 1)),
    far(tempered.Tempered(one_in=2), (2, 1, 1)), far(plain.Plain(), (4, 1, 1))])
def test_strategies_learn_from_the_same_rows(strategy, mesh):
  got, want = draw(strategy, slots=8, mesh=mesh), draw(strategy, slots=0)
  assert got.texts == want.texts and got.verdicts == want.verdicts
  for name, value in want.batch.columns().items():
    np.testing.assert_allclose(got.batch.columns()[name], value, atol=1e-5, err_msg=name)


def test_what_does_not_work_says_so():
  over = "does not divide over data x fsdp=4 devices, which share the slots equally; nearest: "
  for slots, near in ((1, "4"), (10, "8 or 12")):
    with pytest.raises(ValueError, match=f"sampling.slots={slots} {over}{near}\\b"):
      draw(plain.Plain(), mesh=(2, 2, 1), slots=slots)
  with pytest.raises(ValueError, match=f"sampling.slots=10 {over}8 or 12$"):
    loop.Lab(config.load("experiments/toy.py", ("sampling.slots=10", "mesh.data=4")))
  with pytest.raises(ValueError, match="slots=8: a slot does not keep the cache"):
    draw(branch.Cure(originals=1, branches=4), slots=8)
  for strategy, said in ((branch.Cure(), "a slot does not keep the cache"),
                         (multiturn.MultiTurn(), "an episode keeps its slot")):
    with pytest.raises(ValueError, match=f"slots=8 with {type(strategy).__name__}: {said}"):
      check(strategy, Sampling(slots=8))


def test_the_plan_counts_slots():
  toy, model = whole(), lab()[0]
  s = toy.sampling
  with_slots = dataclasses.replace(toy, sampling=dataclasses.replace(s, slots=8))
  assert ", 8 decoded at once; " in explain.batch_sentence(with_slots)
  size = lambda e: explain.memory(e, model, 10)["key-value cache"]
  held = (8 * (10 + s.max_tokens) + 10 * s.prompts) / (s.prompts * s.samples * (10 + s.max_tokens))
  assert size(with_slots) == pytest.approx(size(toy) * held)
