"""What bench.py measures of this project, and the bounds: each case builds, compiles, returns
(run, facts); a run returns nothing, or what it has measured itself."""

import atexit
import dataclasses
import functools
import json
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any

import bench_peers
import jax
import jax.numpy as jnp
import numpy as np

from entrolab import config, nucleus, presets, vocab
from entrolab.models import huggingface, transformer
from entrolab.rollout import draw
from entrolab.rollout.decode import Decoding, sample
from entrolab.tasks.task import Example, Lazy, Task
from entrolab.trainer import loop
from entrolab.verify import Verdict

ROOT = pathlib.Path(__file__).resolve().parents[1]

clock = time.perf_counter  # bench.py may count processor time
MOMENTS = ("logp", "entropy", "sum_p2", "sum_p2_logp", "tempered_logp")
SPECS = {"logp": vocab.Spec(names=("logp",)), "fused": vocab.Spec(),
         "moments": vocab.Spec(names=MOMENTS, tempered=1.5),
         "nucleus": vocab.Spec(names=("logp", "entropy", "nucleus_entropy"))}


def temporaries(made: Any) -> float:
  """MB that a compiled program sets aside beside its inputs and outputs."""
  return made.memory_analysis().temp_size_in_bytes / 1e6


def compiled(fn, *args, donate=()):
  """(executable, facts): compile seconds and the compiler's temporaries."""
  begin = time.perf_counter()
  made = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
  seconds = time.perf_counter() - begin
  return made, {"compile_s": seconds, "temp_mb": temporaries(made)}


def waiting(fn, *args, many=1):
  """A run that waits for the result and drops it; `many` pieces of work in one call."""
  def run():
    start = clock()
    jax.block_until_ready(fn(*args))
    return {"seconds": (clock() - start) / many}
  return run


def head_inputs(shape):
  """(hidden, head, tokens, upstream gradients [2, N]): logits of standard deviation 3."""
  n, d, v = shape
  rng = np.random.default_rng(0)
  normal = lambda *s: jnp.asarray(rng.standard_normal(s, np.float32))
  return (normal(n, d), normal(v, d) * (3.0 / d**0.5),
          jnp.asarray(rng.integers(0, v, n), jnp.int32), normal(2, n) / n)


def matmul(shape):
  """The bound: one matmul [N, D] x [D, V] into an array that exists already."""
  hidden, head, *_ = head_inputs(shape)
  box = [jnp.zeros((shape[0], shape[2]), jnp.float32)]
  fn, facts = compiled(lambda out, h, w: jnp.einsum("nd,vd->nv", h, w), box[0], hidden, head,
                       donate=0)
  def run():
    box[0] = jax.block_until_ready(fn(box[0], hidden, head))
  return run, {**facts, "per_second": {"GFLOP/s": 2 * np.prod(shape, dtype=float) / 1e9}}


def bandwidth(megabytes=512):
  """Reads memory: the sum of a large array."""
  x = jnp.ones(megabytes << 18, jnp.float32)
  fn, facts = compiled(jnp.sum, x)
  return waiting(fn, x), {**facts, "per_second": {"GB/s": x.nbytes / 1e9}}


def naive(hidden, head, tokens):
  """Whole logits, one log-softmax for both statistics."""
  logp = jax.nn.log_softmax(jnp.einsum("nd,vd->nv", hidden, head))
  picked = jnp.take_along_axis(logp, tokens[:, None], -1)[:, 0]
  return {"logp": picked, "entropy": -(jnp.exp(logp) * logp).sum(-1)}


def pair(hidden, head, tokens):
  """What JAX trainers usually do: two functions of the logits."""
  logits = jnp.einsum("nd,vd->nv", hidden, head)
  at = lambda x: jnp.take_along_axis(x, tokens[:, None], -1)[:, 0]
  logp = at(logits) - jax.nn.logsumexp(logits, axis=-1)
  p = jax.nn.softmax(logits)
  return {"logp": logp,
          "entropy": jax.nn.logsumexp(logits, axis=-1) - (p * logits).sum(-1)}


