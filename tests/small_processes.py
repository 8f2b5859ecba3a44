"""A run of a tiny decoder in one process of a job, or in the only one, for `row_groups_test`.

  python -m tests.small_processes OUT data,fsdp,tensor ORDER CASE...

writes to OUT.CASE.PROCESS.npz what a case computes in its steps: columns of all rows, texts and
verdicts, parameters, what the strategy remembers, and how much this process verified. ORDER
permutes the devices, as the torus of a slice does; `-` leaves them as they are.
"""

import dataclasses
import faulthandler
import json
import pathlib
import sys

import jax
import numpy as np

from entrolab import row_groups, sharding
from entrolab.cost import chips
from entrolab.experiment import Evaluation, Experiment, Mesh, Training
from entrolab.methods import grpo, ppo, spear
from entrolab.methods.aepo_agentic import Branching
from entrolab.models import parameters, transformer
from entrolab.models.cloned import Words
from entrolab.objective import Objective, term
from entrolab.rollout.agentic import Agentic
from entrolab.rollout.branch import Cure, visible
from entrolab.rollout.greedy import Greedy
from entrolab.rollout.multiturn import MultiTurn
from entrolab.rollout.plain import Plain
from entrolab.rollout.replay import Replay
from entrolab.rollout.sft import SFT
from entrolab.rollout.strategy import Sampling
from entrolab.rollout.tempered import Tempered
from entrolab.rollout.votes import Votes
from entrolab.tasks.task import Example, Lazy, Task
from entrolab.trainer import files, loop
from entrolab.trainer.step import Lab, train_step
from entrolab.verify import Verdict

WORDS = ("go", "at", "one", "two", "three", "home")
PROMPTS, SAMPLES = 8, 2
HANGS_S = 1700  # after which a process says where it stands, and ends


@dataclasses.dataclass(frozen=True)
class Random:
  """Random weights over a few words."""

  def load(self):
    words = Words(WORDS)
    config = transformer.Config(vocab_size=words.vocab_size, width=16, layers=1, heads=4,
                                kv_heads=4, head_dim=4, mlp_width=16)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(0.0, 0.5, x.shape).astype(np.float32),
                          parameters.shapes(config))
    return config, params, words


@dataclasses.dataclass(frozen=True)
class Says(Task):
  """Right is what contains a word; verified in whichever process is asked, and counted there."""
  max_prompt: int = 3
  stop: tuple[str, ...] = ("home",)

  def examples(self, split, seed):
    make = lambda at: Example(at, " ".join(WORDS[1:2 + at % 3]), WORDS[at % 4], split)
    return Lazy(512, make, f"{self!r} {split}")

  def prompt(self, example, tokenizer):
    return tokenizer.encode(example.prompt)

  def solution(self, example):
    return f"two {example.answer}" if example.id % 3 else "three"

  def verify(self, texts, examples):
    verified.append(len(texts))
    return [Verdict("right" if example.answer in text.split() else "wrong", f"of {text!r}")
            for text, example in zip(texts, examples, strict=True)]


@dataclasses.dataclass(frozen=True)
class Walk(Says):
  """Steps on until `go` was said three times; answered by whichever process is asked."""
  max_observation: int = 2

  def as_environment(self):
    return self

  def reset(self, example):
    return 0, example.prompt

  def steps(self, states, texts):
    verified.append(len(texts))
    moved = [state + text.split().count("go") for state, text in zip(states, texts, strict=True)]
    return [(state, "at" if state % 2 else "at one", float(state > 2), state > 2)
            for state in moved]


verified: list[int] = []  # responses, or actions, of every call in this process
CASES = {
    "given": (SFT(), dict(samples=1)),
    "plain": (Plain(), {}),
    "refills": (Plain(), dict(refills=2)),
    "ahead": (Plain(), dict(ahead=1)),
    "cure": (Cure(1, 1, most=4, admissible=visible, verify="whole"), dict(refills=1)),
    "replay": (Replay(buffer=spear.Replay(size=1, tools=False), prompts=8), dict(refills=1)),
    "greedy": (Greedy(), {}),
    "tempered": (Tempered(one_in=1), {}),
    "votes": (Votes(votes=4, size=2), {}),
    "episodes": (MultiTurn(turns=3, action=3), dict(max_tokens=16)),
    "trees": (Agentic(turns=3, action=3, initial=2, rule=Branching(
        samples=4, beam=2, calls=2, scope="own")), dict(max_tokens=16, samples=4)),
}
CONTROLLED = {"tempered": {"temperature": 1.5}}
STEPS = {"plain": 1, "replay": 4}  # a replay comes once there is enough to choose from


