"""Compiles the train step and the sampler of an experiment for a TPU pod that is not there.

  python scripts/aot_compile.py --preset qwen2.5-math-7b --topology v5p:4x4x4
  python scripts/aot_compile.py --preset qwen2.5-math-1.5b --model qwen2.5-0.5b --topology v5e:2x4 \
      --set mesh.fsdp=8 --set sampling.max_tokens=1024
  python scripts/aot_compile.py --write docs/pods.md

Needs libtpu (`pip install 'jax[tpu]'`) and no TPU. For each program it prints, per device: bytes of
arguments and temporaries, matmul FLOPs, bytes moved in memory, collectives by kind, the roofline
time and what binds it, and whether it fits; at the end one JSON line. No weights are read.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import re
import sys
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402

from entrolab import config, nucleus, sharding  # noqa: E402
from entrolab import control as controls  # noqa: E402
from entrolab.batch import Batch  # noqa: E402
from entrolab.cost import chips, hlo, hlo_cost  # noqa: E402
from entrolab.experiment import Experiment  # noqa: E402
from entrolab.models import transformer  # noqa: E402
from entrolab.models.parameters import check_mesh  # noqa: E402
from entrolab.presets import PRESETS, HuggingFace  # noqa: E402
from entrolab.rollout import decode  # noqa: E402
from entrolab.trainer.learner import Learner  # noqa: E402
from entrolab.trainer.state import State  # noqa: E402

QWEN2: Any = dict(qkv_bias=True, norm_eps=1e-6)
SIZES = {  # config.json of the models, as their pages on huggingface.co/Qwen show it
    "qwen2.5-0.5b": transformer.Config(
        vocab_size=151936, width=896, layers=24, heads=14, kv_heads=2, head_dim=64, mlp_width=4864,
        rope_theta=1e6, max_length=32768, **QWEN2),
    "qwen2.5-1.5b": transformer.Config(
        vocab_size=151936, width=1536, layers=28, heads=12, kv_heads=2, head_dim=128,
        mlp_width=8960, rope_theta=1e6, max_length=131072, **QWEN2),
    "qwen2.5-math-1.5b": transformer.Config(
        vocab_size=151936, width=1536, layers=28, heads=12, kv_heads=2, head_dim=128,
        mlp_width=8960, max_length=4096, **QWEN2),
    "qwen2.5-math-7b": transformer.Config(
        vocab_size=152064, width=3584, layers=28, heads=28, kv_heads=4, head_dim=128,
        mlp_width=18944, max_length=4096, tied=False, **QWEN2)}
ONE_CHIP = dict(chips_per_host_bounds=(1, 1, 1))  # what libtpu wants for v5e:1x1 and v6e:1x1
COLUMNS = {  # of a batch that reaches the step: type and trailing sizes (L prompt, T response)
    "prompt": (jnp.int32, "L"), "prompt_mask": (bool, "L"), "tokens": (jnp.int32, "T"),
    "mask": (bool, "T"), "group": (jnp.int32, ""), "row": (jnp.uint32, "2"), "finished": (bool, ""),
    "old_logp": (jnp.float32, "T"), "old_entropy": (jnp.float32, "T"),
    "sampled_logp": (jnp.float32, "T"), "verdict": (jnp.int32, ""), "rewards": (jnp.float32, ""),
    "adv": (jnp.float32, "T")}
BEGIN, END = "<!-- pods -->\n", "<!-- /pods -->"
HEAD = ("| model, topology | mesh, rows, lengths | program | arguments | temporaries | FLOPs | "
        "moved | sent | time | bound | serial |\n|" + " --- |" * 11)


@dataclasses.dataclass(frozen=True)
class Target:
  """What is compiled: an experiment with the sizes of its model, for the devices of a topology."""
  experiment: Experiment  # of the recipe and preset
  model: str  # its name, for the table
  size: transformer.Config  # of the model
  topology: str  # chip:shape
  devices: list[Any]  # of the topology, described and not there

  @property
  def chip(self) -> chips.Chip:
    """The kind of chip."""
    return chips.get(self.topology.split(":")[0])


def devices_of(topology: str) -> list[Any]:
  """The devices of `v5p:4x4x4`. Raises ValueError for a chip or shape that libtpu does not have."""
  from jax.experimental import topologies
  kind, colon, shape = topology.partition(":")
  if not colon or not re.fullmatch(r"\d+(x\d+)+", shape):
    raise ValueError(f"--topology={topology}: write a chip and a shape, such as v5p:4x4x4")
  chips.get(kind)
  options = ONE_CHIP if shape == "1x1" else {}
  if kind == "v4":
    options = dict(chip_config_name="megacore")
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology,
                                             **options).devices)
  except (jax.errors.JaxRuntimeError, RuntimeError) as error:
    raise ValueError(f"--topology={topology}: libtpu does not describe it: {error}") from error


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--preset", required=True, choices=sorted(PRESETS),
                      help="the hyper-parameters of the run")
  parser.add_argument("--topology", required=True, help="chip:shape, such as v5p:4x4x4")
  parser.add_argument("--model", choices=sorted(SIZES), help="sizes; default those of the preset")
  parser.add_argument("--config", default="experiments/siren.py", help="the recipe")
  parser.add_argument("--set", action="append", default=[], metavar="path=value",
                      help="any leaf of the experiment, such as mesh.fsdp=16")
  parser.add_argument("--write", type=pathlib.Path, metavar="DOC",
                      help="puts the rows into the table of this file")
  parser.add_argument("--text", type=pathlib.Path, metavar="FOLDER",
                      help="writes the compiled programs there as text")
  return parser.parse_args(argv)


def target(args: argparse.Namespace) -> Target:
  """The experiment of a command line. Raises ValueError where sizes and mesh do not fit."""
  path = args.config if os.path.isabs(args.config) else str(ROOT / args.config)
  experiment = config.load(f"{path}:preset={args.preset}", tuple(args.set))
  if args.model:
    name, size = args.model, SIZES[args.model]
  elif isinstance(experiment.model, HuggingFace):
    name = experiment.model.name.split("/")[-1].lower()
    if name not in SIZES:
      raise ValueError(f"--preset={args.preset}: no sizes of {name}; add them to SIZES, or choose "
                       f"--model of {', '.join(SIZES)}")
    size = SIZES[name]
  else:
    name, size = args.preset, experiment.model.load()[0]
  return Target(experiment, name, size, args.topology, devices_of(args.topology))


def shapes(tree: Any, shardings: Any) -> Any:
  """Abstract arrays that live where `shardings`, one or a tree of them, says."""
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree,
                      shardings)


def step_arguments(t: Target, learner: Learner) -> tuple[State, Batch]:
  """(state, batch) of `Learner.step`, abstract and placed as a run places them."""
  whole, on_rows = sharding.whole(learner.mesh), sharding.rows(learner.mesh)
  objective, s = t.experiment.objective, t.experiment.sampling
  params = parameters(t, learner)
  opt = optax.tree.map_params(
      learner.tx, lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
      jax.eval_shape(learner.tx.init, params), params,
      transform_non_params=lambda x: shapes(x, whole))
  control = shapes(jax.eval_shape(lambda: controls.init(objective.control)), whole)
  step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
  state = State(step, params, opt, control, params if learner.reads_reference else None)
  rows = s.prompts // t.experiment.training.updates * s.samples
  sizes = {"L": (t.experiment.task.max_prompt,), "T": (s.max_tokens,), "2": (2,), "": ()}
  columns = dict(COLUMNS, **{name: (jnp.int32, "") for name in objective.extra})
  columns |= {"ref_logp": (jnp.float32, "T")} if learner.reads_reference else {}
  return state, Batch().replace(**{
      name: jax.ShapeDtypeStruct((rows, *sizes[more]), kind, sharding=on_rows)
      for name, (kind, more) in columns.items()})


def parameters(t: Target, learner: Learner) -> Any:
  """The abstract float32 parameters, sharded."""
  tree = jax.eval_shape(lambda key: transformer.init(t.size, key), jax.random.key(0))
  return shapes(tree, learner.param_shardings)


def served(t: Target, learner: Learner) -> Any:
  """The abstract parameters that a rollout samples with."""
  out = learner.serve_rollouts.lower(parameters(t, learner)).out_info
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), out)


def bytes_of(tree: Any) -> int:
  """Bytes of abstract, placed arrays on each device."""
  return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
             for x in jax.tree.leaves(tree))


def lower_sample(t: Target, learner: Learner) -> Any:
  """The sampler of the project, lowered for all rows of a rollout: prefill, then the loop."""
  s, task = t.experiment.sampling, t.experiment.task
  whole, on_rows = sharding.whole(learner.mesh), sharding.rows(learner.mesh)
  array = lambda shape, kind, place: jax.ShapeDtypeStruct(shape, kind, sharding=place)
  prompt = (s.prompts, task.max_prompt)
  # shapes as in a run: one temperature, top_p, top_k and pad, two stop ids
  decoding = jax.tree.map(lambda x: array(x.shape, x.dtype, whole),
                          decode.Decoding.of(stop_ids=(-1, -1)))
  return decode.sample.lower(
      learner.config, served(t, learner), array(prompt, jnp.int32, on_rows),
      array(prompt, bool, on_rows),
      array((s.prompts * s.samples,), jax.random.key(0).dtype, on_rows),
      decoding, samples=s.samples, max_tokens=s.max_tokens)


def account(t: Target, mesh: Any, name: str, cost: hlo_cost.Cost, memory: Any) -> dict[str, Any]:
  """The facts of one program, or of a part of one, per device."""
  coords = [device.coords for device in mesh.devices.flat]
  kinds, sent = {}, 0.0
  for c in cost.collectives:
    varied = sum(len(set(axis)) > 1 for axis in zip(*(coords[i] for i in c.group), strict=True))
    sent += c.wire * t.chip.axes / max(varied, 1)
    entry = kinds.setdefault(c.kind, {"times": 0, "bytes": 0.0, "wire": 0.0})
    entry["times"] += int(c.times)
    entry["bytes"] += c.times * c.bytes
    entry["wire"] += c.wire
  time_ = chips.roofline(t.chip, cost.flops, cost.bytes, sent)
  gathers = [c for c in cost.collectives if c.kind == "all-gather"]
  largest = max(gathers, key=lambda c: c.bytes * len(c.group), default=None)
  return {
      "program": name, "argument_bytes": memory.argument_size_in_bytes,
      "temporary_bytes": memory.temp_size_in_bytes, "flops": cost.flops, "moved_bytes": cost.bytes,
      "collectives": kinds, "seconds": time_.seconds, "bound": time_.bound,
      "serial_seconds": time_.serial, "roofline": dataclasses.asdict(time_),
      "largest_gather": largest and {
          "bytes": largest.bytes * len(largest.group), "of": largest.shape,
          "source": largest.source}}


def compiled(t: Target, mesh: Any, name: str, lowered: Any, beside: int,
             folder: pathlib.Path | None) -> list[dict[str, Any]]:
  """Compiles one program; facts of it, of the sampler one entry for each of its two parts.

  beside: bytes on a device while it runs that are no arguments of it. A program that is
  too large gives one entry with `error`, which names the memory it needs.
  """
  started = time.time()
  try:
    done = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return [{"program": name, "fits": False, "error": str(error).split("\n")[0][:300]}]
  seconds = round(time.time() - started, 1)
  text, memory = done.as_text(), done.memory_analysis()
  if folder:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{t.model}-{t.topology.replace(':', '-')}-{name}.txt").write_text(text)
  program = hlo.Program(text, {nucleus.SEARCH: nucleus.TYPICAL})
  parts = {name: hlo_cost.analyse(program)}
  if name == "sample":
    parts = phases(program, t.experiment.sampling.max_tokens)
  total = (beside + memory.argument_size_in_bytes + memory.temp_size_in_bytes
           + memory.output_size_in_bytes - memory.alias_size_in_bytes)
  arrays = program.arrays().values()
  array, source = max(arrays, key=lambda pair: pair[0].size)
  shared = {"fits": total <= t.chip.memory, "total_bytes": total, "beside_bytes": beside,
            "compile_seconds": seconds,
            "largest_array": {"shape": str(array), "elements": array.size, "source": source},
            "logits": sorted({str(s) for s, _ in arrays if is_logits(t, mesh, s)})}
  return [account(t, mesh, part, cost, memory) | shared for part, cost in parts.items()]


def is_logits(t: Target, mesh: Any, shape: hlo.Shape) -> bool:
  """Whether an array is of logits [B, T, V] of many response positions, whole or a part of them."""
  sizes = {t.size.vocab_size, t.size.vocab_size // mesh.shape["tensor"]}
  other = sizes | {t.size.width, t.size.width // mesh.shape["fsdp"]}
  return bool(sizes & set(shape.dims)) and any(
      n and n % t.experiment.sampling.max_tokens == 0 and n not in other for n in shape.dims)


def phases(program: hlo.Program, max_tokens: int) -> dict[str, hlo_cost.Cost]:
  """The sampler's prefill, and one step of its loop over `max_tokens` tokens."""
  bodies = {body for trips, body, _ in program.loops() if trips == max_tokens}
  if len(bodies) != 1:
    raise ValueError(f"the sampler has {len(bodies)} loops of {max_tokens} steps, not one; loops: "
                     f"{program.loops()}")
  return {"prefill": hlo_cost.analyse(program, skip=frozenset(bodies)),
          "decode": hlo_cost.analyse(program, bodies.pop())}


