"""Experiments from files: knobs, overrides, identity, and errors with the choices."""

import dataclasses
import json
import pathlib

import pytest

from entrolab import config, presets
from entrolab.experiment import Experiment
from entrolab.trainer import explain
from entrolab.verify import choice

SIREN = "experiments/siren.py"


def test_knobs_and_overrides_reach_their_leaves():
  made = config.load(f"{SIREN}:beta=1e-3,seed=3", ("training.lr=1e-5", "sampling.prompts=16",
                                                   "evaluation.ks=(1, 4)", "task.highest=9"))
  assert isinstance(made, Experiment)
  assert made.objective.penalties[0].beta == 1e-3 and made.seed == 3
  assert made.training.lr == 1e-5 and made.sampling.prompts == 16
  assert made.evaluation.ks == (1, 4) and made.task.highest == 9


@pytest.mark.parametrize("text, overrides, said", [
    (f"{SIREN}:bta=1", (), "unknown knob 'bta'; did you mean 'beta'"),
    (f"{SIREN}:beta=much", (), "beta='much': needs a value like 0.5 (float)"),
    (f"{SIREN}:preset=tinny", (), "preset 'tinny': did you mean 'tiny'"),
    (SIREN, ("training.lrr=1",), "--set training.lrr: no such name; did you mean 'lr'"),
    (SIREN, ("train.lr=1",), "--set train: no such name; did you mean 'training'"),
    (SIREN, ("training=1",), "has parts; choices: training.steps"),
    (SIREN, ("training.lr.x=1",), "which has no parts"),
    (SIREN, ("training.lr",), "write path=value"),
    (SIREN, ("training.updates=5",), "does not divide 32 prompts"),
    (SIREN, ("training.micro=7",), "does not divide an update of 64 rows"),
    (SIREN, ("training.steps=1.5",), "needs a value like 60 (int)"),
    (SIREN, ("evaluation.samples=4",), "pass@8 needs at least that many samples"),
    ("experiments/canon.py:metric=size", (), "metric='size'; choices: entropy, length"),
    ("experiments/canon.py:schedule=cosin", (), "did you mean 'cosine'? choices: none, accuracy"),
    ("experiments/cure.py:cuts=word", (), "cuts='word'; did you mean 'words'? choices: words, "),
    ("experiments/grpo.py:norm=mean", (), "norm='mean'; choices: std, none"),
    ("experiments/cure.py", ("sampling.samples=10",), "choices: multiples of 4"),
    (SIREN, ("task.smallest=9",), "smallest <= largest"),
])
def test_wrong_values_stop_with_the_place_and_the_choices(text, overrides, said):
  with pytest.raises((ValueError, TypeError)) as caught:
    config.load(text, overrides)
  assert said in str(caught.value)


def test_missing_files_are_named():
  with pytest.raises(FileNotFoundError, match="did you mean 'experiments/siren.py'"):
    config.load("experiments/sirene.py")


def test_a_file_without_an_experiment_is_refused(tmp_path):
  (tmp_path / "empty.py").write_text("x = 1\n")
  with pytest.raises(TypeError, match="defines no get_config"):
    config.load(str(tmp_path / "empty.py"))


def test_identity_is_that_of_the_mathematics():
  base = config.load(SIREN)
  same = config.load(SIREN, ("saving.every=3", "evaluation.problems=8", "training.steps=9",
                             "mesh.data=1"))
  assert config.config_hash(base) == config.config_hash(same)
  for leaf in ("training.lr=1e-4", "seed=1", "sampling.temperature=0.9", "task.highest=9"):
    assert config.config_hash(base) != config.config_hash(config.load(SIREN, (leaf,))), leaf
  assert config.config_hash(base) != config.config_hash(config.load(f"{SIREN}:beta=0.4"))
  with_schedule = ("training.schedule=cosine",)
  assert config.config_hash(config.load(SIREN, with_schedule)) != config.config_hash(
      config.load(SIREN, (*with_schedule, "training.steps=9")))
  changed = config.diff(config.mathematics(base), config.mathematics(config.load(
      f"{SIREN}:beta=0.4", ("training.lr=1.0",))))
  assert [c.split(":")[0] for c in changed] == ["objective.penalties.0.beta", "training.lr"]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_makes_an_experiment(name):
  made = config.load(f"experiments/toy.py:preset={name}")
  assert made.sampling.samples == 8
  config.config_hash(made)


