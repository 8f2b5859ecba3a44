"""What a compiled program costs a device: FLOPs of matmuls, bytes of its memory, collectives.

Counted on the instructions of its HLO text, because `compiled.cost_analysis()` counts the body of
a loop once, and layers, micro-batches, vocabulary chunks and decoded tokens are loops here.
"""

import dataclasses
import math
import re

import numpy as np

from entrolab.cost.hlo import Op, Program, group_of

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# instructions that move nothing: they name, regroup or call
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
        "call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota"}


@dataclasses.dataclass(frozen=True)
class Collective:
  """An exchange between devices."""
  kind: str  # of KINDS
  shape: str  # of its inputs, to show
  bytes: float  # that a device puts in, in one run
  group: tuple[int, ...]  # devices that exchange with each other: the first such group
  times: float  # how often it runs
  source: str  # the operation of the Python program

  @property
  def wire(self) -> float:
    """Bytes that a device sends, over all runs, by the ring algorithm of its kind."""
    n = len(self.group)
    share = {"all-gather": n - 1.0, "all-reduce": 2.0 * (n - 1) / n, "collective-permute": 1.0}
    return self.times * self.bytes * share.get(self.kind, (n - 1) / n)


@dataclasses.dataclass
class Cost:
  """Of one device."""
  flops: float = 0.0  # of matmuls alone
  bytes: float = 0.0  # moved from and to the main memory
  # exchanges with other devices, each with how often it runs
  collectives: list[Collective] = dataclasses.field(default_factory=list)

  def add(self, other: "Cost", times: float) -> None:
    """Adds `times` runs of another cost."""
    self.flops += times * other.flops
    self.bytes += times * other.bytes
    self.collectives += [dataclasses.replace(c, times=c.times * times) for c in other.collectives]


def analyse(program: Program, part: str | None = None,
            skip: frozenset[str] = frozenset()) -> Cost:
  """The cost of one run of a computation, default the entry, without the loops of bodies `skip`.

  Of a conditional it takes the branch that moves least: the sampler's other one searches the
  vocabulary, for draws that top-p or top-k cut.
  """
  return _analyse(program, part or program.entry, skip, {})


def _analyse(program: Program, part: str, skip: frozenset[str], known: dict[str, Cost]) -> Cost:
  """As `analyse`; known: the costs of computations so far, several of which call the same."""
  if part in known:
    return known[part]
  cost = Cost()
  chains: set[str] = set()
  for where, op in program.inside(part):
    cost.flops += _flops(program, where, op)
    collective = _collective(program, where, op, chains)
    if collective is not None:
      cost.collectives.append(collective)
  for op in program.parts[part].values():
    cost.bytes += _traffic(program, part, op)
    if op.kind == "while" and op.called("body")[0] not in skip:
      body = _analyse(program, op.called("body")[0], skip, known)
      cost.add(body, program.trips(part, op))
    elif op.kind == "call":
      cost.add(_analyse(program, op.called("to_apply")[0], skip, known), 1)
    elif op.kind == "conditional":
      names = (op.called("branch_computations") or op.called("true_computation")
               + op.called("false_computation"))
      branches = [_analyse(program, name, skip, known) for name in names]
      cost.add(min(branches, key=lambda branch: branch.bytes), 1)
  known[part] = cost
  return cost


def _flops(program: Program, part: str, op: Op) -> float:
  """Of one matmul: 2 x multiply-adds; 0 for another instruction.

  A TPU writes batched matmuls as convolutions, whose padding is not computed.
  """
  if op.kind not in ("dot", "convolution"):
    return 0.0
  left, right = (program.parts[part][name].shapes[0].dims for name in op.operands)
  if op.kind == "dot":
    over = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
    axes = [int(i) for i in (over[1] if over else "").split(",") if i]
    return 2.0 * op.shapes[0].size * math.prod(left[i] for i in axes)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
  if labels is None:
    raise ValueError(f"{op.name}: a convolution without dim_labels: {op.rest[:120]!r}")
  # a letter an axis: batch b, features f of the input; inputs i, outputs o of the kernel; 0, 1, ...
  image, kernel, out = labels.groups()
  groups = re.search(r"batch_group_count=(\d+)", op.rest)
  pairs = right[kernel.index("i")] * right[kernel.index("o")] * left[image.index("b")]
  pairs /= int(groups[1]) if groups else 1
  for axis in sorted(set(image) - set("bf")):
    pairs *= _meetings(left[image.index(axis)], right[kernel.index(axis)],
                       op.shapes[0].dims[out.index(axis)], op.rest, int(axis))
  return 2.0 * pairs


