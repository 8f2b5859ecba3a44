"""What bench.py measures of this project, and the bounds: each case builds, compiles, returns
(run, facts); a run gives nothing, or its own numbers."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import vocab

MOMENTS = ("logp", "entropy", "sum_p2", "sum_p2_logp", "tempered_logp")
SPECS = {"logp": vocab.Spec(names=("logp",)), "fused": vocab.Spec(),
         "moments": vocab.Spec(names=MOMENTS, tempered=1.5),
         "nucleus": vocab.Spec(names=("logp", "entropy", "nucleus_entropy"))}


def compiled(fn, *args, donate=()):
  """(executable, facts): compile seconds and the compiler's temporaries."""
  begin = time.perf_counter()
  made = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
  seconds = time.perf_counter() - begin
  memory = made.memory_analysis()
  return made, {"compile_s": seconds,
                "temp_mb": memory.temp_size_in_bytes / 1e6 if memory else None}


def waiting(fn, *args):
  """A run that waits for the result and drops it."""
  def run():
    jax.block_until_ready(fn(*args))
  return run


def head_inputs(shape):
  """(hidden, head, tokens, upstream gradients [2, N]): logits of standard deviation 3."""
  n, d, v = shape
  rng = np.random.default_rng(0)
  normal = lambda *s: jnp.asarray(rng.standard_normal(s, np.float32))
  return (normal(n, d), normal(v, d) * (3.0 / d**0.5),
          jnp.asarray(rng.integers(0, v, n), jnp.int32), normal(2, n) / n)


def matmul(shape):
  """The bound: one product [N, D] x [D, V] into an array that exists already."""
  hidden, head, *_ = head_inputs(shape)
  box = [jnp.zeros((shape[0], shape[2]), jnp.float32)]
  fn, facts = compiled(lambda out, h, w: jnp.einsum("nd,vd->nv", h, w), box[0], hidden, head,
                       donate=0)
  def run():
    box[0] = jax.block_until_ready(fn(box[0], hidden, head))
  return run, {**facts, "flops": 2 * np.prod(shape, dtype=float)}


def bandwidth(megabytes=512):
  """Reads memory: the sum of a large array."""
  x = jnp.ones(megabytes << 18, jnp.float32)
  fn, facts = compiled(jnp.sum, x)
  return waiting(fn, x), {**facts, "bytes": float(x.nbytes)}


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
  bound = ("matmul", 4 if backward else 1)
  beside = {"nucleus": ["fused"], "moments": ["fused"]}.get(kind, ["logp", "naive", "pair"])
  suffix = "" if backward else " fwd"
  return waiting(made, *args), {**facts, "bound": bound,
                                "beside": [b + suffix for b in beside if b != kind]}


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


def bisected_nucleus(shape, rows=32):
  """The same rows by `vocab.nucleus_entropy`."""
  logits = rows_of_logits(shape, rows)
  made, facts = compiled(lambda z: vocab.nucleus_entropy(z, 0.8), logits)
  return waiting(made, logits), {**facts, "beside": ["sort"]}


def plan_head(args):
  """Variants of every shape."""
  titles = {}
  for shape in args.shape:
    own = dict(shape=shape)
    variants = {"matmul": ("head.matmul", own)}
    for suffix, backward in (("", True), (" fwd", False)):
      for kind in ("logp", "fused", "moments", "nucleus", "naive", "pair"):
        variants[kind + suffix] = ("head", {**own, "kind": kind, "backward": backward})
    variants |= {"sort": ("nucleus.sort", own), "bisection": ("nucleus.bisection", own)}
    titles["x".join(map(str, shape))] = variants
  return titles


CASES = {"head.matmul": matmul, "head": head, "bandwidth": bandwidth,
         "nucleus.sort": sorted_nucleus, "nucleus.bisection": bisected_nucleus}


def plan(args):
  """{title: {variant: (case, arguments)}}."""
  return {"head": plan_head}[args.what](args)


def shared(args, title):
  """What a peer is told about the work of a title."""
  return {"shape": [int(x) for x in title.split("x")]}


__all__ = ["CASES", "plan", "shared"]