def test_explain_names_what_cannot_act():
  one = ("training.updates=1",)
  said = " ".join(explain.warnings(config.load("experiments/kl_cov.py", one)))
  assert "kl_cov.distance is identically zero with one update a rollout" in said
  assert "kl_cov" not in " ".join(explain.warnings(config.load("experiments/kl_cov.py")))
  said = " ".join(explain.warnings(config.load("experiments/clip_cov.py:fraction=2e-4")))
  assert "selects less than one of at most 1152 tokens of an update" in said
  ratio = "every ratio is exactly 1"
  assert ratio in " ".join(explain.warnings(config.load("experiments/toy.py", one)))
  for other in (("training.old_logp=sampler",), ("training.updates=2",)):
    assert ratio not in " ".join(explain.warnings(config.load("experiments/toy.py",
                                                              (*one, *other))))
  toy = config.load("experiments/toy.py")
  assert explain.rates(toy.training) == (
      "learning rate: 0 at the first of 240 updates, which moves nothing, 5e-05 after 20, then "
      "constant")
  falling = dataclasses.replace(toy.training, warmup=0, schedule="linear")
  assert explain.rates(falling) == ("learning rate: 5e-05 from the first update, falling to 0 "
                                    "(linear)")
  single = dataclasses.replace(toy.sampling, samples=1)
  objective = dataclasses.replace(toy.objective, advantage=())
  made = dataclasses.replace(toy, sampling=single, objective=objective)
  assert "groups of size 1" in " ".join(explain.warnings(made))


@pytest.mark.parametrize("recipe, overrides, said", [
    ("toy", ("sampling.temperature=0.5",), "sampling.temperature=0.5: responses are drawn from "
     "another distribution than the one that is learned, which has temperature 1 and all tokens"),
    ("toy", ("sampling.temperature=0",), "sampling.temperature=0: "),
    ("toy", ("sampling.top_p=0.9", "sampling.top_k=5"), "sampling.top_p=0.9, sampling.top_k=5: "),
    ("toy", ("objective.vocab.temperature=0.5",), "sampling.temperature=1: "),
    ("t1", (), "sampling.temperature=1.2: "),
    ("toy", (), None), ("siren", (), None),
    ("toy", ("sampling.temperature=0.5", "objective.vocab.temperature=0.5"), None),
    # of what is only measured
    ("toy", ("evaluation.temperature=0.6", "evaluation.top_p=0.7"), None),
    ("siren:preset=qwen2.5-math-7b", (), None)])
def test_sampling_from_another_distribution_than_the_learned_one_is_said(recipe, overrides, said):
  name, _, knobs = recipe.partition(":")
  notes = explain.warnings(config.load(f"experiments/{name}.py:{knobs}", overrides))
  found = [note for note in notes if "another distribution" in note]
  assert bool(found) == (said is not None)
  assert said is None or found[0].startswith(said)


HASHES = pathlib.Path(__file__).parent / "golden/config_hashes.json"


def hashes():
  """The identity of every recipe, and of the toy run in every preset."""
  recipes = sorted(pathlib.Path("experiments").glob("*.py"))
  found = {path.stem: config.config_hash(config.load(str(path))) for path in recipes}
  return found | {f"toy:preset={name}": config.config_hash(
      config.load(f"experiments/toy.py:preset={name}")) for name in presets.PRESETS}


def test_identities_do_not_change_when_code_moves():
  """Checkpoints know a run by these. A commit that changes one says which, and why:
  `python -m tests.config_test` writes them anew."""
  assert hashes() == json.loads(HASHES.read_text())


def test_functions_of_one_name_in_two_files_are_told_apart():
  first, second = (config.load("experiments/toy.py:preset=smollm2-gsm8k") for _ in range(2))
  other = dataclasses.replace(second, task=dataclasses.replace(second.task,
                                                               verifier=choice.verify))
  assert config.config_hash(first) != config.config_hash(other)
  assert "format=written.chat, verifier=math.verify" in repr(first.task)


if __name__ == "__main__":
  HASHES.write_text(json.dumps(hashes(), indent=1, sort_keys=True) + "\n")
