"""Episodes: batch composition, agreement with the trainer, silence of observations, limits."""

import dataclasses
import functools
import json
import multiprocessing
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import sharding, vocab
from entrolab.environments import BETWEEN, Spoken
from entrolab.experiment import Evaluation, Experiment, Mesh, Saving, Training
from entrolab.methods import bonus, empg, epo, grpo, ppo, spear
from entrolab.models import transformer
from entrolab.models.cloned import Words
from entrolab.objective import Objective, Penalty, term
from entrolab.rollout import compilations
from entrolab.rollout.multiturn import MultiTurn
from entrolab.rollout.replay import Replay
from entrolab.rollout.strategy import Request, Sampling
from entrolab.tasks.countdown import Countdown
from entrolab.tasks.task import Example, Lazy
from entrolab.trainer import checkpoint, loop
from entrolab.trainer.log import WALL

pytestmark = pytest.mark.slow  # minutes on two cores

T, SAMPLES = 40, 4
WORDS = ("go", "back", "at", "one", "two", "three", "home")


@dataclasses.dataclass(frozen=True)
class Walk(Spoken):
  """Walk from `one` home past `three`: observations are of one to three tokens, all of them far
  likelier than nonsense under random weights."""
  max_prompt: int = 4
  max_observation: int = 3
  stop: tuple[str, ...] = ("at",)

  def examples(self, split, seed):
    return Lazy(64, lambda i: Example(i, "at " * (i % 3) + "one", "", "walk"), f"walk {split}")

  def reset(self, example):
    return 1, example.prompt

  def step(self, state, text):
    state = max(state + text.count("go") - text.count("back"), 0)
    if state >= 4:
      return state, "home", 1.0, True
    return state, ("home", "at one", "at two two", "three")[state], 0.0, False


@dataclasses.dataclass(frozen=True)
class Random:
  """Random weights over the words of the walk."""
  kv_heads: int = 2

  def load(self):
    words = Words(WORDS)
    config = transformer.Config(vocab_size=words.vocab_size, width=16, layers=2, heads=4,
                                kv_heads=self.kv_heads, head_dim=8, mlp_width=32)
    params = transformer.init(config, jax.random.key(1))
    params = jax.tree.map(lambda x: 4.0 * np.asarray(x) if x.ndim > 2 else np.asarray(x), params)
    return config, params, words


@pytest.fixture(scope="module")
def lab():
  return Random().load()


EXAMPLES = [Walk().examples("train", 0)[i] for i in range(8)]


@functools.cache
def engine(shape=(1, 1, 1), **strategy):
  config, _, words = Random().load()
  strategy = MultiTurn(**{"turns": 6, "action": 4, **strategy})
  return strategy.engine(config, words, Walk(), sharding.make_mesh(*shape), ())


def run(lab, examples=tuple(EXAMPLES), *, made=None, max_tokens=T, step=0, temperature=1.0):
  params = jax.tree.map(jnp.asarray, lab[1])
  sampling = Sampling(samples=SAMPLES, max_tokens=max_tokens, temperature=temperature)
  return (made or engine()).rollout(params, list(examples), jax.random.key(7), step, sampling)


@pytest.fixture(scope="module")
def whole(lab):
  return run(lab)


def host(rollout):
  return jax.tree.map(np.asarray, rollout.batch)


def test_it_is_a_mixed_batch(whole):
  """What the laws below are proven on: rows that end early, late, by limits, with and without."""
  batch, why = host(whole), " ".join(v.why for v in whole.verdicts)
  assert {v.status for v in whole.verdicts} == {"right", "wrong"}
  assert "done" in why and "turn limit" in why
  turns = [text.count(BETWEEN) + 1 for text in whole.texts]
  assert len(set(turns)) >= 3 and max(turns) == 6
  assert len(set(batch.present.sum(1))) > 5 and 0 < whole.counts["cut_actions"]
  assert (batch.present & ~batch.mask).sum() > 50 and (batch.mask.sum(1) > 0).all()


@pytest.mark.parametrize("chosen", [[3], [5, 2], list(range(7, -1, -1))], ids=str)
def test_tokens_do_not_depend_on_what_else_is_in_the_batch(lab, whole, chosen):
  part, full = host(run(lab, [EXAMPLES[i] for i in chosen])), host(whole)
  at = np.concatenate([np.arange(p * SAMPLES, (p + 1) * SAMPLES) for p in chosen])
  for name in ("tokens", "mask", "present", "phase", "finished", "verdict"):
    np.testing.assert_array_equal(getattr(part, name), getattr(full, name)[at], err_msg=name)
  np.testing.assert_allclose(part.old_logp, full.old_logp[at], atol=1e-5)


