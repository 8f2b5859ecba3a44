"""What is claimed of branching, of replay and of training over several turns: three seeds, -m slow.

Figures are printed whatever they are. What is a claim about a method's aim and not about its
arithmetic is printed as shown or not shown, and what must hold of any run is asserted; the
recipes' docstrings repeat the figures.
"""

import json

import numpy as np
import pytest

from entrolab import config
from entrolab.trainer import loop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("libraries_promote")]
SEEDS = (0, 1, 2)


def trained(name, folder, *knobs, overrides=()):
  """[(steps' metrics, evaluations)], one a seed; evaluations[0] is before training."""
  runs = []
  for seed in SEEDS:
    made = config.load(f"experiments/{name}.py:{','.join((*knobs, f'seed={seed}'))}",
                       ("mesh.data=1", *overrides))
    loop.run(made, folder / str(seed))
    rows = [json.loads(line) for line in (folder / str(seed) / "metrics.jsonl").read_text()
            .splitlines()]
    runs.append(([r for r in rows if "train/loss" in r], [r for r in rows if "eval/pass@1" in r]))
  return runs


def evaluated(runs, name, at=-1):
  """A metric of an evaluation, one a seed."""
  return np.asarray([run[1][at][name] for run in runs])


def column(runs, name):
  """[seeds, steps] of a metric."""
  return np.asarray([[row[name] for row in run[0]] for run in runs])


def verdict(more):
  """Whether the mean over seeds of a difference is above its standard error."""
  error = more.std(ddof=1) / np.sqrt(len(SEEDS))
  return (f"difference {more.mean():.4f} with a standard error of {error:.4f}: "
          f"{'shown' if more.mean() > error else 'NOT shown'}")


def test_a_gated_warm_start_against_sparse_reward_on_a_form_of_seven_fields(tmp_path, capsys):
  """QWeb: at six fields and more, reward for the whole alone teaches nothing."""
  sparse = trained("form_curriculum", tmp_path / "sparse", "sparse=true")
  gated = trained("form_curriculum", tmp_path / "gated")
  right = [evaluated(runs, "eval/pass@1", at) for runs in (sparse, gated) for at in (0, -1)]
  with capsys.disabled():
    print("\nform of seven fields, pass@1 on empty forms before -> after: sparse {} -> {}, gated "
          "{} -> {}".format(*(np.round(r, 3) for r in right)),
          f"right episodes in sparse training {column(sparse, 'reward/mean').mean(1)}; last level "
          f"of the gate {column(gated, 'control/level')[:, -1]}: "
          f"{verdict(right[3] - right[1])}")
  assert (column(sparse, "control/level") == 7).all()
  assert (np.diff(column(gated, "control/level"), axis=1) >= 0).all()
  assert right[3].mean() > right[1].mean()


def test_the_corridor_against_the_plain_bonus_on_the_text_world(tmp_path, capsys):
  """EPO: entropy varies less over the steps with the corridor than with the bonus alone."""
  with_it = trained("epo", tmp_path / "corridor")
  without = trained("epo", tmp_path / "bonus", "alpha=0.0")
  a, b = (column(runs, "entropy/exact") for runs in (with_it, without))
  below = a[:, 1:] <= 2.0 * np.cumsum(a, 1)[:, :-1] / np.arange(1, a.shape[1])
  with capsys.disabled():
    print(f"\nentropy over {a.shape[1]} steps on the text world, standard deviation: corridor "
          f"{a.std(1).mean():.4f} {np.round(a.std(1), 4)}, plain bonus {b.std(1).mean():.4f} "
          f"{np.round(b.std(1), 4)}; last entropy {np.round(a[:, -1], 3)}, "
          f"{np.round(b[:, -1], 3)}; pass@1 {np.round(evaluated(with_it, 'eval/pass@1', 0), 3)} -> "
          f"{np.round(evaluated(with_it, 'eval/pass@1'), 3)}, "
          f"{np.round(evaluated(without, 'eval/pass@1'), 3)}: "
          f"{verdict(b.std(1) - a.std(1))}")
  assert np.isfinite(a).all() and below.all()  # the mean stays below the corridor's upper bound
  assert (column(without, "term/epo.corridor") == 0.0).all()
  assert (column(with_it, "term/epo.corridor")[:, 1:] > 0.0).all()


def at_tokens(runs, name, tokens):
  """A metric of evaluations, interpolated at one number of sampled tokens, one a seed."""
  return np.asarray([np.interp(tokens, [e["tokens"] for e in run[1]], [e[name] for e in run[1]])
                     for run in runs])


def test_branching_keeps_more_entropy_than_plain_sampling_at_equal_tokens(tmp_path, capsys):
  """CURE, stage 1 against its own stage 2, which is DAPO; held-out entropy."""
  often = ("evaluation.every=10", "evaluation.problems=32", "training.measure_every=0")
  knobs = ("steps=40", "refills=0")  # a refill costs tokens and changes what is learned from
  branching = trained("cure", tmp_path / "cure", "until=40", *knobs, overrides=often)
  plain = trained("cure", tmp_path / "plain", "until=0", *knobs, overrides=often)
  total = min(run[1][-1]["tokens"] for run in (*branching, *plain))
  ours, theirs = (at_tokens(runs, "eval/entropy", total) for runs in (branching, plain))
  with capsys.disabled():
    print(f"\nheld-out entropy after {total} sampled tokens: branching {ours.mean():.4f} "
          f"{np.round(ours, 4)}, plain {theirs.mean():.4f} {np.round(theirs, 4)}; after 40 steps "
          f"{np.round(evaluated(branching, 'eval/entropy'), 4)}, "
          f"{np.round(evaluated(plain, 'eval/entropy'), 4)}; pass@1 "
          f"{np.round(at_tokens(branching, 'eval/pass@1', total), 3)}, "
          f"{np.round(at_tokens(plain, 'eval/pass@1', total), 3)}: "
          f"{verdict(ours - theirs)}")
  assert all(run[0][0]["rollout/reused_tokens"] > 0 for run in branching)
  assert all(row["rollout/reused_tokens"] == 0 for run in plain for row in run[0])


def test_self_imitation_with_replay_and_without(tmp_path, capsys):
  """SPEAR: what replayed trajectories do to entropy and accuracy."""
  less = ("evaluation.problems=64", "training.measure_every=0")
  knobs = ("steps=40", "imitation=20")
  replay = trained("spear", tmp_path / "replay", *knobs, overrides=less)
  without = trained("spear", tmp_path / "without", "strength=0.0", *knobs, overrides=less)
  with capsys.disabled():
    for name in ("eval/entropy", "eval/pass@1", "eval/pass@16"):
      a, b = evaluated(replay, name), evaluated(without, name)
      print(f"\n{name} after 40 steps: with replay {a.mean():.4f} {np.round(a, 4)}, without "
            f"{b.mean():.4f} {np.round(b, 4)}; more with it: {verdict(a - b)}", end="")
    print(f"; steps with a replay {(column(replay, 'rollout/replayed') > 0).sum(1)}")
  assert (column(replay, "rollout/replayed").max(1) > 0).all()
  assert (column(without, "control/sil_weight") == 0.0).all()
