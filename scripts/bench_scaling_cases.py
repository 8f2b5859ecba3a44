"""What bench_scaling.py measures: a case at several sizes in one process, and the collectives of
programs for several devices. As in bench_cases.py, a case returns (run, facts)."""

import dataclasses
import time

import aot_compile
import bench_cases
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from entrolab import sharding, vocab
from entrolab.cost import hlo, hlo_cost
from entrolab.trainer import loop
from entrolab.trainer.learner import BEFORE, Learner

clock = time.perf_counter  # bench.py may count processor time
ROWS, LENGTH = 32, 64  # of an update on every mesh
HEAD = (2048, 256, 16384)  # N, D, V of a head on every mesh
PARTS = 4  # micro-batches of the step that is compiled a second time, on as many devices


def experiment_of(preset, recipe, prompts, samples, length, micro):
  """The experiment of `bench_cases.work`, with groups of any size and with micro-batches."""
  made = bench_cases.work(recipe, preset, prompts, 8, length // 4, length - length // 4)
  resized = lambda term: dataclasses.replace(term, knobs=tuple(
      (name, samples if name == "size" else value) for name, value in term.knobs))
  objective = dataclasses.replace(made.objective, **{
      slot: tuple(map(resized, getattr(made.objective, slot)))
      for slot in ("reward", "advantage", "weights")})
  return dataclasses.replace(
      made, objective=objective, sampling=dataclasses.replace(made.sampling, samples=samples),
      training=dataclasses.replace(made.training, micro=micro))


def filled(like, entries):
  """Columns of full rows: masks are true, ids under `entries`, floats negative."""
  rng = np.random.default_rng(0)
  def column(x):
    if x.dtype == bool:
      return jnp.ones(x.shape, bool)
    whole = jnp.issubdtype(x.dtype, jnp.integer)
    values = rng.integers(3, entries, x.shape) if whole else -rng.exponential(size=x.shape)
    return jnp.asarray(values, x.dtype)
  return jax.tree.map(column, like)


def update(**sizes):
  """Learner.step of a real Lab, and a forward pass, on rows of random tokens."""
  lab = loop.Lab(experiment_of(**sizes))
  learner, box = lab.learner, [lab.learner.init(lab.params)]
  target = aot_compile.Target(lab.experiment, sizes["preset"], lab.config, "", [])
  batch = filled(aot_compile.step_arguments(target, learner)[1], lab.config.vocab_size)
  step = learner.step.lower(box[0], batch).compile()
  forward = learner.forward.lower(box[0].params, batch, BEFORE).compile()
  def run():
    begin = clock()
    box[0], metrics = step(box[0], batch)
    jax.block_until_ready(box[0].params)
    middle = clock()
    jax.block_until_ready(forward(box[0].params, batch))
    end = clock()
    assert bool(metrics["train/applied"]), f"an update that is not finite: {metrics}"
    return {"step": middle - begin, "forward": end - middle}
  return run, {"temp_mb": {"step": bench_cases.temporaries(step),
                           "forward": bench_cases.temporaries(forward)}}


def sweep(case, points):
  """All sizes of a series, in turn: a run gives {size: {what: seconds}}."""
  bench_cases.clock = clock
  make = update if case == "update" else bench_cases.CASES[case]
  made = {size: make(**args) for size, args in points.items()}
  whole = "forward + backward" if case == "head" else "step"  # what a case does not name itself
  def run():
    seconds = {}
    for size, (run_case, _) in made.items():
      started = clock()
      measured = run_case() or {"seconds": clock() - started}
      seconds[size] = {whole if what == "seconds" else what: x for what, x in measured.items()}
    return {"points": seconds}
  named = lambda temp: temp if isinstance(temp, dict) else {whole: temp}
  return run, {"temp_mb": {size: named(facts["temp_mb"]) for size, (_, facts) in made.items()}}


def head(mesh):
  """(lowered gradients of the fused head, its vocabulary and width sharded as the parameters are,
  bytes of the matrix, bytes of all states)."""
  n, d, v = HEAD
  layout = None if mesh.size == 1 else vocab.Layout(mesh, ("data", "fsdp"), "tensor", "fsdp")
  rows = sharding.rows(mesh)
  matrix = NamedSharding(mesh, sharding.spec("vocab", "width"))
  def loss(hidden, head, tokens):
    return sum(x.sum() for x in vocab.fused(hidden, head, tokens, vocab.Spec(), layout).values())
  like = lambda shape, dtype, at: jax.ShapeDtypeStruct(shape, dtype, sharding=at)
  lowered = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(rows, matrix)).lower(
      like((n, d), jnp.float32, rows), like((v, d), jnp.float32, matrix),
      like((n,), jnp.int32, rows))
  return lowered, 4 * v * d, 4 * n * d


def step(mesh, recipe, size, micro):
  """(lowered step, bytes of the parameters, bytes of the states of all rows)."""
  learner = Learner(experiment_of("rl", recipe, ROWS // 8, 8, LENGTH, micro), size, mesh)
  target = aot_compile.Target(learner.experiment, "rl", size, "", list(mesh.devices.flat))
  state, batch = aot_compile.step_arguments(target, learner)
  return (learner.step.lower(state, batch), 4 * bench_cases.count(state.params),
          4 * ROWS * LENGTH * size.width)


def collectives(recipe):
  """Programs for the devices that are there, on a mesh of each axis: what a device sends."""
  count, found = len(jax.devices()), []
  size = dataclasses.replace(bench_cases.model("rl")[0], kv_heads=8)  # tensor=8 shards them
  for axis in sharding.AXES if count > 1 else sharding.AXES[:1]:
    mesh = sharding.make_mesh(**{**dict.fromkeys(sharding.AXES, 1), axis: count})
    programs = {"head": head(mesh), "step": step(mesh, recipe, size, 1)}
    if count == PARTS:
      programs[f"step in {PARTS} parts"] = step(mesh, recipe, size, PARTS)
    for name, (lowered, weights, states) in programs.items():
      cost = hlo_cost.analyse(hlo.Program(lowered.compile().as_text()))
      found.append({"program": name, "axis": axis, "devices": count, "layers": size.layers,
                    "weights": weights, "states": states, "found": [
                        dataclasses.asdict(c) | {"wire": c.wire} for c in cost.collectives]})
  return (lambda: None), {"programs": found}


CASES = {"sweep": sweep, "collectives": collectives}