def test_tokens_do_not_depend_on_how_calls_are_cut_or_on_room(lab, whole):
  want = host(whole)
  cut = run(lab, made=engine(chunk=1))
  assert cut.counts["calls"] > whole.counts["calls"]  # rows at different turns share them
  for got in (cut, run(lab, max_tokens=T + 9)):
    for name in ("tokens", "mask", "present", "phase"):
      np.testing.assert_array_equal(getattr(host(got), name)[:, :T], getattr(want, name))
    assert got.texts == whole.texts and got.verdicts == whole.verdicts


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_every_mesh_samples_the_same(lab, whole, shape):
  many = run(lab, made=engine(shape))
  assert many.texts == whole.texts and many.verdicts == whole.verdicts
  np.testing.assert_array_equal(host(many).tokens, host(whole).tokens)


def test_other_steps_draw_other_tokens(lab, whole):
  assert np.mean([a != b for a, b in zip(run(lab, step=1).texts, whole.texts, strict=True)]) > 0.8


def test_actions_and_observations_are_where_they_belong(lab, whole):
  """A row, decoded by its columns, is what was said and what the environment answered."""
  batch, words, walk = host(whole), lab[2], Walk()
  for row, (example, text) in enumerate(zip(whole.examples, whole.texts, strict=True)):
    tokens, on, there, phase = (x[row] for x in (batch.tokens, batch.mask, batch.present,
                                                 batch.phase))
    size = there.sum()
    assert there[:size].all() and not (on & ~there).any() and (tokens[size:] == 0).all()
    assert (np.diff(phase[:size]) >= 0).all() and phase[0] == 0
    state, seen = walk.reset(example)[0], ""
    for turn, action in enumerate(text.split(BETWEEN)):
      for what, want in ((there & ~on, seen), (on, action)):
        assert words.decode(tokens[what & (phase == turn)].tolist()) == want
      state, seen, _, done = walk.step(state, action)
    assert bool(batch.finished[row]) == done
    assert whole.verdicts[row].status == ("right" if done else "wrong")
    assert float(batch.extra["returns"][row]) == float(done)
  assert [v.status for v in walk.verify(whole.texts, whole.examples)] == [
      v.status for v in whole.verdicts]


def states(lab, batch):
  config, params, _ = lab
  tokens = jnp.concatenate([batch.prompt, batch.tokens], 1)
  valid = jnp.concatenate([batch.prompt_mask, batch.present], 1)
  positions = jnp.maximum(jnp.cumsum(valid, 1) - 1, 0).astype(jnp.int32)
  hidden = transformer.hidden_states(config, params, tokens, positions, valid.astype(jnp.int32))
  return hidden[:, batch.prompt.shape[1] - 1:-1]


def test_trainer_and_sampler_agree(lab, whole):
  batch = whole.batch
  live = vocab.fused(states(lab, batch), transformer.head_matrix(lab[1]), batch.tokens,
                     vocab.Spec())
  on = np.asarray(batch.mask)
  for name, column in (("logp", batch.old_logp), ("entropy", batch.old_entropy)):
    gap = np.abs(np.asarray(live[name]) - np.asarray(column))
    assert gap[on].max() < 1e-4, name
    assert (np.asarray(column)[~on] == 0.0).all()


def test_the_trainer_reads_observations(lab, whole):
  """Another observation changes what follows it, and nothing before."""
  batch = whole.batch
  row = int(np.argmax(np.asarray(batch.present & ~batch.mask).sum(1)))
  at = int(np.argmax(np.asarray(batch.present & ~batch.mask)[row]))
  other = batch.replace(tokens=batch.tokens.at[row, at].set(lab[2].ids["home"]))
  other = other if int(batch.tokens[row, at]) != lab[2].ids["home"] else batch.replace(
      tokens=batch.tokens.at[row, at].set(lab[2].ids["two"]))
  moved = np.abs(np.asarray(states(lab, other) - states(lab, batch))).max(-1)
  assert moved[row, :at + 1].max() == 0.0 and moved[row, at + 1] > 1e-4
  assert np.delete(moved, row, 0).max() == 0.0