def _collective(program: Program, part: str, op: Op, chains: set[str]) -> Collective | None:
  """An instruction as a collective; one that is fused in pieces, a chain, counts once."""
  kind = op.kind.removesuffix("-start")
  if kind not in KINDS:
    return None
  chain = re.search(r'chain_id="(\w+)"', op.rest)
  if chain and chain[1] in chains:
    return None
  chains |= {chain[1]} if chain else set()
  if kind == "all-reduce" and "reduce-scatter" in part:  # how a TPU writes it
    kind = "reduce-scatter"
  inputs = [s for name in op.operands for s in program.parts[part][name].shapes]
  names = " ".join(map(str, inputs[:3])) + (" ..." if len(inputs) > 3 else "")
  size = sum(s.bytes for s in inputs)
  if op.kind == "all-reduce":  # a TPU sends sums in the type of the result
    size = min(size, sum(s.bytes for s in op.shapes))
  return Collective(kind, names, size, group_of(op.rest), 1.0, op.source)


def _traffic(program: Program, part: str, op: Op) -> float:
  """Bytes that an instruction reads from and writes to the main memory."""
  if op.kind in FREE or op.kind.endswith("-done"):
    return 0.0
  if op.kind in ("fusion", "async-start"):
    inner = op.called("calls")[0]
    params = [inside.name for inside in program.parts[inner].values() if inside.kind == "parameter"]
    read = sum(_read(program, inner, name) for name in params)
    return read + _written(program, inner, program.root(inner))
  inputs = [program.parts[part][name].shapes[0] for name in op.operands]
  if op.kind in ("dynamic-slice", "gather", "slice", "slice-start"):  # reads what it takes
    inputs = [dataclasses.replace(op.shapes[0], main=inputs[0].main)]
  # the results of a start are the array, and then what its end waits for
  out = op.shapes[:1] if op.kind.endswith("-start") else op.shapes
  if op.kind in ("dynamic-update-slice", "scatter"):  # in place
    inputs = [inputs[1 if op.kind == "dynamic-update-slice" else len(inputs) - 1]]
    out = (dataclasses.replace(inputs[0], main=op.shapes[0].main),)
  return sum(s.traffic for s in (*inputs, *out))


def _read(program: Program, part: str, name: str) -> float:
  """Bytes that a fusion reads of a parameter: slices, where it only takes slices."""
  shape = program.parts[part][name].shapes[0]
  if not shape.main:
    return 0.0
  total = 0.0
  for op in program.parts[part].values():
    for at, operand in enumerate(op.operands):
      if operand != name:
        continue
      if op.kind in ("dynamic-slice", "slice", "gather") and at == 0:
        total += op.shapes[0].bytes
      elif op.kind == "fusion" and f"output_to_operand_aliasing={{{{}}: ({at}, " in op.rest:
        total += _read(program, part, op.name)  # a relayout, made as it is read
      elif op.kind == "fusion":
        inner = op.called("calls")[0]
        total += sum(_read(program, inner, o.name) for o in program.parts[inner].values()
                     if o.kind == "parameter" and int(o.inside) == at)
      elif op.kind in ("bitcast", "get-tuple-element"):
        total += _read(program, part, op.name)
      elif not (op.kind == "tuple" or op.kind == "dynamic-update-slice" and at == 0):
        return shape.bytes  # an instruction that reads all of it
  return min(total, shape.bytes)


def _written(program: Program, part: str, op: Op) -> float:
  """Bytes that a fusion writes: the updates, where it updates in place."""
  ops = program.parts[part]
  if op.kind == "tuple":
    return sum(_written(program, part, ops[name]) for name in op.operands)
  if op.kind == "bitcast" and op.operands[0] in ops:
    inner = ops[op.operands[0]]
    if inner.kind == "dynamic-update-slice":
      return _written(program, part, inner)
    return op.shapes[0].traffic
  if op.kind == "dynamic-update-slice":
    return ops[op.operands[1]].shapes[0].bytes if op.shapes[0].main else 0.0
  if op.kind == "parameter":
    return 0.0
  return sum(shape.traffic for shape in op.shapes)


def _meetings(size: int, kernel: int, out: int, rest: str, axis: int) -> int:
  """Pairs of kernel and output positions along one axis that meet an element, not padding.

  size, kernel, out: lengths of the axis in the input, the kernel and the output; rest: attributes.
  """
  window = re.search(r"window=\{([^}]*)\}", rest)
  given = dict(entry.split("=") for entry in window[1].split()) if window else {}
  number = lambda name: int(given[name].split("x")[axis]) if name in given else 1
  # position of the input, in steps of the padded and dilated axis, for each output and kernel entry
  low = int(given["pad"].split("x")[axis].split("_")[0]) if "pad" in given else 0
  spread = number("lhs_dilate")
  at = (np.arange(out)[:, None] * number("stride") - low
        + np.arange(kernel)[None] * number("rhs_dilate"))
  return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())
