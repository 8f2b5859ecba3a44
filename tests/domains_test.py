"""Every number has a domain: each field from below and above, words by their choices."""

import dataclasses
import importlib
import math
import pkgutil
import typing

import pytest

import entrolab
from entrolab import config, domains
from entrolab.domains import FIELDS, KNOBS, Domain
from entrolab.rollout.strategy import Sampling
from entrolab.typing import name_of
from tests import probe

TOY = config.load("experiments/toy.py")
PARTS = {"strategy.Sampling": "sampling", "experiment.Training": "training",
         "experiment.Evaluation": "evaluation", "experiment.Saving": "saving",
         "experiment.Mesh": "mesh", "experiment.Reference": "reference",
         "experiment.Ledger": "ledger"}


def outside(domain):
  """Values at both sides of a domain and outside it, and what is no number of its kind."""
  step = 1 if domain.whole else 1e-3
  values = [math.nan, -math.inf]
  if domain.least > -math.inf:
    values.append(domain.least if domain.above else domain.least - step)
  if domain.most < math.inf:
    values.append(domain.most if domain.below else domain.most + step)
  if not domain.infinite:
    values.append(math.inf)
  if domain.whole:
    values += [domain.least + 0.5, True]
  values = [v for v in values if v not in domain.also and not (
      v == -math.inf and domain.infinite and domain.least == -math.inf)]
  whole = lambda v: int(v) if domain.whole and math.isfinite(v) and v == int(v) else v
  values = [v if isinstance(v, bool) else whole(v) for v in values]
  return [(v,) for v in values] if domain.each else values


def inside(domain):
  """Values at both ends of a domain and inside it."""
  step = 1 if domain.whole else 1e-3
  least = domain.least if domain.least > -math.inf else -7
  most = domain.most if domain.most < math.inf else least + 1000
  values = [least + step * domain.above, most - step * domain.below, *domain.also]
  values = [int(v) if domain.whole else float(v) for v in values]
  return [(v,) for v in values] if domain.each else values


FIELDS_OF_PARTS = [key for key in FIELDS if key.rpartition(".")[0] in PARTS]


@pytest.mark.parametrize("key", FIELDS_OF_PARTS)
def test_each_field_is_refused_below_and_above_and_taken_at_its_ends(key):
  kind, _, name = key.rpartition(".")
  part = PARTS[kind]
  node, domain = getattr(TOY, part), FIELDS[key]
  for value in outside(domain):
    wrong = dataclasses.replace(node, **{name: value})
    with pytest.raises(ValueError) as caught:
      dataclasses.replace(TOY, **{part: wrong})
    assert str(caught.value) == f"{part}.{name}={value!r}: {domain}"
  for value in inside(domain):
    domains.check(dataclasses.replace(node, **{name: value}), part)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_seeds_outside_their_domain_are_refused(seed):
  with pytest.raises(ValueError, match=f"^seed={seed}: a whole number at least 0 and at most"):
    dataclasses.replace(TOY, seed=seed)


LITERALS = [(part, field.name) for part in PARTS.values() for field in dataclasses.fields(
    getattr(TOY, part)) if typing.get_origin(field.type) is typing.Literal
    and isinstance(typing.get_args(field.type)[0], str)]


@pytest.mark.parametrize("part, name", LITERALS)
def test_each_word_is_one_of_its_choices(part, name):
  node = getattr(TOY, part)
  field = next(f for f in dataclasses.fields(node) if f.name == name)
  for word in ("both", "", "None", str(typing.get_args(field.type)[0]).upper() + "X"):
    with pytest.raises(ValueError, match=f"{word}.*; choices: {typing.get_args(field.type)[0]}, "):
      config.load("experiments/toy.py", (f"{part}.{name}={word}",))
  for word in typing.get_args(field.type):
    if (name, word) != ("rule", "every"):  # which needs a number beside it
      domains.check(dataclasses.replace(node, **{name: word}), part)


@pytest.mark.parametrize("setting, said", [
    ("saving.keep=0", "saving.keep=0: a whole number at least 1"),
    ("training.clip_norm=-1", "training.clip_norm=-1.0: a number at least 0 (0: no clip)"),
    ("sampling.temperature=-1", "sampling.temperature=-1.0: a number at least 0 (0: greedy)"),
    ("sampling.top_p=1.5", "sampling.top_p=1.5: a number above 0 and at most 1 (1: all tokens)"),
    ("sampling.top_p=0", "sampling.top_p=0.0: a number above 0"),
    ("evaluation.top_p=1.01", "evaluation.top_p=1.01: a number above 0"),
    ("evaluation.ks=(0, 1)", "evaluation.ks=(0, 1): a tuple, each of it a whole number"),
    ("training.old_logp=both", "training.old_logp='both'; choices: trainer, sampler"),
    ("training.dtype=float16", "training.dtype='float16'; choices: float32, bfloat16"),
    ("training.lr=nan", "training.lr=nan: a number at least 0"),
    ("training.b2=1", "training.b2=1.0: a number at least 0 and below 1"),
    ("sampling.top_k=-1", "sampling.top_k=-1: a whole number at least 0 (0: all)"),
    ("mesh.data=0", "mesh.data=0: a whole number at least 1, or -1 (-1: all that are left)"),
    ("mesh.tensor=-2", "mesh.tensor=-2: a whole number at least 1"),
    ("training.micro=0", "training.micro=0: a whole number at least 1"),
    ("task.max_prompt=0", "task.max_prompt=0: a whole number at least 1"),
    ("objective.vocab.chunk=-1", "objective.vocab.chunk=-1: a whole number"),
])
def test_settings_outside_their_domain_are_refused_when_the_recipe_is_loaded(setting, said):
  with pytest.raises(ValueError) as caught:
    config.load("experiments/toy.py", (setting,))
  assert said in str(caught.value)