def agents():
  """An objective with every kind of term that methods for agents bring."""
  return Objective(
      reward=term(grpo.outcome), surrogate=term(ppo.clipped_ratio),
      advantage=(term(grpo.group_advantage, size=SAMPLES), term(empg.modulate, steps=6)),
      penalties=(Penalty(0.01, term(bonus.negative_entropy), scale=term(epo.turn_mean, steps=6)),
                 Penalty("smooth", term(epo.corridor, low=0.9, high=1.1),
                         scale=term(epo.turn_mean, steps=6))),
      control=(epo.History(),))


def test_observations_have_exactly_zero_gradient(lab, whole):
  objective, batch = agents(), whole.batch
  state = {**objective.control[0].init(), "history": jnp.asarray(1.5)}
  batch = objective.prepare(batch, state)
  hidden = states(lab, batch)
  logits = hidden @ transformer.head_matrix(lab[1]).T

  def loss(logits):
    live = vocab.from_logits(logits, batch.tokens, objective.statistics)
    return objective.loss({**batch.columns(), **state, **live})[0]

  grads = np.abs(np.asarray(jax.grad(loss)(logits))).max(-1)
  on, there = np.asarray(batch.mask), np.asarray(batch.present)
  assert (grads[~on] == 0.0).all() and (there & ~on).sum() > 50
  assert (grads[on] > 0.0).mean() > 0.99


def test_turn_mean_is_epos_mean_over_turns_as_rows(whole):
  """Section 3.1 of EPO has a row a turn; here a row is an episode: the same share of each token."""
  batch = host(whole)
  share = np.asarray(epo.turn_mean(batch.mask, batch.phase, steps=6))
  turns = [(r, k) for r in range(len(batch.mask)) for k in range(6)]
  rows = np.stack([batch.mask[r] & (batch.phase[r] == k) for r, k in turns])
  keep = rows.any(1)
  trajectory = jnp.asarray([r for r, _ in turns], jnp.int32)[keep]
  padded = jnp.zeros((len(turns), T), bool).at[:keep.sum()].set(rows[keep])
  ids = jnp.concatenate([trajectory, jnp.full(len(turns) - keep.sum(), 0, jnp.int32)])
  want = np.asarray(epo.trajectory_mean(padded, ids))[:keep.sum()]
  got = np.stack([np.where(row, share[r], 0.0) for row, (r, _) in zip(
      rows[keep], [t for t, k in zip(turns, keep, strict=True) if k], strict=True)])
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert abs(share.sum() - 1.0) < 1e-5


def test_limits_end_episodes_and_are_counted(lab):
  tight = run(lab, max_tokens=12)
  batch = host(tight)
  budget = [v.why.endswith("token budget") for v in tight.verdicts]
  assert tight.counts["token_budget"] == sum(budget) > len(budget) // 3
  assert batch.present.sum(1).max() <= 12
  assert not batch.finished[np.asarray(budget)].any()
  ends = batch.present.sum(1)[np.asarray(budget)]
  assert (12 - ends <= Walk().max_observation + 1).all()  # cut where the next would not fit
  short = run(lab, made=engine(turns=2))
  limit = [v.why.endswith("turn limit") for v in short.verdicts]
  assert short.counts["turn_limit"] == sum(limit) > 0
  assert max(t.count(BETWEEN) + 1 for t in short.texts) == 2
  assert short.counts["actions"] == sum(t.count(BETWEEN) + 1 for t in short.texts)
  assert short.counts["context_tokens"] == host(short).present.sum()


def test_stop_strings_end_an_action(lab, whole):
  """`at` is a stop string of the walk: as the end token, it is the last of its action."""
  batch, stops = host(whole), {1, lab[2].ids["at"]}
  for row in range(len(batch.mask)):
    for turn in range(batch.phase[row].max() + 1):
      said = batch.tokens[row][batch.mask[row] & (batch.phase[row] == turn)].tolist()
      assert not set(said[:-1]) & stops and (said[-1] in stops or len(said) == 4)


def test_long_observations_are_cut_and_counted_and_framed(lab):
  made = engine(frame="back {} go")
  got = run(lab, made=made)
  assert got.counts["cut_observations"] > 0
  batch = host(got)
  seen = batch.present & ~batch.mask
  row = int(np.argmax(seen.sum(1)))
  first = batch.tokens[row][seen[row] & (batch.phase[row] == 1)].tolist()
  assert lab[2].decode(first).startswith("back ") and len(first) == 3


@dataclasses.dataclass(frozen=True)
class Together(Walk):
  """Counts the episodes that step at once, as a tool would be asked for them."""
  counted: list = dataclasses.field(default_factory=list)

  def steps(self, states, texts):
    self.counted.append(len(texts))
    return super().steps(states, texts)


