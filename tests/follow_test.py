"""Numbers that hang together follow each other, or a difference stops the run."""

import copy
import dataclasses
import pathlib

import jax.numpy as jnp
import pytest

from entrolab import aggregate, config, presets
from entrolab.follow import MAX_TOKENS, SAMPLES, UPDATES, Number, filled
from entrolab.methods import canon, dapo, gpg, grpo, kl, light_if, ppo, rloo, spear
from entrolab.methods.aepo_agentic import Branching
from entrolab.objective import Objective, term
from entrolab.rollout.agentic import Agentic
from entrolab.rollout.branch import Cure
from entrolab.rollout.replay import Replay
from entrolab.rollout.sft import SFT
from entrolab.rollout.switch import Switch
from entrolab.trainer import loop
from tests import probe

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "experiments").glob("*.py"))
KINDS = [*RECIPES, "experiments/grpo.py:norm=none,mean=fixed_length",
         *(f"experiments/canon.py:schedule={name}" for name in ("accuracy", "cosine", "reverse")),
         "experiments/base_objectives.py:objective=otb", "experiments/gtpo.py:form=sequence",
         "experiments/form_curriculum.py:sparse=true", "experiments/spine.py:labels=true"]
PAPERS = [name for name in presets.PRESETS if name.startswith(("qwen", "llama"))]


def written(experiment):
  """The hyper-parameters of all terms as `function.name`, the fields of controllers as
  `Controller.name`."""
  values = {f"{t.name}.{name}": value for _, t in experiment.objective.terms()
            for name, value in t.values.items()}
  return values | {f"{type(c).__name__}.{f.name}": getattr(c, f.name)
                   for c in experiment.objective.control for f in dataclasses.fields(c)}


