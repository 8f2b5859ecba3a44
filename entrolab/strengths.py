"""The strengths of methods: hyper-parameters of recipes that depend on the preset.

The rule: a hyper-parameter that nobody gives has the value of its preset. Presets of small models
have the values that were tuned there; presets of papers' models have those of the paper or of its
official code, each with its source. Where no source states a value (`paper` is None), both have
ours, and `source` says so.
"""

import dataclasses
from typing import Any, Literal

Kind = Literal["tuned", "paper"]


@dataclasses.dataclass(frozen=True)
class Strength:
  """A hyper-parameter of a recipe and its two values, of one type."""
  tuned: Any  # on the embedded model
  paper: Any  # of the paper or its official code; None: not stated, so that `tuned` stands
  source: str  # file or section of `paper`, or why there is none


@dataclasses.dataclass(frozen=True)
class Taken:
  """A hyper-parameter as a recipe took it."""
  name: str  # of the recipe's knob
  value: Any  # that acts
  origin: str  # where it comes from, for --explain

  def __str__(self) -> str:
    return f"{self.name} = {self.value!r}, {self.origin}"


class Strengths(dict[str, Any]):
  """The hyper-parameters of a recipe by name, also as attributes: `k.beta`."""
  taken: tuple[Taken, ...]  # what --explain says of them

  def __init__(self, taken: tuple[Taken, ...]):
    super().__init__({entry.name: entry.value for entry in taken})
    self.taken = taken

  def __getattr__(self, name: str) -> Any:
    if name not in self:
      raise AttributeError(f"no hyper-parameter {name!r}; choices: {', '.join(self)}")
    return self[name]


def take(recipe: str, kind: Kind, given: dict[str, Any]) -> Strengths:
  """The hyper-parameters of a recipe: those given, and the preset's where the value is None.

  Raises TypeError where the names are not those of the table.
  """
  table = TABLE[recipe]
  if table.keys() != given.keys():
    raise TypeError(f"{recipe} asks for {', '.join(given)}; strengths.TABLE has {', '.join(table)}")
  return Strengths(tuple(_taken(name, strength, kind, given[name])
                         for name, strength in table.items()))


def _taken(name: str, strength: Strength, kind: Kind, given: Any) -> Taken:
  """The value that acts, and where it comes from."""
  stated = strength.paper is not None
  published = f"published {strength.paper!r}: " if stated else "no published value: "
  if given is not None:
    return Taken(name, given, f"given ({published}{strength.source})")
  if kind == "paper" and stated:
    return Taken(name, strength.paper, f"published, {strength.source}")
  ours = "ours" if kind == "paper" else "tuned on the embedded model"
  return Taken(name, strength.tuned, f"{ours} ({published}{strength.source})")