def test_rows_of_a_call_step_together(lab, whole):
  task, made = Together(), engine()
  got = run(lab, made=MultiTurn(turns=6, action=4).engine(made.config, lab[2], task, made.mesh, ()))
  assert got.texts == whole.texts and got.verdicts == whole.verdicts
  assert len(task.counted) == got.counts["calls"] and task.counted[0] == len(got.texts)
  assert sum(task.counted) == got.counts["actions"]


def test_a_task_that_is_no_environment_is_refused():
  config, _, words = Random().load()
  with pytest.raises(TypeError, match="Countdown.* is none; environments.adapters.Attempts"):
    MultiTurn().engine(config, words, Countdown(), sharding.make_mesh(1, 1, 1), ())


def test_a_level_that_nothing_controls_is_named(lab):
  request = Request(lab[1], lambda: EXAMPLES, jax.random.key(0), 0, {"coef": jnp.ones(())},
                    Sampling(samples=4))
  with pytest.raises(TypeError, match="level='level'.* have: coef"):
    MultiTurn(level="level")(engine(), request)


def test_temperatures_do_not_recompile(lab, whole):
  before = compilations.total()
  greedy = run(lab, temperature=0.0)
  assert compilations.total() == before
  rows = host(greedy).tokens.reshape(-1, SAMPLES, T)
  assert (rows == rows[:, :1]).all()


def experiment(steps):
  """Episodes with replay, and every kind of term that methods for agents bring."""
  objective = agents()
  objective = dataclasses.replace(
      objective, weights=(term(spear.usable_rows), term(spear.replay_weight)),
      control=(*objective.control, spear.Curriculum(imitation=2, updates=2)),
      aggregate=term(spear.own_mean, length=T), extra=("replayed", "usable"))
  return Experiment(
      "walk", objective, Random(), Walk(),
      rollout=Replay(MultiTurn(turns=6, action=4), spear.Replay(size=1, tools=False), prompts=2),
      sampling=Sampling(prompts=8, samples=SAMPLES, max_tokens=T),
      training=Training(steps=steps, updates=2, warmup=0, lr=1e-3),
      evaluation=Evaluation(problems=4, samples=SAMPLES, ks=(1,)), saving=Saving(every=1),
      mesh=Mesh(data=1))


def logged(folder):
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in row.items() if not k.startswith(WALL)} for row in rows
          if "train/loss" in row]


def run_killed(folder):
  """A process of its own: kill -9 from within the environment, in the batch of the third step."""
  at, calls, take, train_step = [0], [0], Walk.steps, loop.train_step

  def steps(self, states, texts):
    calls[0] += at[0] == 2
    if calls[0] == 3:
      os.kill(os.getpid(), signal.SIGKILL)
    return take(self, states, texts)

  def numbered(lab, state, step, folder):
    at[0] = step
    return train_step(lab, state, step, folder)

  Walk.steps, loop.train_step = steps, numbered
  loop.run(experiment(3), folder)


def test_a_run_killed_within_the_batch_of_its_third_step_goes_on_to_the_bit(tmp_path):
  """With rows in the buffer of a replay, and some that were replayed."""
  child = multiprocessing.get_context("spawn").Process(target=run_killed,
                                                       args=(tmp_path / "parts",))
  child.start()
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    loop.run(experiment(3), tmp_path / "whole")
    child.join()
    assert child.exitcode == -signal.SIGKILL and len(logged(tmp_path / "parts")) == 2
    loop.run(experiment(3), tmp_path / "parts")
  ours, theirs = (checkpoint.Checkpoints(tmp_path / name / "checkpoints").meta()
                  for name in ("whole", "parts"))
  assert ours["leaves"] == theirs["leaves"]  # shapes and fingerprints
  assert any(name.startswith("host.rows.") for name in ours["leaves"])
  a = logged(tmp_path / "whole")
  assert a == logged(tmp_path / "parts") and len(a) == 3
  assert a[2]["rollout/stored"] > 0 and max(row["rollout/replayed"] for row in a) > 0
  for row in a:
    assert row["sampling/logp_difference/max"] < 1e-4 and row["train/applied"] == 1.0
    assert row["rollout/actions"] >= 16 and row["rollout/calls"] >= 6
    assert {"rollout/turn_limit", "rollout/token_budget", "rollout/cut_actions"} <= set(row)