@pytest.mark.parametrize("recipe", KINDS)
def test_every_recipe_follows_the_numbers_that_are_set(recipe):
  for overrides in (("sampling.samples=16",), ("sampling.max_tokens=40",),
                    ("sampling.samples=16", "sampling.max_tokens=40", "training.updates=1")):
    made = config.load(recipe, overrides)
    s, t = made.sampling, made.training
    assert s.samples == (16 if "sampling.samples=16" in overrides else s.samples)
    for name, value in written(made).items():
      knob = name.rpartition(".")[2]
      if knob == "size":
        assert value == s.samples, name
      elif knob in ("length", "max_tokens", "divisor"):
        assert value == s.max_tokens, name
      elif knob == "buffer":
        assert 0 < value <= s.max_tokens and value == max(s.max_tokens // 5, 1), name
      elif knob == "updates":
        assert value == t.updates, name
      elif name == "History.steps":
        assert value == t.steps * t.updates


@pytest.mark.parametrize("name", PAPERS)
def test_overrides_reach_the_terms_of_papers_presets(name):
  made = config.load(f"experiments/siren.py:preset={name}", ("sampling.max_tokens=16384",))
  assert written(made)["aggregate.fixed_length.length"] == 16384
  made = config.load(f"experiments/dapo.py:preset={name}", ("sampling.max_tokens=8192",))
  overlong = made.objective.reward[1]
  mask = jnp.arange(8192)[None] < jnp.asarray([[6500], [8192]])
  assert overlong.knobs == (("buffer", 1638), ("max_tokens", 8192))
  # a right answer of the greatest length is worth 1 - 1, never less
  assert overlong({"rewards": jnp.ones(2), "mask": mask}).tolist() == [1.0, 0.0]


def test_the_numbers_of_strategies_follow():
  made = config.load("experiments/cure.py", ("sampling.samples=12", "sampling.max_tokens=40"))
  first, then = made.rollout.first, made.rollout.then
  assert (first.originals, first.branches, first.room) == (3, 3, 21)
  assert (then.originals, then.branches) == (12, 0)
  with pytest.raises(ValueError, match="sampling.samples=10: groups of originals with 3 branches"):
    config.load("experiments/cure.py", ("sampling.samples=10",))
  made = config.load("experiments/arpo.py", ("sampling.samples=16",))
  assert made.rollout.rule.samples == 16
  for samples, updates, micro, groups in ((4, 4, 1, 16), (16, 8, 1, 8), (5, 4, 1, 16),
                                          (8, 4, 32, 16), (64, 1, 1, 1)):
    made = config.load("experiments/spear.py", (f"sampling.samples={samples}",
                                                f"training.updates={updates}",
                                                f"training.micro={micro}"))
    assert made.rollout.prompts == groups, samples
  made = config.load("experiments/form_curriculum.py:sparse=true", ("task.fields=5",))
  assert (made.rollout.turns, written(made)["Gate.most"], written(made)["Gate.start"]) == (7, 5, 5)
  made = config.load("experiments/empg.py", ("rollout.turns=7",))
  assert written(made)["empg.modulate.steps"] == 7


def test_a_number_that_was_filled_in_follows_into_the_next_experiment():
  made = config.load("experiments/siren.py", ("objective.scope=micro", "sampling.samples=16"))
  assert made.objective.scope == "micro" and made.objective.advantage[0].knobs == (("size", 16),)
  again = dataclasses.replace(made, sampling=dataclasses.replace(made.sampling, samples=4))
  assert again.objective.advantage[0].knobs == (("size", 4),)
  other = dataclasses.replace(made.objective, weights=())
  again = dataclasses.replace(made, objective=other,
                              sampling=dataclasses.replace(made.sampling, max_tokens=7))
  assert written(again)["aggregate.fixed_length.length"] == 7
  assert copy.deepcopy(again) == again


@pytest.mark.parametrize("parts, said", [
    (dict(advantage=term(grpo.group_advantage, size=4)),
     r"grpo.group_advantage\(size=4\) but sampling.samples=8"),
    (dict(aggregate=term(aggregate.fixed_length, length=3072)),
     r"fixed_length\(length=3072\) but sampling.max_tokens=18"),
    (dict(reward=(term(grpo.outcome), term(dapo.overlong, max_tokens=20, buffer=4))),
     r"overlong\(max_tokens=20\) but sampling.max_tokens=18"),
    # a default that repeats a number of the paper's run
    (dict(reward=(term(grpo.outcome), term(light_if.with_length))),
     r"with_length\(max_tokens=8192\) but sampling.max_tokens=18"),
    (dict(control=(canon.Cosine(updates=2),)), r"Cosine\(updates=2\) but training.updates=4"),
    (dict(control=(kl.Adaptive(0.1),)),
     r"kl.Adaptive\(rows=1\) but sampling.prompts \* sampling.samples // training.updates=64"),
    (dict(control=(spear.Curriculum(),)), r"Curriculum\(updates=1\) but training.updates=4"),
])
def test_a_number_that_is_written_out_and_differs_stops_the_run(parts, said):
  with pytest.raises(ValueError, match=said):
    presets.get("tiny").experiment("mine", Objective(
        **{"surrogate": term(ppo.clipped_ratio), "reward": term(grpo.outcome), **parts}))


@pytest.mark.parametrize("rollout", [
    Cure(2, 2), SFT(copies=3), Agentic(rule=Branching(samples=16)), Replay(Cure(2, 2)),
    Switch(Cure(2, 2), Cure(6, 0), 1)])
def test_groups_of_a_strategy_that_differ_stop_the_run(rollout):
  objective = Objective(surrogate=term(ppo.reinforce), reward=term(grpo.outcome),
                        advantage=term(grpo.centred_advantage, size=SAMPLES))
  with pytest.raises(ValueError, match=r"sampling.samples=8 with \w+, whose groups have \d+ rows"):
    presets.get("tiny").experiment("mine", objective, rollout=rollout)


def test_a_number_that_is_written_out_and_agrees_is_left_alone():
  objective = Objective(surrogate=term(ppo.clipped_ratio), reward=term(grpo.outcome),
                        advantage=term(grpo.group_advantage, size=8),
                        aggregate=term(aggregate.fixed_length, length=18))
  made = presets.get("tiny").experiment("mine", objective)
  assert made.objective == objective
  with pytest.raises(ValueError, match="size=8"):  # what is written out does not follow
    dataclasses.replace(made, sampling=dataclasses.replace(made.sampling, samples=16))
  free = Objective(surrogate=term(ppo.clipped_ratio), aggregate=term(aggregate.fixed_length))
  assert presets.get("tiny").experiment("mine", free).objective == free  # the width of the batch


def test_an_importer_is_told_of_a_number_that_nobody_has_filled_in():
  mask, rewards = jnp.ones((4, 6), bool), jnp.ones(4)
  said = "sampling.*: a number of an experiment, and no experiment has filled it in"
  for call in (lambda: aggregate.fixed_length(mask, length=MAX_TOKENS),
               lambda: term(aggregate.fixed_length, length=MAX_TOKENS)({"mask": mask}),
               lambda: grpo.group_advantage(rewards, size=SAMPLES),
               lambda: rloo.leave_one_out(rewards, size=SAMPLES),
               lambda: gpg.scaled_advantage(rewards, size=SAMPLES),
               lambda: dapo.has_signal(rewards, mask, size=SAMPLES),
               lambda: dapo.overlong(rewards, mask, max_tokens=MAX_TOKENS, buffer=2),
               lambda: spear.own_mean(mask, mask[:, 0], length=MAX_TOKENS),
               lambda: jnp.ones(3) * MAX_TOKENS, lambda: MAX_TOKENS // 2, lambda: 1.0 / SAMPLES):
    with pytest.raises(ValueError, match=said):
      call()
  assert repr(term(aggregate.fixed_length, length=MAX_TOKENS)) == (
      "term(aggregate.fixed_length, length=sampling.max_tokens)")


def test_what_is_filled_in_is_a_number_like_any_other():
  base = presets.get("tiny")
  whole = filled((1, SAMPLES), base)[1]
  assert whole == 8 and repr(whole) == "8" and hash(whole) == hash(8) and whole // 3 == 2
  real = Number("half", lambda e: e.sampling.samples / 2).fill(base)
  assert repr(real) == "4.0" and jnp.ones(2, jnp.float32).dtype == (jnp.ones(2) / real).dtype
  control = canon.Cosine(UPDATES.fill(base))
  state = control.init()
  assert control.update(state, {})["intra_updates"] == 1


def test_every_hyper_parameter_that_repeats_a_number_is_known_by_its_name():
  """Slot functions with whole numbers under other names: none of these repeats one."""
  from entrolab.experiment import REPEATS
  free = {"dapo.overlong.buffer", "empg.modulate.steps", "epo.turn_mean.steps",
          "aepo_arbitrary.replaced_rows.limit", "t1.broken_output.width",
          "t1.broken_output.times", "t1.broken_output.n"}
  found = {f"{probe.label(fn)}.{name}" for fn in probe.functions()
           for name, value in probe.bound(fn).values.items()
           if type(value) is int and name not in REPEATS}
  assert found == free


@pytest.mark.slow
@pytest.mark.usefixtures("compiled", "libraries_promote")
@pytest.mark.parametrize("name", ["siren", "cure", "spear", "dapo", "entropy_sft",
                                  "aepo_arbitrary"])
def test_recipes_run_with_other_numbers(name, tmp_path):
  made = config.load(f"experiments/{name}.py", (
      "sampling.samples=16", "sampling.max_tokens=40", "sampling.prompts=8", "training.steps=2",
      "training.updates=2", "evaluation.problems=8", "mesh.data=1"))
  result = loop.run(made, tmp_path)
  assert result["finished"]