def run(t: Target, folder: pathlib.Path | None = None) -> dict[str, Any]:
  """Compiles step and sampler: the content of the JSON line."""
  e, s, u = t.experiment, t.experiment.sampling, t.experiment.training
  mesh = sharding.make_mesh(e.mesh.data, e.mesh.fsdp, e.mesh.tensor, t.devices)
  rows = s.prompts // u.updates * s.samples
  check_mesh(t.size, mesh, s.prompts, "sampling.prompts")
  check_mesh(t.size, mesh, rows // u.micro, "rows of a micro-batch")
  learner = Learner(e, t.size, mesh)
  state, batch = step_arguments(t, learner)
  params, state_bytes = state.params, bytes_of(state)
  programs = [
      *compiled(t, mesh, "step", learner.step.lower(state, batch), 0, folder),
      *compiled(t, mesh, "serve", learner.serve_rollouts.lower(params),
                state_bytes - bytes_of(params), folder),
      *compiled(t, mesh, "sample", lower_sample(t, learner), state_bytes, folder)]
  by_name = {p["program"]: p for p in programs}
  out = {"model": t.model, "topology": t.topology, "recipe": e.name, "mesh": dict(mesh.shape),
         "rows": {"rollout": s.prompts * s.samples, "update": rows, "micro_batch": rows // u.micro},
         "updates": u.updates, "prompt": e.task.max_prompt, "response": s.max_tokens,
         "dtype": u.dtype, "remat": u.remat, "programs": programs}
  if all(p["fits"] for p in programs):
    runs = {"serve": 1, "prefill": 1, "decode": s.max_tokens, "step": u.updates}
    out["rl_step_seconds"] = sum(n * by_name[name]["seconds"] for name, n in runs.items())
  return out


def quantity(x: float, unit: str = "B") -> str:
  """1.23e9 -> '1.23 GB'."""
  names = {"B": ("B", "kB", "MB", "GB", "TB"), "F": ("F", "kF", "MF", "GF", "TF", "PF"),
           "s": ("us", "ms", "s")}[unit]
  x = x * 1e6 if unit == "s" else x
  power = 0
  while abs(x) >= 1000 and power < len(names) - 1:
    x, power = x / 1000, power + 1
  return f"{x:.3g} {names[power]}"


def table(facts: dict[str, Any]) -> list[str]:
  """The rows of one run."""
  shape = " x ".join(f"{k} {n}" for k, n in facts["mesh"].items() if n > 1) or "one device"
  rows = facts["rows"]
  where = (f"{shape}; {rows['rollout']} rows, updates of {rows['update']} in parts of "
           f"{rows['micro_batch']}; {facts['prompt']} + {facts['response']} tokens")
  lines = []
  for p in facts["programs"]:
    program = p["program"] if p["fits"] or "error" in p else (
        f"{p['program']}: does not fit, {quantity(p['total_bytes'])}")
    begin = f"| {facts['model']}, {facts['topology']} | {where} | {program} | "
    if "error" in p:
      lines.append(begin + f"does not fit: {p['error']} |" + " |" * 7)
      continue
    sent = ", ".join(f"{kind} {quantity(c['wire'])}" for kind, c in p["collectives"].items()
                     if c["wire"] > 1e-3 * sum(c["wire"] for c in p["collectives"].values()))
    lines.append(begin + " | ".join((
        quantity(p["argument_bytes"]), quantity(p["temporary_bytes"]), quantity(p["flops"], "F"),
        quantity(p["moved_bytes"]), sent or "nothing", quantity(p["seconds"], "s"), p["bound"],
        quantity(p["serial_seconds"], "s"))) + " |")
  return lines


def write(path: pathlib.Path, facts: dict[str, Any], command: str) -> None:
  """Replaces the rows and the command of this model and topology in a document, or adds them."""
  before, begin, rest = path.read_text().partition(BEGIN)
  old, end, after = rest.partition(END)
  if not begin or not end:
    raise ValueError(f"{path}: has no lines {BEGIN.strip()} and {END}")
  key = f"{facts['model']}, {facts['topology']}"
  body, _, commands = old.partition("\n```bash\n")
  rows = [r for r in body.strip().splitlines()[2:] if not r.startswith(f"| {key} |")]
  lines = [c for c in commands.strip().removesuffix("```").splitlines()
           if c and not c.endswith(f"  # {key}")]
  new = "\n".join([HEAD, *rows, *table(facts), "", "```bash", *lines, f"{command}  # {key}", "```"])
  path.write_text(before + BEGIN + new + "\n" + END + after)


def report(facts: dict[str, Any], t: Target) -> str:
  """The facts of a run as text."""
  lines = []
  for p in facts["programs"]:
    lines.append(f"{p['program']}: " + (p.get("error") or (
        f"arguments {quantity(p['argument_bytes'])}, temporaries {quantity(p['temporary_bytes'])}, "
        f"in all {quantity(p['total_bytes'])} of {quantity(t.chip.memory)}, "
        f"{'fits' if p['fits'] else 'DOES NOT FIT'} (compiled in {p['compile_seconds']:.0f} s)")))
    if "error" in p:
      continue
    parts = ", ".join(f"{k} {quantity(v, 's')}" for k, v in p["roofline"].items())
    lines.append(f"  FLOPs {quantity(p['flops'], 'F')}, moved {quantity(p['moved_bytes'])}; "
                 f"{parts}: {quantity(p['seconds'], 's')}, bound by {p['bound']}; "
                 f"{quantity(p['serial_seconds'], 's')} if nothing overlaps")
    lines += [f"  {kind}: {c['times']} runs, {quantity(c['bytes'])} put in, {quantity(c['wire'])} "
              "sent" for kind, c in sorted(p["collectives"].items())]
    gather = p["largest_gather"]
    lines.append(f"  largest array {p['largest_array']['shape']}; largest gather "
                 + (f"{quantity(gather['bytes'])}, of {gather['of']}" if gather else "none")
                 + f"; logits of whole responses: {', '.join(p['logits']) or 'none'}")
  if "rl_step_seconds" in facts:
    lines.append(f"one step of reinforcement learning: {quantity(facts['rl_step_seconds'], 's')} "
                 "(prefill, every token, every update; no other forward pass, no verification)")
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
  """Compiles, prints, and with --write writes."""
  args = parse(argv)
  try:
    t = target(args)
    facts = run(t, args.text)
  except (ValueError, TypeError, ImportError) as error:
    sys.exit(f"error: {error}")
  print(report(facts, t))
  print(json.dumps(facts))
  if args.write:
    words = [f"--preset {args.preset}", f"--model {args.model}" if args.model else "",
             f"--topology {args.topology}",
             f"--config {args.config}" if args.config != "experiments/siren.py" else "",
             *(f"--set {x}" for x in args.set)]
    write(args.write, facts, " ".join(["python scripts/aot_compile.py", *filter(None, words)]))


if __name__ == "__main__":
  main()
