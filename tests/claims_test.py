"""What the papers claim and a small model can show: the embedded model, three seeds, -m slow.

Each claim is `left > right` of one figure under two settings: the mean over seeds of the difference
is above its standard error. One that was not seen at this size is measured and printed all the
same, and expected to fail; the recipe's docstring says so. Claims on tabular policies, which are
exact and fast, stand with their method in tests/methods.
"""

import dataclasses
import json

import numpy as np
import pytest

from entrolab import config
from entrolab.trainer import loop

pytestmark = pytest.mark.usefixtures("libraries_promote")

SEEDS, STEPS = (0, 1, 2), 40
LAST = 10  # steps at the end over which a figure is averaged


@dataclasses.dataclass(frozen=True)
class Claim:
  """left and right are configurations; figure is a metric of the steps; shown: at this size."""
  left: str
  right: str
  figure: str = "entropy/exact"
  source: str = ""
  shown: bool = True


CLAIMS = [
    Claim("siren", "toy", source="SIREN keeps more entropy than GRPO"),
    Claim("clip_cov", "toy", source="Clip-Cov keeps more entropy than GRPO"),
    Claim("kl_cov", "toy", source="KL-Cov keeps more entropy than GRPO"),
    Claim("entropy_bonus", "toy", source="the bonus keeps more entropy than GRPO"),
    Claim("steer", "toy", source="STEER keeps more entropy than GRPO"),
    Claim("ent_adv", "toy", shown=False,
          source="entropy in the advantage keeps more entropy than GRPO"),
    Claim("highent_tokens", "highent_tokens:keep=rest", figure="reward/mean",
          source="a fifth of the tokens teaches more than the rest", shown=False),
    Claim("nsr", "nsr:part=positive", source="NSR keeps more entropy than PSR"),
    Claim("canon:mu=0.0", "canon:mu=1.0", source="the intra-group part keeps entropy, "
          "the inter-group part spends it", shown=False),
    Claim("pear:alpha=0.0", "pear:alpha=1.0", figure="response_length/mean",
          source="PEAR shortens responses", shown=False),
    Claim("t1:alpha=0.03", "t1:alpha=0.0", source="more bonus, more entropy"),
    Claim("t1:samples=16", "t1:samples=4", source="more samples a prompt keep more entropy",
          shown=False),
    Claim("one_shot:entropy=0.01", "one_shot:entropy=0.0", source="the entropy term of one-shot "
          "RLVR raises entropy", shown=False),
    Claim("entropy_sft", "entropy_sft:fraction=1.0", source="Entropy-SFT keeps more entropy than "
          "plain fine-tuning"),
    Claim("soft_q:alpha=0.3", "soft_q:alpha=0.03", source="alpha of soft Q sets the entropy"),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  """(setting, figure) -> one number a seed; a setting is trained once."""
  folders = {}

  def figures(setting, figure):
    if setting not in folders:
      name, _, knobs = setting.partition(":")
      folders[setting] = []
      for seed in SEEDS:
        folder = tmp_path_factory.mktemp(name)
        own = ",".join(filter(None, (knobs, f"seed={seed}")))
        loop.run(config.load(f"experiments/{name}.py:{own}", (
            f"training.steps={STEPS}", "training.measure_every=0", "evaluation.problems=32",
            "mesh.data=1")), folder)
        folders[setting].append(folder)
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
            for f in folders[setting]]
    return np.asarray([np.mean([r[figure] for r in run if figure in r][-LAST:]) for run in rows])

  return figures


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"{c.left}>{c.right}")
def test_claims_on_the_embedded_model(claim, measured, capsys):
  left, right = (measured(setting, claim.figure) for setting in (claim.left, claim.right))
  more = left - right
  error = more.std(ddof=1) / np.sqrt(len(SEEDS))
  holds = bool(more.mean() > error)
  said = (f"{claim.source}: {claim.figure} {claim.left} {left.mean():.4f} {np.round(left, 4)}, "
          f"{claim.right} {right.mean():.4f} {np.round(right, 4)}, difference {more.mean():.4f} "
          f"with a standard error of {error:.4f}: {'shown' if holds else 'NOT shown'}")
  with capsys.disabled():
    print(f"\n{said}")
  if not (holds or claim.shown):
    pytest.xfail(said)
  assert holds, said