def head(shape, kind, backward):
  """Statistics of N tokens; backward: and the gradients of hidden states and head."""
  hidden, matrix, tokens, up = head_inputs(shape)
  fns = dict(naive=naive, pair=pair)
  fn = fns.get(kind) or (lambda h, w, t: vocab.fused(h, w, t, SPECS[kind]))
  def loss(h, w, t, up):
    out = fn(h, w, t)
    return sum((x * g).sum() for x, g in zip(out.values(), [*up] * 3, strict=False))
  both = jax.value_and_grad(loss, argnums=(0, 1))
  made, facts = (compiled(both, hidden, matrix, tokens, up) if backward else
                 compiled(fn, hidden, matrix, tokens))
  args = (hidden, matrix, tokens, up) if backward else (hidden, matrix, tokens)
  times = 4 if backward else 1
  beside = {"nucleus": ["fused"], "moments": ["fused"]}.get(kind, ["logp", "naive", "pair"])
  suffix = "" if backward else " fwd"
  peers = bench_peers.names("head") if kind == "fused" and backward else ()
  flops = times * 2.0 * np.prod(shape, dtype=float) / (2.0 * 2048**3)
  return waiting(made, *args), {**facts, "bounds": {f"{times} matmul": ("matmul", times),
                                                    "FLOPs": ("peak", flops)},
                                "beside": [*(b + suffix for b in beside if b != kind), *peers]}


def rows_of_logits(shape, rows):
  """Logits [rows, V] whose nuclei are of very different sizes, ties included."""
  rng = np.random.default_rng(1)
  logits = rng.standard_normal((rows, shape[2])) * np.geomspace(0.3, 6.0, rows)[:, None]
  return jnp.asarray(np.round(logits * 64) / 64, jnp.float32)


def sorted_nucleus(shape, rows=32):
  """The sort this project avoids: sort, cumulative sum, entropy of the prefix."""
  logits = rows_of_logits(shape, rows)
  def fn(z):
    p = jnp.sort(jax.nn.softmax(z), axis=-1)[:, ::-1]
    on = jnp.cumsum(p, -1) < 0.8
    q = jnp.where(on, p, 0.0) / jnp.maximum(jnp.where(on, p, 0.0).sum(-1, keepdims=True), 1e-30)
    return -jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1.0)), 0.0).sum(-1)
  made, facts = compiled(fn, logits)
  return waiting(made, logits), facts


def searched_nucleus(shape, rows=32):
  """The same rows as the head takes them, a few at a time."""
  logits = rows_of_logits(shape, rows)
  few = lambda z: nucleus.of_rows(z, 0.8, False, 0, None, ())["nucleus_entropy"]
  made, facts = compiled(lambda z: nucleus.by_rows(few, lambda x: x, z, size=shape[2], whole=False,
                                                   few=4), logits)
  return waiting(made, logits), {**facts, "beside": ["sort"]}


def plan_head(args):
  """Variants of every shape."""
  titles = {}
  for shape in args.shape:
    common = dict(shape=shape)
    variants = {"matmul": ("head.matmul", common), "peak": ("peak", {})}
    for suffix, backward in (("", True), (" fwd", False)):
      for kind in ("logp", "fused", "moments", "nucleus", "naive", "pair"):
        variants[kind + suffix] = ("head", {**common, "kind": kind, "backward": backward})
    variants |= {"sort": ("nucleus.sort", common), "search": ("nucleus.search", common)}
    titles["x".join(map(str, shape))] = variants
  return titles


def model(preset):
  """(Config, params): the embedded model, SmolLM2-135M, or `rl`, 3.28 M random parameters."""
  if preset == "rl":
    shape = transformer.Config(vocab_size=512, width=256, layers=4, heads=8, kv_heads=4,
                               head_dim=32, mlp_width=768)
    return shape, transformer.init(shape, jax.random.key(0))
  shape, params, _ = {"tiny": presets.Tiny, "smollm2": presets.SmolLM2}[preset]().load()
  return shape, jax.tree.map(jnp.asarray, params)


def count(params):
  """Parameters in a tree of them."""
  return sum(x.size for x in jax.tree.leaves(params))


def peak(size=2048):
  """What the machine multiplies in a second, at best: a square matmul."""
  x = jnp.ones((size, size), jnp.float32)
  fn, facts = compiled(lambda a, b: a @ b, x, x)
  return waiting(fn, x, x), {**facts, "per_second": {"GFLOP/s": 2.0 * size**3 / 1e9}}


