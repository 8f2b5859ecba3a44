"""Presets carry the strengths of their kind: tuned on small models, else as published."""

import ast
import inspect
import json
import pathlib

import pytest

from entrolab import config, presets, strengths
from entrolab.trainer import explain

ROOT = pathlib.Path(__file__).resolve().parents[1]
# the defaults of papers and official code, copied from notes on them; null: no source states one
OFFICIAL = json.loads((ROOT / "tests/golden/official_defaults.json").read_text())
PAPERS = [name for name in presets.PRESETS if name.startswith(("qwen", "llama"))]
# what a recipe's knobs choose, which is no strength: variants, parts, and what follows others
STRUCTURE = {"preset", "seed", "steps", "turns", "fields", "index", "prompts", "labels", "sparse",
             "reference", "scope", "metric", "schedule", "choose", "form", "keep", "part", "norm",
             "mean", "objective", "above"}


def knobs(recipe):
  """The keyword arguments of a recipe's `get_config`."""
  tree = ast.parse((ROOT / f"experiments/{recipe}.py").read_text())
  made = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "get_config")
  return [argument.arg for argument in made.args.kwonlyargs]


RECIPES = {path.stem: knobs(path.stem) for path in sorted((ROOT / "experiments").glob("*.py"))}
WITH_PRESET = [recipe for recipe, names in RECIPES.items() if "preset" in names]


def test_every_recipe_with_a_preset_has_official_defaults():
  assert [*OFFICIAL] == WITH_PRESET
  for recipe, names in RECIPES.items():
    assert {*names} - STRUCTURE == {*strengths.TABLE.get(recipe, {})}, recipe
  for recipe, official in OFFICIAL.items():
    assert {*official} == {*strengths.TABLE[recipe]}, recipe


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("recipe", WITH_PRESET)
def test_papers_presets_have_the_official_defaults(recipe, name):
  path, official = f"experiments/{recipe}.py", OFFICIAL[recipe]
  made = config.load(f"{path}:preset={name}")
  taken = {entry.name: entry.value for entry in made.taken}
  tuned = {knob: strength.tuned for knob, strength in strengths.TABLE[recipe].items()}
  want = {knob: tuned[knob] if value is None else value for knob, value in official.items()}
  assert taken == want
  # what is taken acts: the same run as with the official values written out
  given = ",".join(f"{knob}={value}" for knob, value in want.items())
  same = config.load(f"{path}:preset={name},{given}")
  assert config.config_hash(same) == config.config_hash(made)
  differing = {knob: value for knob, value in want.items() if value != tuned[knob]}
  if differing and recipe != "base_objectives":  # whose strength is of another objective
    other = config.load(f"{path}:preset={name}," + ",".join(
        f"{knob}={tuned[knob]}" for knob in differing))
    assert config.config_hash(other) != config.config_hash(made)


def test_what_review_found_is_gone():
  load = lambda recipe, **given: config.load(
      f"experiments/{recipe}.py:preset=qwen2.5-math-7b" + "".join(
      f",{knob}={value}" for knob, value in given.items()))
  assert load("siren").objective.penalties[0].beta == 0.005
  keep = load("clip_cov").objective.weights[0].values
  assert (keep["fraction"], keep["lower"]) == (2e-4, 1.0)
  penalty = load("kl_cov").objective.penalties[0]
  assert penalty.weight.values["fraction"] == 2e-3 and penalty.beta == 1.0
  assert load("base_objectives", objective="opsm").objective.weights[0].values["threshold"] == 0.5
  made = load("spear")
  assert made.rollout.buffer.size == 2048 and made.objective.control[0].imitation == 300
  assert made.rollout.prompts * made.sampling.samples == 2048
  made = load("cure")
  first = made.rollout.first
  assert (first.originals, first.branches, first.most, made.rollout.at) == (4, 3, 20, 300)
  assert made.sampling.samples == 16 and first.verify == "continuation"
  made = load("t1")
  assert made.sampling.samples == 64 and dict(made.objective.advantage[0].knobs)["size"] == 64


@pytest.mark.parametrize("name", ["tiny", "smollm2", "smollm2-gsm8k"])
@pytest.mark.parametrize("recipe", WITH_PRESET)
def test_small_presets_have_the_tuned_ones(recipe, name):
  made = config.load(f"experiments/{recipe}.py:preset={name}")
  assert {entry.name: entry.value for entry in made.taken} == {
      knob: strength.tuned for knob, strength in strengths.TABLE[recipe].items()}


def test_both_values_have_one_type_and_a_source():
  for recipe, table in strengths.TABLE.items():
    for knob, strength in table.items():
      assert strength.source, (recipe, knob)
      if strength.paper is not None:
        assert type(strength.paper) is type(strength.tuned), (recipe, knob)


def test_explain_prints_which_were_taken_and_from_where():
  shape = presets.get("tiny").model.load()[0]
  said = lambda text: explain.plan(config.load(text), shape)
  plan = said("experiments/siren.py:preset=qwen2.5-math-7b,fraction=0.3")
  assert "beta = 0.005, published, exp_scripts/siren.sh: entropy_coeff, at T = 3072" in plan
  assert "fraction = 0.3, given (published 0.2: exp_scripts/siren.sh: mask_ratio" in plan
  plan = said("experiments/siren.py")
  assert "beta = 0.5, tuned on the embedded model (published 0.005: " in plan
  plan = said("experiments/spine.py:preset=qwen3-8b")
  assert "band = 0.1, ours (no published value: a summary of v1 does not state it" in plan
  assert "strength = 0.003, tuned on the embedded model (published 0.001: " in said(
      "experiments/epo.py")


def test_what_was_taken_is_not_part_of_the_identity():
  made = config.load("experiments/siren.py")
  given = config.load("experiments/siren.py:beta=0.5")
  assert config.config_hash(made) == config.config_hash(given) and made.taken != given.taken


def test_a_value_of_zero_is_given():
  assert not config.load("experiments/grpo.py:beta=0.0").objective.penalties
  assert config.load("experiments/grpo.py:preset=qwen3-4b").objective.penalties[0].beta == 1e-3


def test_knobs_without_a_type_and_tables_without_a_knob_are_refused(tmp_path):
  (tmp_path / "mine.py").write_text("def get_config(*, beta=None):\n  return beta\n")
  with pytest.raises(TypeError, match="knob 'beta' of mine is None by default"):
    config.load(f"{tmp_path}/mine.py:beta=1")
  with pytest.raises(TypeError, match="siren asks for beta; strengths.TABLE has beta, top_p, frac"):
    presets.get("tiny").strengths("siren", beta=None)
  with pytest.raises(AttributeError, match="choices: beta, top_p, fraction"):
    presets.get("tiny").strengths("siren", beta=None, top_p=None, fraction=None).betta  # noqa: B018


def test_signatures_name_the_table():
  """A recipe whose knob is None by default asks its preset for it under its own name."""
  for recipe in strengths.TABLE:
    source = (ROOT / f"experiments/{recipe}.py").read_text()
    assert f'base.strengths("{recipe}"' in source
    assert inspect.cleandoc(source).count("| None = None") == len(strengths.TABLE[recipe]), recipe
