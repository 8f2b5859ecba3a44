"""The ledger in a run: the same account on every mesh and in parts, and no effect on the run."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import config, sharding
from entrolab.ledger import account
from entrolab.models import transformer
from entrolab.trainer import ledger, loop
from entrolab.trainer.log import WALL
from tests import packing_test

pytestmark = pytest.mark.usefixtures("libraries_promote")


RATE = ("training.lr=1e-3", "training.warmup=0", "training.weight_decay=0.1",
        "training.clip_norm=0.05", "ledger.every=1", "ledger.probes=16")
PARAMS = jax.device_get(transformer.init(packing_test.SHAPE, jax.random.key(0)))


def accounts(learner):
  """The ledger's metrics of two updates of a small model, on another batch as its fresh states."""
  state = learner.init(PARAMS)
  control = {name: jnp.float32(0.7) for name in state.control}
  state = dataclasses.replace(state, control=control)
  on_rows = sharding.rows(learner.mesh)
  batches = [jax.device_put(packing_test.rows(seed), on_rows) for seed in (0, 1, 9)]
  opened = ledger.EntropyLedger(learner).open(state.params, batches.pop(),
                                             jax.random.key(5))
  for batch in batches:
    batch = learner.prepare(batch.replace(old_logp=batch.old_logp - 2.0), state)
    plan, _ = learner.plan(batch, learner.experiment.training.micro)
    before = opened.ledger.before(state)
    state, shown = learner.step(state, batch, plan)
    assert float(shown["train/applied"]) == 1.0
    opened.add(before, state, shown["train/grad_norm"], batch, plan)
  return opened.totals()


@pytest.fixture(scope="module")
def single():
  learner, _ = packing_test.learners("siren", *RATE)
  return accounts(learner)


def test_the_account_of_a_transformer_balances(single):
  """Trapezoid, float32: the parts miss the measured change by less than one per cent of it."""
  for prefix in ("ledger/", "ledger/own/"):
    parts = {name.removeprefix(prefix): x for name, x in single.items()
             if name.startswith(prefix) and name.count("/") == prefix.count("/")}
    explained = parts.pop("explained")
    parts = {name: x for name, x in parts.items() if "locality" not in name}
    total = sum(x for name, x in parts.items() if name != "measured")
    assert total == pytest.approx(parts["measured"], rel=1e-5)
    assert parts.keys() > {account.POSITIVE, account.NEGATIVE, "clipping", "momentum",
                           "weight_decay", "rest", "measured"}  # and SIREN's penalty
    assert explained > 0.99
  assert 0.0 < single["ledger/locality_error"] and np.isfinite(single["ledger/locality"])
  tokens = single["ledger/table/tokens"]
  assert tokens.shape == account.CELLS and tokens.sum() > 100


@pytest.mark.parametrize("mesh, micro, packed", [
    ((1, 1, 1), 2, True), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ((1, 1, 1), 2, False), ((2, 2, 1), 1, False), ((2, 2, 1), 2, True),
        ((2, 2, 2), 2, True), ((1, 1, 2), 4, False)))])
def test_parts_packing_and_meshes_give_the_same_account(single, mesh, micro, packed):
  padded, packing = packing_test.learners("siren", *RATE, f"training.micro={micro}", mesh=mesh)
  got = accounts(packing if packed else padded)
  assert got.keys() == single.keys()
  # a mean of entropies of 3 nats has 1e-6 of rounding, and a change is the difference of two
  for name, want in single.items():
    if not any(word in name for word in ("explained", "tokens", "locality")):
      np.testing.assert_allclose(got[name], want, rtol=2e-3, atol=5e-6, err_msg=name)
  np.testing.assert_array_equal(got["ledger/table/tokens"], single["ledger/table/tokens"])


SMALL = ("sampling.prompts=4", "mesh.data=1", "training.steps=2", "training.updates=2",
         "evaluation.problems=2", "evaluation.samples=2", "evaluation.ks=(1,)")


def test_a_run_with_the_ledger_is_the_run_without_it(tmp_path, compiled):
  """To the bit: metrics but its own, samples and parameters; siren, whose controller has state."""
  found = []
  for every in (0, 1):
    experiment = config.load("experiments/toy.py", (*SMALL, f"ledger.every={every}",
                                                    "ledger.states=4"))
    lab = loop.Lab(experiment)
    state = lab.learner.init(lab.params)
    shown = []
    for step in range(2):
      state, rollout, metrics = loop.train_step(lab, state, step, pathlib.Path("/nonexistent"))
      shown.append((rollout.texts, {name: np.asarray(x).tobytes() for name, x in metrics.items()
                                    if not name.startswith((*WALL, "ledger/"))}))
      assert ("ledger/measured" in metrics) == bool(every)
    found.append((shown, jax.tree.map(lambda x: np.asarray(x).tobytes(), state.params)))
  assert found[0] == found[1]


def test_states_are_of_the_policy_and_rounded_up_to_whole_prompts():
  experiment = config.load("experiments/toy.py", (*SMALL, "ledger.states=9"))
  lab = loop.Lab(experiment)
  params = lab.learner.serve(lab.learner.init(lab.params).params)
  first, again, later = (ledger.fresh_states(lab.engine, params, lab.problems, lab.key, step,
                                             experiment) for step in (3, 3, 4))
  assert first.tokens.shape[0] == 12  # 3 of each of 4 prompts
  np.testing.assert_array_equal(first.tokens, again.tokens)
  assert not np.array_equal(first.tokens, later.tokens)


def test_accounts_are_due_at_the_end_of_every_so_many_steps():
  at = lambda every: [step for step in range(7) if ledger.due(config.load(
      "experiments/toy.py", (*SMALL, f"ledger.every={every}")), step)]
  assert at(0) == [] and at(1) == list(range(7)) and at(3) == [2, 5]


@pytest.mark.parametrize("change", ["every=-1", "states=0", "order=3", "probes=1"])
def test_a_ledger_outside_its_definition_is_refused(change):
  with pytest.raises(ValueError, match=f"ledger.{change}"):
    config.load("experiments/toy.py", (f"ledger.{change}",))