def experiment(case, mesh):
  strategy, changed = CASES[case]
  sampling = Sampling(**{"prompts": PROMPTS, "samples": SAMPLES, "max_tokens": 5, **changed})
  objective = Objective(reward=term(grpo.outcome),
                        advantage=term(grpo.group_advantage, size=sampling.samples),
                        surrogate=term(ppo.clipped_ratio, low=0.2, high=0.2))
  task = Walk() if case in ("episodes", "trees") else Says()
  return Experiment(
      case, objective, Random(), task, strategy, sampling,
      Training(steps=2, updates=2, warmup=0, measure_every=0, old_logp="sampler"),
      Evaluation(problems=5, samples=2, ks=(1, 2)), mesh=Mesh(*mesh))


def known_chip(devices):
  """In place of `chips.of`, which measures this machine."""
  del devices
  return chips.get("v5e")


def rows_of(lab, step, rollout):
  """What is known of the rows of a step: columns, what is said of them, and their updates."""
  found = {f"{step}.{name}": x for name, x in
           row_groups.everywhere(rollout.batch.columns()).items()}
  known = lab.groups.of_all([(example.id, text, verdict.status, verdict.why) for
                             example, text, verdict in zip(rollout.examples, rollout.texts,
                                                           rollout.verdicts, strict=True)])
  found[f"{step}.known"] = np.asarray(json.dumps(known))
  for update in range(2):
    chosen = lab.learner.select(rollout.batch, np.int32(update))
    found[f"{step}.selected.{update}"] = row_groups.everywhere(chosen.row)
  return found


def given(mesh):
  """Demonstrations, which nobody draws: read, verified, dealt into updates; their log-probs."""
  verified.clear()
  lab = Lab(experiment("given", mesh))
  state = lab.learner.init(lab.params)
  rollout = lab.rollout(state, 0)
  logp = lab.learner.forward(state.params, rollout.batch, ("logp",))["logp"]
  return {**rows_of(lab, 0, rollout), "logp": row_groups.everywhere(logp),
          "verified": np.asarray(sum(verified))}


def folders(out):
  """What a process says to a folder that all share, and to one of its own."""
  files.SEEN_S = 1
  files.check_shared(out.with_name("shared"))
  try:
    files.check_shared(out.with_name(f"own{jax.process_index()}"))
  except OSError as error:
    return {"said": np.asarray(str(error))}
  return {"said": np.asarray("")}


def dry_run(mesh, out):
  """A step with evaluations and a checkpoint, in a folder that is thrown away."""
  loop.dry_run(experiment("plain", mesh), out.with_name("run"))
  return {}


def computed(case, mesh, folder):
  """{name: array} of what a case computes in its steps: in every process the same, but for
  `verified`."""
  verified.clear()
  lab = Lab(experiment(case, mesh))
  state = lab.learner.init(lab.params)
  control = {name: np.float32(x) for name, x in CONTROLLED.get(case, {}).items()}
  state = dataclasses.replace(state, control={**state.control, **control})
  found = {}
  for step in range(STEPS.get(case, 2)):
    state, rollout, shown = train_step(lab, state, step, folder)
    found |= rows_of(lab, step, rollout)
    found |= {f"{step}.metric.{name}": shown[name] for name in
              ("train/loss", "train/grad_norm", "reward/accuracy", "rollout/refills")}
    found |= {f"{step}.count.{name}": np.asarray(x) for name, x in rollout.counts.items()}
  params = row_groups.everywhere(state.params)
  found |= {f"param.{jax.tree_util.keystr(path)}": x for path, x in
            jax.tree_util.tree_leaves_with_path(params)}
  found |= {f"host.{name}": x for name, x in lab.host.items()}
  found["verified"] = np.asarray(sum(verified))
  return found


def main():
  """One process of a job."""
  out, mesh, order, *cases = sys.argv[1:]
  faulthandler.dump_traceback_later(HANGS_S, exit=True)
  sharding.start_hosts()
  if order != "-":
    arranged = sharding.arranged
    by = [int(at) for at in order.split(",")]
    sharding.arranged = lambda sizes, devices: arranged(sizes, [devices[at] for at in by])
  chips.of = known_chip
  sizes = tuple(int(size) for size in mesh.split(","))
  here = pathlib.Path(out)
  special = {"given": lambda: given(sizes), "folders": lambda: folders(here),
             "dry_run": lambda: dry_run(sizes, here)}
  for case in cases:
    found = special[case]() if case in special else computed(case, sizes, here.parent)
    np.savez(f"{out}.{case}.{jax.process_index()}.npz", allow_pickle=False, **found)


if __name__ == "__main__":
  main()
