"""Measures branching beside plain sampling of the same number of new tokens.

  python scripts/bench_branch.py [--strategy cure|agentic] [--model small|smollm2] [--prompts 8]
      [--originals 4] [--branches 3] [--prompt_length 64] [--max_tokens 64] [--turns 4] [--rounds 5]
      [--cpu_time]

No response ends early.

  cure      every variant draws prompts x originals (1 + branches) x max_tokens tokens. `branch`
            goes on from the cache of the originals. `prefill again` gives prompt and prefix of
            each continuation to the model anew, as an engine without shared prefixes does. Cuts
            are those of CURE.
  agentic   episodes of `turns` actions of max_tokens / turns tokens, each answered by 16 tokens.
            `branch` copies originals after answers until there are originals (1 + branches)
            episodes. `plain` draws as many episodes as have the same number of new tokens, to the
            nearest episode.

Variants run one after another, round by round; times are medians, ratios medians of the ratios
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

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from entrolab import sharding  # noqa: E402
from entrolab.environments import Spoken  # noqa: E402
from entrolab.keys import row_keys  # noqa: E402
from entrolab.methods.aepo_agentic import Branching  # noqa: E402
from entrolab.models import transformer  # noqa: E402
from entrolab.rollout import agentic, branch, decode  # noqa: E402
from entrolab.rollout.multiturn import MultiTurn  # noqa: E402
from entrolab.rollout.strategy import Sampling  # noqa: E402
from entrolab.tasks.task import Example, Lazy, Step  # noqa: E402

SMALL = transformer.Config(vocab_size=512, width=256, layers=4, heads=8, kv_heads=4, head_dim=32,
                           mlp_width=768)


def load(name: str):
  """(config, params): random weights of a small model, or a pre-trained one."""
  if name == "small":
    return SMALL, transformer.init(SMALL, jax.random.key(0))
  from entrolab.models import gguf
  config, params, _ = gguf.load_gguf(gguf.find_smollm2())
  return config, jax.tree.map(jnp.asarray, params)


@dataclasses.dataclass(frozen=True)
class Endless(Spoken):
  """An environment that answers every action with 16 tokens and never ends an episode."""
  size: int  # of the vocabulary
  length: int  # tokens of a prompt
  max_observation: int = 16  # tokens of an answer

  @property
  def max_prompt(self) -> int:
    """Tokens of every prompt."""
    return self.length

  def examples(self, split: str, seed: int) -> Lazy:
    """A million prompts by their index."""
    return Lazy(2**20, lambda i: Example(i, "", "", ""), f"{self!r}.examples({split!r}, {seed})")

  def spoken(self, seed: int, count: int) -> str:
    """So many words."""
    return " ".join(map(str, np.random.default_rng(seed).integers(2, self.size, count)))

  def reset(self, example: Example) -> tuple[int, str]:
    """The index of the prompt, and its words."""
    return example.id, self.spoken(example.id, self.length)

  def step(self, state: int, text: str) -> Step:
    """An answer."""
    return state, self.spoken(state, self.max_observation), 0.0, False


class Ids:
  """Tokens written as their ids."""
  pad_id, stop_ids, name = 0, (-1,), "ids"

  def __init__(self, size: int):
    self.vocab_size = size

  def encode(self, text: str) -> list[int]:
    """Token ids."""
    return [int(piece) for piece in text.split()]

  def decode(self, ids) -> str:
    """The ids, separated."""
    return " ".join(str(int(i)) for i in ids)


def always(u: float, gain: float, streak: int, rule: Branching) -> bool:
  """Every trial is a branch."""
  del u, gain, streak, rule
  return True


def agentic_variants(args):
  """As `variants`, of episodes with tools: trees, and episodes with as many new tokens."""
  config, params = load(args.model)
  n, turns, action = args.originals * (1 + args.branches), args.turns, args.max_tokens // args.turns
  task = Endless(config.vocab_size, args.prompt_length)
  examples = [Example(at, "", "", "") for at in range(args.prompts)]
  length = turns * action + (turns - 1) * task.max_observation
  sampling = Sampling(samples=n, max_tokens=length)
  made = lambda strategy: strategy.engine(config, Ids(config.vocab_size), task,
                                          sharding.make_mesh(1, 1, 1), ())
  rule = Branching(samples=n, beam=1 + args.branches, calls=turns - 1, test=always, scope="own")
  strategy = agentic.Agentic(turns=turns, action=action, rule=rule, initial=args.originals)
  tree = made(strategy)
  episodes = made(MultiTurn(turns=turns, action=action))
  bare = args.prompts * args.prompt_length

  def grown():
    got = tree.grown(strategy, params, examples, jax.random.key(0), 0, sampling).counts
    return got["prefill_tokens"], got["reused_tokens"], got["generated_tokens"]

  def alone(samples):
    got = episodes.rollout(params, examples, jax.random.key(0), 0,
                           dataclasses.replace(sampling, samples=samples))
    seen = got.batch.present & ~got.batch.mask
    return bare + int(seen.sum()), 0, int(got.batch.mask.sum())

  same = max(1, round(grown()[2] / (args.prompts * turns * action)))
  return {"plain": lambda: alone(same), "branch": grown}


def variants(args):
  """{name: run}, each run returning (tokens prefilled, tokens reused, tokens drawn)."""
  config, params = load(args.model)
  rng = np.random.default_rng(0)
  shape, n1, n2 = (args.prompts, args.prompt_length), args.originals, args.branches
  prompt = jnp.asarray(rng.integers(0, config.vocab_size, shape), jnp.int32)
  mask = jnp.asarray(np.arange(shape[1])[None] >= rng.integers(0, shape[1] // 2, shape[0])[:, None])
  ids = jnp.arange(shape[0], dtype=jnp.int32)
  keys = lambda count, **more: row_keys(jax.random.key(0), 0, ids, count, **more)
  decoding, size = decode.Decoding.of(), dict(max_tokens=args.max_tokens)
  more = jnp.stack([keys(n1, branch=1 + j) for j in range(n2)], 1).reshape(-1)
  first, every = keys(n1), keys(n1 * (1 + n2))
  allowed = np.ones(config.vocab_size, bool)
  bare = int(mask.sum())

  def originals(keep):
    out = decode.sample(config, params, prompt, mask, first, decoding, samples=n1, keep=keep,
                        **size)
    cut, _, longer = branch._cut(
        dataclasses.replace(out, trunk=None), prompt, mask, first, allowed, most=20,
        choose="entropy", overflow="move", width=shape[1] + args.max_tokens)
    return out, cut, longer

  def plain():
    out = decode.sample(config, params, prompt, mask, every, decoding, samples=n1 * (1 + n2),
                        **size)
    return bare, 0, int(out.mask.sum())

  def branched():
    out, cut, longer = originals(True)
    new = decode.resume(config, params, out.trunk, cut, more, decoding, copies=n2, **size)
    return bare, n2 * int(longer[1].sum()), int(out.mask.sum()) + int(new.mask.sum())

  def again():
    out, _, longer = originals(False)
    new = decode.sample(config, params, *longer, more, decoding, samples=n2, **size)
    return bare + int(longer[1].sum()), 0, int(out.mask.sum()) + int(new.mask.sum())

  return {"plain": plain, "branch": branched, "prefill again": again}


def main(argv=None) -> int:
  """Exit code 0; the last line of the output is JSON."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--strategy", choices=("cure", "agentic"), default="cure")
  parser.add_argument("--model", choices=("small", "smollm2"), default="small")
  for name, default in (("prompts", 8), ("originals", 4), ("branches", 3), ("prompt_length", 64),
                        ("max_tokens", 64), ("turns", 4), ("rounds", 5)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--cpu_time", action="store_true",
                      help="processor time instead of wall time, for a busy machine")
  args = parser.parse_args(argv)
  clock = time.process_time if args.cpu_time else time.perf_counter
  runs = variants(args) if args.strategy == "cure" else agentic_variants(args)
  counts = {name: run() for name, run in runs.items()}  # compiles
  seconds = {name: [] for name in runs}
  for _ in range(args.rounds):
    for name, run in runs.items():
      started = clock()
      run()
      seconds[name].append(clock() - started)
  rows = []
  for name, (prefilled, reused, drawn) in counts.items():
    middle = statistics.median(seconds[name])
    ratio = statistics.median(s / p for s, p in zip(seconds[name], seconds["plain"], strict=True))
    rows.append({"variant": name, "new_tokens": drawn, "prefill_tokens": prefilled,
                 "reused_tokens": reused, "ms": 1e3 * middle, "x_plain": ratio,
                 "tokens_per_second": drawn / middle})
  print(f"{'variant':<14}{'new':>8}{'prefilled':>11}{'reused':>9}{'ms':>10}{'x plain':>9}"
        f"{'tokens/s':>10}")
  for row in rows:
    print(f"{row['variant']:<14}{row['new_tokens']:>8}{row['prefill_tokens']:>11}"
          f"{row['reused_tokens']:>9}{row['ms']:>10.1f}{row['x_plain']:>9.2f}"
          f"{row['tokens_per_second']:>10.0f}")
  print(json.dumps({"bench": "branch", **vars(args), "rows": rows, "jax": jax.__version__,
                    "device": jax.devices()[0].device_kind, "load": os.getloadavg()[0]}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