@pytest.mark.parametrize("recipe, said", [
    ("clip_cov:fraction=1.5", "keep_mask(fraction=1.5): a number at least 0 and at most 1"),
    ("clip_cov:low=-0.1", "ppo.clipped_ratio(low=-0.1): a number at least 0"),
    ("dapo:high=nan", "ppo.clipped_ratio(high=nan): a number at least 0"),
    ("siren:beta=inf", "objective.penalties.0.beta=inf: a finite number"),
    ("siren:top_p=1.2", "0 < top_p <= 1"),
    ("qae:level=0", "qae.quantile_advantage(level=0.0): a number above 0"),
    ("soft_q:alpha=0", "soft_q.reference_residual(alpha=0.0): a number above 0"),
    ("t1:decay=1.5", "reference.decay=1.5: a number at least 0 and at most 1"),
    ("ent_adv:kappa=0.5", "ent_adv.shaped(kappa=0.5): a number at least 1"),
    ("highent_tokens:keep=most", "top_mask(keep='most'); choices: top, rest"),
    ("steer:low=0", "steer.exponential(low=0.0): a number above 0 and at most 1"),
    ("spear:imitation=0", "objective.control.0.imitation=0: a whole number at least 1"),
    ("arpo:probability=2", "rollout.rule.probability=2.0: a number at least 0 and at most 1"),
    ("cure:most=0", "most >= 1"),
    ("one_shot:index=-1", "task.indices=(-1,): a tuple, each of it a whole number at least 0"),
])
def test_hyper_parameters_outside_their_domain_are_refused_when_the_recipe_is_loaded(recipe, said):
  name, _, knobs = recipe.partition(":")
  with pytest.raises(ValueError) as caught:
    config.load(f"experiments/{name}.py:{knobs}")
  assert said in str(caught.value)


def records():
  """Every dataclass that an experiment may hold, by `file.class`."""
  found = {}
  for info in pkgutil.walk_packages(entrolab.__path__, "entrolab."):
    if info.name.split(".")[1] in ("experiment", "objective", "statistics", "control", "methods",
                                   "rollout", "tasks", "environments", "models"):
      module = importlib.import_module(info.name)
      found |= {name_of(kind): kind for kind in vars(module).values()
                if isinstance(kind, type) and dataclasses.is_dataclass(kind)
                and kind.__module__ == module.__name__}
  return found


# what runs compute, which nobody sets
COMPUTED = {"aepo_agentic.Rollout", "aepo_agentic.Tree", "strategy.Request", "strategy.Rollout",
            "episode.Form", "episode.Episode", "episode.Work", "task.Example", "parameters.Config",
            "parameters.Stretch", "parameters.Linear", "parameters.Llama3",
            "parameters.Yarn", "parameters.Proportional", "huggingface.Place", "control.Controller"}


def test_the_table_has_every_number_that_an_experiment_may_hold():
  kinds, missing = records(), []
  for name, kind in kinds.items():
    if name in COMPUTED or name.endswith("State") or kind.__name__.startswith("_"):
      continue
    for field in dataclasses.fields(kind):
      number = field.type in (int, float) or (isinstance(field.default, int | float)
                                              and field.type is not bool)
      if number and typing.get_origin(field.type) is not typing.Literal and (
          f"{name}.{field.name}" not in FIELDS):
        missing.append(f"{name}.{field.name}")
  assert not missing
  for key in FIELDS:
    kind, _, field = key.rpartition(".")
    assert field in {f.name for f in dataclasses.fields(kinds[kind])}, key


def test_the_table_has_every_number_of_every_term():
  found = {}
  for fn in probe.functions():
    for name, value in probe.bound(fn).values.items():
      if isinstance(value, int | float) and not isinstance(value, bool):
        domain = domains.domain_of_knob(probe.label(fn), name)
        assert domain is not None, f"{probe.label(fn)}: give {name} a domain in domains.KNOBS"
        assert value in domain, f"{probe.label(fn)}({name}={value}): {domain}"
        found |= {name: True, f"{probe.label(fn)}.{name}": True}
  assert {*KNOBS} <= {*found}


def test_a_number_is_told_from_what_is_like_one():
  assert 1 in Domain(1, whole=True) and True not in Domain(1, whole=True)
  assert 1.0 not in Domain(1, whole=True) and "1" not in Domain()
  assert math.nan not in Domain(infinite=True) and math.inf in Domain(infinite=True)
  assert 0 in Domain(1, also=(0,)) and 0.5 not in Domain(1, also=(0,))
  with pytest.raises(ValueError, match="training.packing=1; choices: True, False"):
    dataclasses.replace(TOY, training=dataclasses.replace(TOY.training, packing=1))
  assert list(domains.outside(Sampling(prompts=0, top_p=2.0), "sampling")) == [
      "sampling.prompts=0: a whole number at least 1",
      "sampling.top_p=2.0: a number above 0 and at most 1 (1: all tokens)"]
