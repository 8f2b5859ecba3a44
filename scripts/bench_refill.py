"""Measures what refilled slots save beside whole batches, on responses of very different lengths.

  python scripts/bench_refill.py [--preset tiny|rl|smollm2|random135m] [--slots 32 ...]
                                 [--batches 8] [--max_tokens 64] [--rounds 5] [--one_thread]

The work: 8 responses to each prompt of 16 tokens, `batches` x `slots` rows; either `slots` rows as
a batch, one batch after another, or all of them through `slots` slots. A model with random
parameters draws about evenly, and 2.25 / `max_tokens` of its vocabulary ends a row. Lengths are
then geometric, cut at `max_tokens`, with a mean of about 0.4 of the maximum; of a trained model
they may differ, and the table says what they were. Both ways take turns in one process; the gain is
the median of the ratios within a round. Prints a table, then one JSON line.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
if "--one_thread" in sys.argv:  # read when jax starts
  os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import bench  # noqa: E402
import bench_cases  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from entrolab.models import transformer  # noqa: E402
from entrolab.rollout import continuous_batching, decode  # noqa: E402

SAMPLES, PROMPT = 8, 16
SMOLLM2 = transformer.Config(vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3,
                             head_dim=64, mlp_width=1536, rope_theta=1e5)


def model(preset: str):
  """(Config, params); random135m: the shapes of SmolLM2-135M, random parameters."""
  if preset != "random135m":
    return bench_cases.model(preset)
  return SMOLLM2, transformer.init(SMOLLM2, jax.random.key(0))


def ways(preset: str, slots: int, batches: int, max_tokens: int):
  """{name: (run, compile seconds, temporary MB)}; a run gives all its `Samples`."""
  shape, params = model(preset)
  rng, rows = np.random.default_rng(0), slots * batches
  prompt = rng.integers(0, shape.vocab_size, (rows // SAMPLES, PROMPT)).astype(np.int32)
  stop = rng.permutation(shape.vocab_size)[:round(2.25 / max_tokens * shape.vocab_size)]
  keys = jax.random.split(jax.random.key(0), rows)
  decoding = decode.Decoding.of(stop_ids=stop)
  found = {}
  for name, fn, size, more in (
      ("whole batches", decode.sample, slots, {}),
      ("refilled slots", continuous_batching.sample, rows, {"slots": slots})):
    parts = [(params, prompt[at // SAMPLES:(at + size) // SAMPLES],
              np.ones((size // SAMPLES, PROMPT), bool), keys[at:at + size], decoding)
             for at in range(0, rows, size)]
    begin = time.perf_counter()
    made = fn.lower(shape, *parts[0], samples=SAMPLES, max_tokens=max_tokens, **more).compile()
    run = lambda made=made, parts=parts: [jax.block_until_ready(made(*part)) for part in parts]
    found[name] = (run, time.perf_counter() - begin, bench_cases.temporaries(made))
  return found


def measure(args: argparse.Namespace, slots: int) -> list[dict]:
  """A row of the table for each way. Raises AssertionError where they draw other tokens."""
  clock = time.process_time if args.one_thread else time.perf_counter
  found, rows = ways(args.preset, slots, args.batches, args.max_tokens), []
  outs = {name: run() for name, (run, *_) in found.items()}  # the first runs are thrown away
  whole, once = (np.concatenate([np.where(x.mask, x.tokens, -1) for x in out])
                 for out in outs.values())
  assert (whole == once).all(), f"{int((whole != once).any(1).sum())} rows differ"
  length = (whole >= 0).sum(1)
  seconds = {name: [] for name in found}
  for _ in range(args.rounds):
    for name, (run, *_) in found.items():
      begin = clock()
      run()
      seconds[name].append(clock() - begin)
  for name, (_, compiled, temporary) in found.items():
    gain = [a / b for a, b in zip(seconds["whole batches"], seconds[name], strict=True)]
    rows.append({"slots": slots, "way": name, "mean / max length": length.mean() / length.max(),
                 "ticks": sum(int(x.steps) for x in outs[name]),
                 "tokens/s": float(length.sum()) / statistics.median(seconds[name]),
                 "gain": statistics.median(gain), "least": min(gain), "most": max(gain),
                 "compile s": compiled, "temp MB": temporary})
  return rows


def main() -> None:
  """Prints the table and the JSON line."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--preset", default="rl", choices=("tiny", "rl", "smollm2", "random135m"))
  parser.add_argument("--slots", type=int, nargs="+", default=[32], help="multiples of 8")
  parser.add_argument("--batches", type=int, default=8)
  parser.add_argument("--max_tokens", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--one_thread", action="store_true", help="processor time of one thread")
  args = parser.parse_args()
  if any(slots < SAMPLES or slots % SAMPLES for slots in args.slots):
    sys.exit(f"--slots {args.slots}: multiples of {SAMPLES}, so that batches are of whole groups")
  before = os.getloadavg()[0]
  rows = [row for slots in args.slots for row in measure(args, slots)]
  bench.show(list(rows[0]), [list(row.values()) for row in rows])
  print(json.dumps({**vars(args), "machine": bench.machine(), "rows": rows,
                    "load": [before, os.getloadavg()[0]]}))


if __name__ == "__main__":
  main()
