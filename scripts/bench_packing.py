"""Measures an optimiser step and a forward pass over its rows, padded against packed.

  python scripts/bench_packing.py [--recipe grpo] [--rounds 15] [--micro 1 4] [--max_tokens 112]
                                  [--mix rollout made]

The tiny preset's model, 64 rows an update, on two mixes of lengths: rows of a real rollout of the
preset, and responses of geometric lengths whose mean is 0.4 of max_tokens. The forms take turns,
round by round; a packed step includes its plan. Milliseconds of the wall and of the processor (all
threads: for a machine that others use), medians over rounds; ratios are medians of the ratios
within a round. Prints a table, then one JSON line.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from entrolab import config  # noqa: E402
from entrolab.trainer import loop  # noqa: E402
from entrolab.trainer.learner import BEFORE, Learner  # noqa: E402

PROMPT, MEAN = 16, 0.4


def drawn(lab: loop.Lab):
  """Rows of the first update of a real rollout."""
  state = lab.learner.init(lab.params)
  batch = lab.rollout(state, 0).batch
  batch = batch.replace(ref_logp=batch.old_logp)
  return lab.learner.select(lab.learner.prepare(batch, state), np.int32(0))


def made(like, max_tokens: int):
  """As many rows of random tokens: prompts of half to all of PROMPT, responses as above."""
  rng, count = np.random.default_rng(0), like.tokens.shape[0]
  lengths = np.minimum(rng.geometric(1.0 / (1.0 + max_tokens * MEAN * 1.25), count), max_tokens)
  while abs(lengths.mean() / max_tokens - MEAN) > 0.01:
    lengths = np.minimum(rng.geometric(1.0 / (1.0 + max_tokens * MEAN * 1.25), count), max_tokens)
  prompts = rng.integers(PROMPT // 2, PROMPT + 1, count)
  shape = (count, max_tokens)
  real = jnp.asarray(-rng.exponential(size=shape), jnp.float32)
  mask = jnp.asarray(np.arange(max_tokens) < lengths[:, None])
  return like.replace(
      prompt=jnp.asarray(rng.integers(3, 100, (count, PROMPT)), jnp.int32),
      prompt_mask=jnp.asarray(np.arange(PROMPT) >= PROMPT - prompts[:, None]),
      tokens=jnp.asarray(rng.integers(3, 100, shape), jnp.int32), mask=mask, old_logp=real,
      old_entropy=-real, sampled_logp=real, ref_logp=real,
      adv=jnp.where(mask, jnp.asarray(rng.normal(size=(count, 1)), jnp.float32), 0.0))


def runs(learner: Learner, params, batch, micro: int):
  """{what: a function that does it once}."""
  box = [learner.init(params)]

  def step():
    plan, _ = learner.plan(batch, micro)
    box[0], _ = learner.step(box[0], batch, plan)
    jax.block_until_ready(box[0].params)

  def forward():
    plan, _ = learner.plan(batch, micro)
    jax.block_until_ready(learner.forward(box[0].params, batch, BEFORE, plan))

  return {"step": step, "forward": forward}


def measured(variants: dict[str, dict], rounds: int) -> list[dict]:
  """A row for each thing that all variants do."""
  rows = []
  for what in variants["padded"]:
    seen: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
      for name, fns in variants.items():
        wall, processor = time.perf_counter(), time.process_time()
        fns[what]()
        if number:  # the first compiles
          seen.setdefault((name, "wall"), []).append(time.perf_counter() - wall)
          seen.setdefault((name, "cpu"), []).append(time.process_time() - processor)
    row: dict = {"what": what}
    for clock in ("wall", "cpu"):
      for name in variants:
        row[f"{name} {clock} ms"] = 1e3 * statistics.median(seen[name, clock])
      pairs = zip(seen["packed", clock], seen["padded", clock], strict=True)
      row[f"{clock} ratio"] = statistics.median(a / b for a, b in pairs)
    rows.append(row)
  return rows


def main() -> None:
  """Builds both forms for every mix and number of micro-batches, and lets them take turns."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--recipe", default="grpo")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--micro", type=int, nargs="+", default=[1, 4])
  parser.add_argument("--mix", nargs="+", choices=("rollout", "made"), default=["rollout", "made"])
  parser.add_argument("--max_tokens", type=int, default=112, help="T of the made mix")
  args = parser.parse_args()
  base = config.load(str(ROOT / f"experiments/{args.recipe}.py"), ("mesh.data=1",))
  lab = loop.Lab(base)
  rollout, found = drawn(lab), []
  for micro in args.micro:
    for mix in args.mix:
      batch = rollout if mix == "rollout" else made(rollout, args.max_tokens)
      variants, facts = {}, {}
      for name in ("padded", "packed"):
        learn = dataclasses.replace(base.training, updates=1, micro=micro,
                                    packing=name == "packed")
        learner = Learner(dataclasses.replace(base, training=learn), lab.config, lab.mesh)
        plan, share = learner.plan(batch, micro)
        facts[f"{name} padding"] = share
        if plan is not None:
          facts["bins x width, list"] = f"{plan.bins} x {plan.width}, {plan.tokens}"
        variants[name] = runs(learner, lab.params, batch, micro)
      for row in measured(variants, args.rounds):
        found.append({"mix": mix, "micro": micro, **row, **facts})
        cells = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in found[-1].values()]
        if len(found) == 1:
          print("| " + " | ".join(found[-1]) + " |\n" + "|---" * len(cells) + "|")
        print("| " + " | ".join(cells) + " |", flush=True)
  print(json.dumps({"load": os.getloadavg()[0], "rows": found}))


if __name__ == "__main__":
  main()