def decode(preset, batch, prompt, new, samples=1, int8=False):
  """Seconds of one decode step: `new` tokens less one, `samples` rows of each prompt."""
  shape, params = model(preset)
  size, weights = count(params), 4 * count(params)
  if int8:
    params = jax.jit(lambda p: transformer.serving(shape, p, int8=True))(params)
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, shape.vocab_size, (batch // samples, prompt)).astype(np.int32)
  keys = jax.random.split(jax.random.key(0), batch)
  args = (params, tokens, np.ones_like(tokens, bool), keys, Decoding.of())
  lower = lambda new: sample.lower(shape, *args, samples=samples, max_tokens=new)
  begin = time.perf_counter()
  all_tokens, one_token = (lower(n).compile() for n in (new, 1))
  facts = {"compile_s": (time.perf_counter() - begin) / 2, "temp_mb": temporaries(all_tokens)}
  def run():
    start = clock()
    jax.block_until_ready(one_token(*args))
    middle = clock()
    jax.block_until_ready(all_tokens(*args))
    end = clock()
    return {"seconds": (end - middle - (middle - start)) / (new - 1), "prefill": middle - start}
  return run, {**facts, "per_second": {"tokens/s": float(batch)},
               "beside": ["decode"] if int8 else bench_peers.names("sample"),
               "bounds": {"weights read": ("bandwidth", weights / (512 << 20)),
                          "FLOPs": ("peak", 2.0 * size * batch / (2.0 * 2048**3))}}


def draws(preset, batch, how, many=16):
  """Draws with log-prob and entropy from logits that exist already, in one program whose
  arrays stay over `many` of them, as in decoding."""
  logits = jax.random.normal(jax.random.key(0), (batch, model(preset)[0].vocab_size)) * 3.0
  ones, zeros = jnp.ones(batch), jnp.zeros(batch, jnp.int32)
  def drawn(z, key):
    if how == "categorical":
      logp, token = jax.nn.log_softmax(z), jax.random.categorical(key, z)
      at = jnp.take_along_axis(logp, token[:, None], 1)[:, 0]
      return token, at, -(jnp.exp(logp) * logp).sum(-1)
    top_p = ones * (0.9 if how == "nucleus" else 1.0)
    return draw.draw(z, jax.random.uniform(key, (batch,)), ones, top_p, zeros)[:3]
  def step(i, carry):
    token, logp, entropy = drawn(carry[0], jax.random.key(i))
    return carry[0].at[:, 0].set(logp), token, entropy  # the next draw waits for this one
  made, facts = compiled(lambda *x: jax.lax.fori_loop(0, many, step, x), logits, zeros, ones)
  return waiting(made, logits, zeros, ones, many=many), {**facts, "beside": ["decode"]}


def plan_sample(args):
  """Variants of every batch size."""
  prompt, new = (10, 18) if args.preset == "tiny" else (64, 64)
  titles = {}
  for batch in args.batch:
    common = dict(preset=args.preset, batch=batch)
    titles[f"{args.preset}, batch {batch}, {prompt} + {new} tokens"] = {
        "bandwidth": ("bandwidth", {}), "peak": ("peak", {}),
        "decode": ("decode", dict(**common, prompt=prompt, new=new)),
        "decode int8": ("decode", dict(**common, prompt=prompt, new=new, int8=True)),
        "draw": ("draws", dict(**common, how="draw")),
        "draw top-p": ("draws", dict(**common, how="nucleus")),
        "categorical": ("draws", dict(**common, how="categorical"))}
  return titles


class Digits:
  """A tokenizer for a task without text: token 7 is "7", and nothing ends a response early."""
  pad_id, stop_ids, name, vocab_size = 0, (-1,), "digits", 512

  def decode(self, ids):
    """The ids, separated."""
    return " ".join(map(str, ids))


@dataclasses.dataclass(frozen=True)
class Random(Task):
  """Random prompts; about half of the responses are right, by the parity of their first token."""
  width: int  # tokens of a prompt
  vocab: int  # token ids are below it
  stop: tuple[str, ...] = ()  # no string ends a response

  @property
  def max_prompt(self):
    """All prompts have this many tokens."""
    return self.width

  def examples(self, split, seed):
    """A million problems."""
    made = lambda i: Example(i, str(i), "", "random")
    return Lazy(2**20, made, f"{self}{split}{seed}")

  def prompt(self, example, tokenizer):
    """Token ids."""
    return np.random.default_rng(example.id).integers(3, self.vocab, self.width).tolist()

  def verify(self, texts, examples):
    """Right where the first token is even."""
    return [Verdict("wrong" if int(text.split(" ")[0]) % 2 else "right", "parity")
            for text in texts]


@dataclasses.dataclass(frozen=True)
class Given:
  """A preset's model with the tokenizer of `Random`."""
  preset: str  # of `model`

  def load(self):
    """(Config, params, Tokenizer)."""
    return *model(self.preset), Digits()


def work(recipe, preset, prompts, samples, prompt, max_tokens):
  """The experiment of a recipe on random prompts of one length: one update, no early stop, the
  matmuls of layers stored and the rest computed again, which is fastest on a CPU."""
  knobs = ":beta=0" if recipe == "grpo" else ""  # no reference model, as in the peers
  experiment = config.load(f"{ROOT}/experiments/{recipe}.py{knobs}", ("mesh.data=1",))
  size = model(preset)[0].vocab_size
  return dataclasses.replace(
      experiment, model=Given(preset), task=Random(prompt, size),
      sampling=dataclasses.replace(experiment.sampling, prompts=prompts, samples=samples,
                                   max_tokens=max_tokens, refills=0),
      training=dataclasses.replace(experiment.training, updates=1, micro=1, measure_every=0,
                                   remat="dots"))


def step(preset, recipe, prompts, samples, prompt, max_tokens):
  """One step of the real loop: rollout, verdicts, forward pass over the rollout, one update."""
  lab = loop.Lab(work(recipe, preset, prompts, samples, prompt, max_tokens))
  box, folder = [lab.learner.init(lab.params), 0], pathlib.Path(tempfile.gettempdir())
  def run():
    begin = clock()
    box[0], _, metrics = loop.train_step(lab, box[0], box[1], folder)
    jax.block_until_ready(box[0].params)
    box[1] += 1
    return {"seconds": clock() - begin, **{name: float(metrics[f"timing_s/{name}"]) for name in
                                           ("rollout", "forward", "train")}}
  compile_s = run()["seconds"] - run()["seconds"]  # what the first step takes in addition
  size, rows = count(lab.params), prompts * samples
  # sampling goes forward once, training three times as much; plain GRPO needs no other pass
  flops = 2.0 * size * (rows * max_tokens + prompts * prompt + 3 * rows * (prompt + max_tokens))
  return run, {"bounds": {"FLOPs": ("peak", flops / (2.0 * 2048**3))}, "compile_s": compile_s,
               "per_second": {"tokens/s": float(rows * max_tokens)},
               "beside": bench_peers.names("step") if recipe == "grpo" else ["grpo"]}


STEP = dict(prompts=8, samples=8, prompt=16, max_tokens=64)


def plan_step(args):
  """Plain GRPO, and what the recipes add to it."""
  common = dict(preset=args.preset, **STEP)
  variants = {"peak": ("peak", {})}
  for recipe in dict.fromkeys(["grpo", *args.recipe]):
    variants[recipe] = ("step", {**common, "recipe": recipe})
  return {f"{args.preset}, 8 x 8 x 64 tokens": variants}


def whole_run(preset, recipe, steps):
  """A whole run in a fresh folder, compilation included."""
  experiment = config.load(str(ROOT / f"experiments/{recipe}.py:preset={preset},steps={steps}"))
  def run():
    with tempfile.TemporaryDirectory() as folder:
      begin = clock()
      loop.run(experiment, pathlib.Path(folder))
      seconds = clock() - begin
      lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    phases = [n for n in rows[-1] if n.startswith("timing_s/")]
    total = [sum(row[n] for n in phases) for row in rows]
    return {"seconds": seconds, "first step": total[0], "later step": statistics.median(total[1:]),
            **{n.removeprefix("timing_s/"): statistics.median(row[n] for row in rows[1:])
               for n in phases}}
  return run, {"note": f"{steps} steps"}


def plan_loop(args):
  """Every recipe, whole."""
  return {f"{args.preset}, {args.steps} steps": {
      recipe: ("loop", dict(preset=args.preset, recipe=recipe, steps=args.steps))
      for recipe in args.recipe}}


CASES = {"head.matmul": matmul, "head": head, "bandwidth": bandwidth, "peak": peak,
         "nucleus.sort": sorted_nucleus, "nucleus.search": searched_nucleus,
         "decode": decode, "draws": draws, "step": step, "loop": whole_run}


def plan(args):
  """{title: {variant: (case, arguments)}}."""
  return {"head": plan_head, "sample": plan_sample, "step": plan_step,
          "loop": plan_loop}[args.what](args)


def shared(args, title):
  """The arguments of a peer for the work of a title."""
  if args.what == "head":
    return {"shape": [int(x) for x in title.split("x")]}
  if args.what == "step":
    return {"folder": exported(args.preset), **STEP}
  _, batch, tokens = title.split(", ")
  prompt, _, new, _ = tokens.split(" ")
  return {"folder": exported(args.preset), "batch": int(batch.split()[1]), "prompt": int(prompt),
          "new": int(new)}


@functools.cache
def exported(preset):
  """A folder that transformers opens, with the weights of a preset; removed at the end."""
  folder = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  huggingface.save(pathlib.Path(folder) / "model", *model(preset))
  return str(pathlib.Path(folder) / "model")


__all__ = ["CASES", "plan", "shared"]