TABLE: dict[str, dict[str, Strength]] = {
    "aepo_agentic": {
        "initial": Strength(0, 8, "m of n = 16, scripts; 0 is the budget of section 3.2"),
        "penalty": Strength(0.05, 0.05, "vllm_rollout_with_tools.py"),
        "coef": Strength(0.2, 0.2, "core_algos.py"),
        "high": Strength(0.2, 0.2, "ppo_trainer.yaml: clip_ratio_high")},
    "aepo_arbitrary": {
        "target": Strength(0.3, 0.5, "config.py: entropy_base"),
        "alpha": Strength(1.0, None, "the paper's alpha is not in the code"),
        "hot": Strength(1.2, 1.2, "config.py: T_high"),
        "cold": Strength(0.8, 0.8, "config.py: T_low")},
    "arpo": {
        "initial": Strength(4, 8, "scripts: m = 8 of n = 16"),
        "weight": Strength(0.2, 0.2, "scripts"),
        "probability": Strength(0.5, 0.5, "scripts")},
    "base_objectives": {
        "threshold": Strength(1e-3, 0.5, "OPSM, trl grpo_trainer.py: off_policy_mask_threshold")},
    "canon": {
        "mu": Strength(1.0, 1.0, "scripts/setups.sh"),
        "alpha": Strength(1.0, 1.0, "scripts/setups.sh")},
    "clip_cov": {
        "fraction": Strength(0.02, 2e-4, "7b_clip_cov.sh: clip_cov_ratio"),
        "lower": Strength(0.1, 1.0, "7b_clip_cov.sh: clip_cov_lb"),
        "upper": Strength(5.0, 5.0, "7b_clip_cov.sh: clip_cov_ub"),
        "low": Strength(1.0, 1.0, "7b_clip_cov.sh: clip_ratio_low"),
        "high": Strength(1.0, 1.0, "7b_clip_cov.sh: clip_ratio_high")},
    "cure": {
        "originals": Strength(2, 4, "run_cure_stage_1.sh: n1, in groups of 16"),
        "branches": Strength(3, 3, "run_cure_stage_1.sh: n2"),
        "most": Strength(4, 20, "run_cure_stage_1.sh: critical_top_k"),
        "until": Strength(20, 300, "run_cure_stage_2.sh: its checkpoint is global_step_300"),
        "verify": Strength("whole", "continuation", "dapo_ray_trainer.py: rows of their own"),
        "cuts": Strength("signs", "words", "dapo_ray_trainer.py: decoded length above 1"),
        "refills": Strength(2, 9, "dapo_ray_trainer.py: at most 10 batches, the first included")},
    "dapo": {
        "high": Strength(0.28, 0.28, "docs/algo/dapo.md: clip_ratio_high"),
        "refills": Strength(2, 9, "docs/algo/dapo.md: max_num_gen_batches=10, the first included")},
    "empg": {
        "sharpness": Strength(1.0, 1.0, "ARLArena, core_algos.py: k"),
        "clarity": Strength(1.0, 1.0, "ARLArena, core_algos.py: k'"),
        "zeta": Strength(0.05, 0.05, "ARLArena, core_algos.py; 0.1 in its first revision")},
    "empo": {
        "low": Strength(-1.0, None, "equation 7 prints no bounds, and the code has no gate"),
        "high": Strength(1e9, None, "equation 7 prints no bounds, and the code has no gate")},
    "ent_adv": {
        "alpha": Strength(0.4, 0.4, "Linn3a/siren, dp_actor.py: the GRPO baseline"),
        "kappa": Strength(2.0, 2.0, "Linn3a/siren, dp_actor.py, first commit; 1 in a later one")},
    "entropy_bonus": {
        "beta": Strength(0.03, 1e-3, "ppo_trainer.yaml of NSR and One-shot RLVR: entropy_coeff"),
        "target": Strength(0.0, None, "0 keeps the coefficient fixed; no target is published "
                                      "that holds for another model")},
    "entropy_sft": {
        "fraction": Strength(0.8, 0.8, "coldstart/README"),
        "coef": Strength(0.8, 0.8, "coldstart/README")},
    "epo": {
        "strength": Strength(3e-3, 1e-3, "tables of the paper, ppo_trainer.yaml"),
        "low": Strength(0.0, 0.0, "tables of the paper, README"),
        "high": Strength(2.0, 2.0, "tables of the paper, README"),
        "alpha": Strength(1.0, 0.1, "tables of the paper: ALFWorld; 0.05 for ScienceWorld")},
    "grpo": {
        "beta": Strength(0.01, 1e-3, "verl actor.yaml: kl_loss_coef")},
    "gtpo": {
        "bonus": Strength(0.1, 0.1, "a replication plan that quotes the paper: a2, b2"),
        "floor": Strength(0.0, None, "the formulas have no floor")},
    "highent_tokens": {
        "fraction": Strength(0.2, 0.2, "run_only_top20_*.sh: entropy_top_ratio")},
    "kl_cov": {
        "fraction": Strength(0.02, 2e-3, "7b_kl_cov.sh: k_percent 0.2; 2e-4 for 32B"),
        "beta": Strength(1.0, 1.0, "7b_kl_cov.sh: ppo_kl_coef")},
    "light_if": {
        "beta": Strength(0.03, 1.0, "core_algos.py: the term has no further coefficient"),
        "alpha": Strength(10.0, 10.0, "core_algos.py: compute_entropy_with_cov"),
        "most": Strength(5.0, 5.0, "core_algos.py: compute_entropy_with_cov")},
    "nsr": {
        "positive": Strength(0.1, 0.1, "README: positive_advantage_weight")},
    "one_shot": {
        "pg": Strength(1.0, 1.0, "dp_actor.py"),
        "entropy": Strength(1e-3, 1e-3, "ppo_trainer.yaml, table 5 of the paper"),
        "kl_coef": Strength(1e-3, 1e-3, "training script")},
    "pear": {
        "alpha": Strength(1.0, 1.0, "ablation of the paper")},
    "qae": {
        "level": Strength(0.4, None, "K of the abstract's runs is not stated by a source at hand")},
    "siren": {
        "beta": Strength(0.5, 0.005, "exp_scripts/siren.sh: entropy_coeff, at T = 3072"),
        "top_p": Strength(0.8, 0.8, "dp_actor.py: entropy_topp"),
        "fraction": Strength(0.2, 0.2, "exp_scripts/siren.sh: mask_ratio = 1 - fraction")},
    "soft_q": {
        "alpha": Strength(0.1, None, "the paper has no language model")},
    "spear": {
        "size": Strength(64, 2048, "README, scripts: N_D"),
        "tolerance": Strength(5, 5, "scripts: tolerate_steps"),
        "strength": Strength(1.0, 1.0, "scripts"),
        "imitation": Strength(50, 300, "scripts of its mathematics runs; 200 for its agents"),
        "fraction": Strength(0.02, 0.02, "README, scripts")},
    "spine": {
        "fraction": Strength(0.2, 0.2, "a summary of v1: rho"),
        "beta": Strength(0.01, None, "a summary of v1 does not state it, and there is no code"),
        "band": Strength(0.1, None, "a summary of v1 does not state it, and there is no code")},
    "steer": {
        "low": Strength(0.7, 0.8, "run_exp.sh, run_linear.sh: w_min")},
    "t1": {
        "samples": Strength(0, 64, "summaries of the paper: K"),
        "temperature": Strength(1.2, 1.2, "summaries of the paper"),
        "alpha": Strength(1e-3, None, "no source states the coefficient of the entropy"),
        "beta": Strength(2e-4, 2e-4, "a review of the paper"),
        "decay": Strength(0.99, None, "no source states the decay of the anchor")},
    "toy": {
        "low": Strength(0.2, 0.2, "verl actor.yaml: clip_ratio_low"),
        "high": Strength(0.2, 0.2, "verl actor.yaml: clip_ratio_high")},
    "ttrl": {
        "beta": Strength(1e-3, 1e-3, "aime.sh, ppo_trainer.yaml: kl_loss_coef")},
}
