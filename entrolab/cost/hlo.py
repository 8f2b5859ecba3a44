"""What a compiled program costs a device: matmul FLOPs, bytes of its memory, collectives.

Read from the optimised HLO text of `compiled.as_text()`, because `cost_analysis()` counts the body
of a loop once, and layers, micro-batches, vocabulary chunks and decoded tokens are loops here.
Loops are those of jax: a counter from zero up to a constant. Everything is per device.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2,
         "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
         "c64": 8, "token": 0}
INTEGERS = ("s32", "u32", "s64")
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
        "call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota"}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array: element type, sizes, and whether it lives in the main memory of the device."""
  dtype: str
  dims: tuple[int, ...]
  main: bool = True

  @property
  def size(self) -> int:
    """Elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Bytes, without padding. Raises ValueError for an element type that BYTES does not know."""
    if self.dtype not in BYTES:
      raise ValueError(f"element type {self.dtype!r}; known: {', '.join(BYTES)}")
    return self.size * BYTES[self.dtype]

  @property
  def traffic(self) -> float:
    """Bytes, if they are in the main memory."""
    return self.bytes if self.main else 0.0

  def __str__(self) -> str:
    return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Op:
  """One instruction."""
  name: str
  kind: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  inside: str
  rest: str
  root: bool

  def called(self, role: str) -> list[str]:
    """The computations that an attribute such as `calls` or `body` names."""
    found = re.search(rf"[ ,]{role}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.rest)
    return [] if found is None else [found[1]] if found[1] else NAME.findall(found[2])

  @property
  def source(self) -> str:
    """The operation of the Python program, as jax names it."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else self.name


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective: bytes a device puts in, the devices of the first group, how often it runs."""
  kind: str
  shape: str
  bytes: float
  group: tuple[int, ...]
  times: float
  source: str

  @property
  def wire(self) -> float:
    """Bytes that a device sends, over all runs, by the ring algorithm of its kind."""
    n = len(self.group)
    share = {"all-gather": n - 1.0, "all-reduce": 2.0 * (n - 1) / n, "collective-permute": 1.0}
    return self.times * self.bytes * share.get(self.kind, (n - 1) / n)


@dataclasses.dataclass
class Cost:
  """FLOPs of matrix products, bytes moved from and to the main memory, collectives."""
  flops: float = 0.0
  bytes: float = 0.0
  collectives: list[Collective] = dataclasses.field(default_factory=list)

  def add(self, other: "Cost", times: float) -> None:
    """Adds `times` runs of another cost."""
    self.flops += times * other.flops
    self.bytes += times * other.bytes
    self.collectives += [dataclasses.replace(c, times=c.times * times) for c in other.collectives]


def _close(text: str, at: int) -> int:
  """Where the bracket that opens at `at` closes."""
  depth = 0
  for i in range(at, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0:
      return i
  raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
  """All arrays of a type. Spaces other than 0 are not the main memory: S(1) is on the chip."""
  return tuple(Shape(d, tuple(int(n) for n in dims.split(",") if n), "S(" not in (layout or ""))
               for d, dims, layout in ARRAY.findall(text))


def _op(line: str) -> Op | None:
  head, equals, rest = line.strip().partition(" = ")
  if not equals or "(" not in rest:
    return None
  cut = _close(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  kind, _, tail = rest[cut:].strip().partition("(")
  end = _close("(" + tail, 0)
  return Op(head.removeprefix("ROOT ").removeprefix("%"), kind, _shapes(rest[:cut]),
            tuple(NAME.findall(tail[:end - 1])), tail[:end - 1], tail[end:],
            head.startswith("ROOT "))


class Program:
  """Computations of an HLO text, by name; `entry` is where it begins.

  searches: scopes (`jax.named_scope`) whose loops end by their data -> the rounds that count.
  """

  def __init__(self, text: str, searches: Mapping[str, int] | None = None):
    self.searches = dict(searches or {})
    self.parts: dict[str, dict[str, Op]] = {}
    self.entry, self._costs = "", {}
    part: dict[str, Op] = {}
    for line in text.splitlines():
      if line.endswith("{") and "->" in line and not line.startswith(" "):
        name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0].split("(")[0]
        part = self.parts.setdefault(name, {})
        self.entry = name if line.startswith("ENTRY ") else self.entry
      elif line.startswith(" "):
        op = _op(line)
        if op is not None:
          part[op.name] = op
    if not self.entry:
      raise ValueError(f"no ENTRY computation in a text that begins {text[:60]!r}")

  def root(self, part: str) -> Op:
    """The last instruction of a computation."""
    return next(op for op in self.parts[part].values() if op.root)

  def trips(self, part: str, loop: Op) -> int:
    """How often a loop runs: what XLA knows, or from start, step and end of its counter.

    A loop that may end earlier counts as if it does not, one of `searches` as that says. Raises
    ValueError where the numbers are not constants of the program.
    """
    for scope, rounds in self.searches.items():
      if f"/{scope}/" in loop.source:
        return rounds
    known = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.rest)
    if known:
      return int(known[1])
    condition, body = loop.called("condition")[0], loop.called("body")[0]
    whole = [(part, op) for part, op in self._inside(condition)
             if op.shapes[0].dtype in INTEGERS and not op.shapes[0].dims]
    at = {int(i[1]) for _, op in whole if op.kind == "get-tuple-element"
          if (i := re.search(r"index=(\d+)", op.rest))}
    ends = {self._number(*found) for found in whole} - {None}
    if len(at) == 1 and len(ends) == 1:
      counter, end = at.pop(), ends.pop()
      first = self.parts[part][self.parts[part][loop.operands[0]].operands[counter]]
      start = self._number(part, first)
      step = self._step(body, self.root(body).operands[counter])
      if start is not None and end is not None and step:
        return max(0, -(-(end - start) // step))
    raise ValueError(f"loop {loop.name} ({loop.source}): its counter and the numbers it begins and "
                     "ends with are not constants of the program")

  def _number(self, part: str, op: Op) -> int | None:
    """The integer that an instruction gives, through copies; None if it is not a constant."""
    if op.kind in ("copy", "bitcast", "convert"):
      return self._number(part, self.parts[part][op.operands[0]])
    return int(op.inside) if op.kind == "constant" and re.fullmatch(r"\d+", op.inside) else None

  def _step(self, part: str, name: str) -> int | None:
    """The constant that an addition, in a fusion or not, adds; None if it does not."""
    op = self.parts[part][name]
    if op.kind in ("copy", "bitcast"):
      return self._step(part, op.operands[0])
    given = {self._number(part, self.parts[part][n]) for n in op.operands}
    if op.kind == "fusion":
      inner = op.called("calls")[0]
      given |= {self._number(inner, o) for o in self.parts[inner].values()}
      op = self.root(inner)
    found = given - {None}
    return found.pop() if op.kind == "add" and len(found) == 1 else None

  def loops(self, part: str | None = None) -> list[tuple[int, str, str]]:
    """(trips, body, source) of the loops that a computation runs itself; default the entry."""
    part = part or self.entry
    return [(self.trips(part, op), op.called("body")[0], op.source)
            for op in self.parts[part].values() if op.kind == "while"]

  def cost(self, part: str | None = None, skip: frozenset[str] = frozenset()) -> Cost:
    """The cost of one run of a computation, default the entry, without the loops of bodies `skip`.

    Of a conditional it takes the branch that moves least: the sampler's other one searches the
    vocabulary, for draws that top-p or top-k cut.
    """
    part = part or self.entry
    if (part, skip) in self._costs:
      return self._costs[part, skip]
    cost, chains = Cost(), set()
    for where, inner in self._inside(part):
      cost.flops += self._flops(where, inner)
      one = self._collective(where, inner, chains)
      cost.collectives += [one] if one is not None else []
    for op in self.parts[part].values():
      cost.bytes += self._traffic(part, op)
      if op.kind == "while" and op.called("body")[0] not in skip:
        cost.add(self.cost(op.called("body")[0], skip), self.trips(part, op))
      elif op.kind == "call":
        cost.add(self.cost(op.called("to_apply")[0], skip), 1)
      elif op.kind == "conditional":
        names = (op.called("branch_computations") or op.called("true_computation")
                 + op.called("false_computation"))
        cost.add(min((self.cost(n, skip) for n in names), key=lambda c: c.bytes), 1)
    self._costs[part, skip] = cost
    return cost

  def arrays(self) -> dict[str, tuple[Shape, str]]:
    """Every array that the program keeps anywhere, what fusions hold inside left out: the name of
    its instruction -> (shape, source)."""
    fused = {name for part in self.parts.values() for op in part.values()
             for name in op.called("calls") + (op.called("to_apply") if op.kind != "call" else [])}
    return {op.name: (shape, op.source) for name, part in self.parts.items() if name not in fused
            for op in part.values() for shape in op.shapes}

  def _inside(self, part: str) -> Iterator[tuple[str, Op]]:
    """(computation, instruction) of a computation and of all that is fused into it."""
    for op in self.parts[part].values():
      yield part, op
      if op.kind in ("fusion", "async-start"):
        yield from self._inside(op.called("calls")[0])

  def _flops(self, part: str, op: Op) -> float:
    """Of one matrix product: 2 x multiply-adds; those with padding are not made."""
    if op.kind not in ("dot", "convolution"):
      return 0.0
    left, right = (self.parts[part][name].shapes[0].dims for name in op.operands)
    if op.kind == "dot":
      over = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
      axes = [int(i) for i in (over[1] if over else "").split(",") if i]
      return 2.0 * op.shapes[0].size * math.prod(left[i] for i in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
    if labels is None:
      raise ValueError(f"{op.name}: a convolution without dim_labels: {op.rest[:120]!r}")
    a, b, out = labels.groups()
    split = re.search(r"batch_group_count=(\d+)", op.rest)
    pairs = right[b.index("i")] * right[b.index("o")] * left[a.index("b")]
    pairs /= int(split[1]) if split else 1
    for axis in sorted(set(a) - set("bf")):
      pairs *= _meetings(left[a.index(axis)], right[b.index(axis)],
                         op.shapes[0].dims[out.index(axis)], op.rest, int(axis))
    return 2.0 * pairs

  def _collective(self, part: str, op: Op, chains: set[str]) -> Collective | None:
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
    inputs = [s for name in op.operands for s in self.parts[part][name].shapes]
    names = " ".join(map(str, inputs[:3])) + (" ..." if len(inputs) > 3 else "")
    size = sum(s.bytes for s in inputs)
    if op.kind == "all-reduce":  # a TPU sends sums in the type of the result
      size = min(size, sum(s.bytes for s in op.shapes))
    return Collective(kind, names, size, group_of(op.rest), 1.0, op.source)

  def _traffic(self, part: str, op: Op) -> float:
    """Bytes that an instruction reads from and writes to the main memory."""
    if op.kind in FREE or op.kind.endswith("-done"):
      return 0.0
    if op.kind in ("fusion", "async-start"):
      inner = op.called("calls")[0]
      params = [o.name for o in self.parts[inner].values() if o.kind == "parameter"]
      return sum(self._read(inner, p) for p in params) + self._written(inner, self.root(inner))
    inputs = [self.parts[part][name].shapes[0] for name in op.operands]
    if op.kind in ("dynamic-slice", "gather", "slice", "slice-start"):
      inputs = [dataclasses.replace(op.shapes[0], main=inputs[0].main)]
    out = op.shapes[:1] if op.kind.endswith("-start") else op.shapes
    if op.kind in ("dynamic-update-slice", "scatter"):  # in place
      inputs = [inputs[1 if op.kind == "dynamic-update-slice" else len(inputs) - 1]]
      out = (dataclasses.replace(inputs[0], main=op.shapes[0].main),)
    return sum(s.traffic for s in (*inputs, *out))

  def _read(self, part: str, name: str) -> float:
    """Bytes that a fusion reads of a parameter: slices, where it only takes slices."""
    shape = self.parts[part][name].shapes[0]
    if not shape.main:
      return 0.0
    total = 0.0
    for op in self.parts[part].values():
      for at, operand in enumerate(op.operands):
        if operand != name:
          continue
        if op.kind in ("dynamic-slice", "slice", "gather") and at == 0:
          total += op.shapes[0].bytes
        elif op.kind == "fusion" and f"output_to_operand_aliasing={{{{}}: ({at}, " in op.rest:
          total += self._read(part, op.name)  # a relayout, made as it is read
        elif op.kind == "fusion":
          inner = op.called("calls")[0]
          total += sum(self._read(inner, o.name) for o in self.parts[inner].values()
                       if o.kind == "parameter" and int(o.inside) == at)
        elif op.kind in ("bitcast", "get-tuple-element"):
          total += self._read(part, op.name)
        elif not (op.kind == "tuple" or op.kind == "dynamic-update-slice" and at == 0):
          return shape.bytes
    return min(total, shape.bytes)

  def _written(self, part: str, op: Op) -> float:
    """Bytes that a fusion writes: the updates, where it updates in place."""
    ops = self.parts[part]
    if op.kind == "tuple":
      return sum(self._written(part, ops[name]) for name in op.operands)
    if op.kind == "bitcast" and op.operands[0] in ops:
      inner = ops[op.operands[0]]
      return self._written(part, inner) if inner.kind == "dynamic-update-slice" else (
          op.shapes[0].traffic)
    if op.kind == "dynamic-update-slice":
      return ops[op.operands[1]].shapes[0].bytes if op.shapes[0].main else 0.0
    return 0.0 if op.kind == "parameter" else sum(s.traffic for s in op.shapes)


def _meetings(size: int, kernel: int, out: int, rest: str, axis: int) -> int:
  """Pairs of kernel and output positions of one axis that meet an element, not padding."""
  window = re.search(r"window=\{([^}]*)\}", rest)
  given = dict(entry.split("=") for entry in window[1].split()) if window else {}
  number = lambda name: int(given[name].split("x")[axis]) if name in given else 1
  low = int(given["pad"].split("x")[axis].split("_")[0]) if "pad" in given else 0
  spread = number("lhs_dilate")
  at = (np.arange(out)[:, None] * number("stride") - low
        + np.arange(kernel)[None] * number("rhs_dilate"))
  return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


def _iota(text: str) -> np.ndarray:
  """`[4,2]<=[2,4]T(1,0)` or `([4,2]T(1,0))` -> device numbers in that order."""
  found = re.match(r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?$", text)
  if found is None:
    raise ValueError(f"unknown order of devices {text!r}")
  shape, dims, order = ([int(n) for n in g.split(",")] if g else None for g in found.groups())
  assert dims is not None
  ids = np.arange(math.prod(dims)).reshape(dims)
  ids = ids if order is None else ids.transpose(order)
  return ids if shape is None else ids.reshape(shape)


def group_of(rest: str) -> tuple[int, ...]:
  """The devices of the first group of a collective, from its attributes in any of the notations.

  Raises ValueError for a notation that is not known.
  """
  pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}(?:,\{(\d+),(\d+)\})?", rest)
  if pairs:
    return tuple(range(2))
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
  if listed:
    return tuple(int(n) for n in listed[1].split(","))
  iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", rest)
  if iota:
    return tuple(int(n) for n in _iota(iota[1])[0])
  mesh = re.search(r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", rest)
  if mesh is None:
    raise ValueError(f"unknown groups of devices: {rest[:200]!r}")
  sizes = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
  axes = re.findall(r"'([^']+)'(?!:)", mesh[3])
  if set(axes) - set(sizes) or ":" in mesh[3]:
    raise ValueError(f"unknown groups of devices: {mesh[0]!r}")
  ids = np.arange(math.prod(sizes.values())) if mesh[2] is None else _iota(mesh[2])
  take = tuple(slice(None) if name in axes else 0 for name in sizes)
  return tuple(int(n) for n in ids.reshape(list(sizes.values()))[take].reshape(-1))
