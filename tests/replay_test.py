"""The replay of good trajectories: what is stored, what comes back, and what a checkpoint keeps."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import aggregate, config
from entrolab.batch import Batch
from entrolab.experiment import Evaluation
from entrolab.methods import grpo, ppo, spear
from entrolab.objective import Objective, term
from entrolab.rollout import compilations
from entrolab.rollout.plain import Plain
from entrolab.rollout.replay import Replay, packed, unpacked
from entrolab.trainer import checkpoint, explain, loop
from entrolab.trainer.log import WALL
from tests import resume_test

pytestmark = pytest.mark.usefixtures("libraries_promote")

RECIPE = "experiments/spear.py:size=8,prompts=4,imitation=4"  # due as soon as 12 rows are good
SMALL = ("sampling.prompts=8", "evaluation.problems=8", "training.updates=2", "training.steps=4")
ONE = ("mesh.data=1",)
STORED = ("tokens", "mask", "prompt", "prompt_mask", "old_logp", "old_entropy", "sampled_logp",
          "verdict", "rewards", "finished", "usable", "tool_calls")


def columns(batch):
  return {name: np.asarray(x) for name, x in batch.columns().items()}


def steps_of(experiment, steps):
  """(lab, [rollout], [metrics], [host before the step], state) of the first steps."""
  lab = loop.Lab(experiment)
  state, rollouts, metrics, hosts = lab.learner.init(lab.params), [], [], []
  for step in range(steps):
    hosts.append(lab.host)
    state, rollout, own = loop.train_step(lab, state, step, pathlib.Path("/nonexistent"))
    rollouts.append(rollout)
    metrics.append(own | {"test/compiled": compilations.of(lab.learner.step)})
  return lab, rollouts, metrics, hosts, state


@pytest.fixture(scope="module")
def ran():
  return steps_of(config.load(RECIPE, SMALL + ONE), 4)


def test_replayed_rows_are_the_stored_ones_to_the_bit(ran):
  """Above all with the log-probs of the policy that drew them, which is no longer the present one.
  """
  lab, rollouts, metrics, hosts, state = ran
  drawn, came = {}, 0
  for step, rollout in enumerate(rollouts):
    again = columns(rollout.replay)
    on = again["replayed"]
    assert (again["mask"].any(1) == on).all() and on.sum() in (0, 8)
    assert metrics[step]["rollout/replayed"] == on.sum()
    for row in np.flatnonzero(on):
      origin, first = drawn[again["row"][row].tobytes()]
      for name in STORED:
        assert origin[name][first].tobytes() == again[name][row].tobytes(), name
      assert origin["verdict"][first] == 1 and origin["adv"][first].max() > 0.0
    if on.any():
      host = hosts[step]
      median = np.median(host["groups.mean"][:host["count.groups"]])
      want = np.where(again["mask"], (again["rewards"] - median)[:, None], 0.0)
      np.testing.assert_allclose(again["adv"][on], want[on], rtol=1e-6)
      now = np.asarray(lab.learner.forward(state.params, rollout.replay, ("logp",))["logp"])
      assert np.abs(now - again["old_logp"])[again["mask"]].max() > 1e-3
    rows = [columns(lab.learner.select(rollout.batch, np.int32(u), rollout.replay)) for u in (0, 1)]
    for own in rows:  # eight prompts and four further groups, dealt over two updates
      assert own["mask"].shape[0] == 48 and own["replayed"].sum() == on.sum() / 2
    fresh = columns(rollout.batch)
    assert not fresh["replayed"].any() and len(rollout.texts) == 64
    drawn |= {key.tobytes(): (fresh, at) for at, key in enumerate(fresh["row"])}
    came += on.any()
  assert not columns(rollouts[0].replay)["replayed"].any() and came >= 2
  # rows that are replayed have the places of padding: no step after the first compiles
  assert metrics[-1]["test/compiled"] == metrics[0]["test/compiled"]


def test_only_good_rows_of_the_widest_groups_are_admitted(ran):
  """And the median is one of groups that have a signal."""
  _, rollouts, _, hosts, _ = ran
  fresh, host = columns(rollouts[0].batch), hosts[1]
  adv = fresh["adv"].max(1) + fresh["adv"].min(1)  # constant in a row, zero on padding
  good = (adv > 0) & fresh["usable"]
  count = int(host["count.rows"])
  assert 0 < count == good.sum()
  np.testing.assert_array_equal(host["rows.row"][:count], fresh["row"][good])
  rewards, live = fresh["rewards"].reshape(8, 8), (adv.reshape(8, 8) != 0).any(1)
  assert live.sum() <= 6  # three quarters of eight
  np.testing.assert_allclose(host["groups.mean"][:live.sum()], rewards[live].mean(1), rtol=1e-6)
  assert host["count.groups"] == live.sum() and not host["rows.mask"][count:].any()
  shapes = [{name: (x.shape, x.dtype) for name, x in h.items()} for h in hosts[1:]]
  assert shapes[0] == shapes[1] == shapes[2]
  assert all(x.dtype.itemsize <= 4 for x in host.values())


def test_without_a_replay_the_step_is_the_one_without_the_strategy():
  """Empty further rows change neither parameters nor metrics, but for the padding that they are."""
  base = config.load("experiments/toy.py", (*SMALL, *ONE))
  objective = Objective(
      reward=term(grpo.outcome), surrogate=term(ppo.clipped_ratio),
      advantage=term(grpo.centred_advantage, size=8), aggregate=term(aggregate.sequence_mean))
  never = Replay(buffer=spear.Replay(size=64, tools=False), prompts=8)
  results = []
  for strategy in (Plain(), never):
    made = dataclasses.replace(base, objective=objective, rollout=strategy)
    _, rollouts, metrics, _, state = steps_of(made, 2)
    results.append(([r.texts for r in rollouts], metrics, jax.tree.leaves(state.params)))
  (texts, metrics, params), (their_texts, their_metrics, their_params) = results
  assert texts == their_texts and their_metrics[1]["rollout/stored"] > 0
  for a, b in zip(params, their_params, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)
  for ours, theirs in zip(metrics, their_metrics, strict=True):
    assert ours["train/padding"] < theirs["train/padding"]
    for name in ours.keys() - {"train/padding", "test/compiled",
                                     "sampling/logp_difference/count"}:
      if not name.startswith(WALL):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=2e-6, err_msg=name)


def test_own_mean_is_two_means():
  mask = jnp.asarray([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
  replayed = jnp.asarray([False, False, True, True])
  got = np.asarray(spear.own_mean(mask, replayed, length=4))
  np.testing.assert_array_equal(got[:2], aggregate.fixed_length(mask[:2], length=4))
  np.testing.assert_array_equal(got[2:3], aggregate.fixed_length(mask[2:3], length=4))
  assert not got[3].any()


@pytest.mark.slow
def test_resumed_with_a_full_buffer(tmp_path):
  """Two steps, and two more out of the checkpoint, are four steps: state, buffer and metrics."""
  made = dataclasses.replace(config.load(RECIPE, (*SMALL, *ONE, "saving.every=1")),
                             evaluation=Evaluation(problems=8, samples=2, ks=(1,)))
  shorter = dataclasses.replace(made, training=dataclasses.replace(made.training, steps=2))
  loop.run(made, tmp_path / "whole")
  loop.run(shorter, tmp_path / "parts")
  loop.run(made, tmp_path / "parts")
  read = [checkpoint.Checkpoints(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
  (ours, theirs), (meta, _) = [r.meta()["leaves"] for r in read], [r.meta() for r in read]
  assert ours == theirs and meta["progress"]["step"] == 4  # shapes and fingerprints of every leaf
  assert {"host.rows.old_logp", "host.groups.mean", "host.count.rows"} <= ours.keys()
  trained = [[r for r in resume_test.rows(tmp_path / name) if "train/loss" in r]
             for name in ("whole", "parts")]
  assert trained[0] == trained[1] and len(trained[0]) == 4
  assert trained[0][1]["rollout/stored"] > 0 and trained[0][2]["rollout/replayed"] == 8


@pytest.mark.slow
def test_killed_with_a_full_buffer(tmp_path):
  """kill -9 in a run whose buffer has rows; then the same command."""
  recipe = "experiments/spear.py:size=16,prompts=4,imitation=4"
  resume_test.finish(resume_test.start(tmp_path / "whole", recipe))
  process = resume_test.start(tmp_path / "run", recipe)
  resume_test.wait_for(process, tmp_path / "run", 5)
  process.kill()
  process.communicate()
  assert "resuming" in resume_test.finish(resume_test.start(tmp_path / "run", recipe))
  assert resume_test.rows(tmp_path / "whole") == resume_test.rows(tmp_path / "run")
  (ours, data, tokens), (theirs, *rest) = map(resume_test.state, (tmp_path / "whole",
                                                                  tmp_path / "run"))
  assert [data, tokens] == rest and ours.keys() == theirs.keys()
  for name, leaf in ours.items():
    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(theirs[name]), err_msg=name)
  assert int(ours["host.count.rows"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("mesh.data=2", "mesh.fsdp=2"), ("mesh.data=1",
                                                                       "training.micro=2")])
def test_meshes_and_micro_batches_replay_the_same(ran, overrides):
  _, rollouts, metrics, hosts, state = ran
  _, theirs, their_metrics, their_hosts, their_state = steps_of(
      config.load(RECIPE, SMALL + overrides), 4)
  for step in range(4):
    assert rollouts[step].texts == theirs[step].texts
    np.testing.assert_array_equal(columns(rollouts[step].replay)["row"],
                                  columns(theirs[step].replay)["row"])
    np.testing.assert_allclose(metrics[step]["train/loss"], their_metrics[step]["train/loss"],
                               rtol=2e-3, atol=1e-5)
  np.testing.assert_array_equal(hosts[3]["rows.tokens"], their_hosts[3]["rows.tokens"])
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(their_state.params), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_what_is_packed_comes_back_and_always_fits():
  """The most that can be stored: every row is good, and nothing is ever due."""
  rule = spear.Replay(size=10**6, tolerance=2, baseline=20, tools=False)
  host, most, rng = {}, 0, np.random.default_rng(0)
  for step in (0, 1, 2, 3, 9, 10, 11, 12, 13):
    rows = dict(rewards=rng.normal(size=16).astype(np.float32), old_logp=rng.random((16, 3)),
                row_adv=np.ones(16), tool_calls=np.zeros(16, int), usable=np.ones(16, bool))
    state = rule.admit(unpacked(host, rule), step, rows, size=4)
    host = packed(state, 64, 24)
    back = unpacked(host, rule)
    for part in ("rows", "groups"):
      assert back[part].keys() == state[part].keys()
      for name, x in state[part].items():
        np.testing.assert_array_equal(back[part][name], x.astype(back[part][name].dtype))
    most = max(most, int(host["count.rows"]))
    assert host["rows.old_logp"].shape == (64, 3) and host["groups.mean"].shape == (24,)
  assert most == 64  # tolerance + 2 steps
  with pytest.raises(ValueError, match="with 64 rows does not fit into 63"):
    packed(state, 63, 24)
  assert unpacked({}, rule)["rows"] == {}


def test_further_groups_that_cannot_be():
  made = config.load(RECIPE, SMALL)
  assert explain.batch_sentence(made).endswith(
      "; 2 updates of 32 responses and 16 replayed ones, each in 1 micro-batch")
  with pytest.raises(ValueError, match=r"Replay\(prompts=3\): whole groups of 8 for each of "
                                       r"training.updates=2, in .*; choices: \[2, 4, 6, 8\]"):
    loop.Lab(dataclasses.replace(made, rollout=Replay(prompts=3)))
  with pytest.raises(ValueError, match="has room for 16 rows, but buffer.size=64"):
    Replay(prompts=2).further_rows(8, 2, 1)
  with pytest.raises(ValueError, match="does not divide over data x fsdp=3"):
    loop.Lab(config.load(RECIPE, (*SMALL, "sampling.prompts=6", "mesh.data=3")))
  with pytest.raises(ValueError, match="the objective has none before"):
    batch = dataclasses.replace(Replay().further(_blank(), {}, 8), adv=None)
    Replay().learned(spear.Replay().init(), 0, batch, samples=8)


def _blank():
  return Batch(tokens=np.zeros((8, 3), np.int32), group=np.zeros(8, np.int32)).replace(
      replayed=np.zeros(8, bool))
