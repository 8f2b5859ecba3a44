"""Reads the optimised HLO text of a compiled program, `compiled.as_text()`.

A text is a list of computations, one of them the entry, each a list of instructions that name
other computations: the body of a loop, the inside of a fusion. Loops are those of jax: a counter
from zero up to a constant. Shapes are those of one device. `hlo_cost` says what a program costs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

# of one element
BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2,
         "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
         "c64": 8, "token": 0}
INTEGERS = ("s32", "u32", "s64")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array."""
  dtype: str  # of BYTES
  dims: tuple[int, ...]  # lengths of its axes
  main: bool = True  # lies in the main memory of the device, not in a small one on the chip

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
  """One instruction: `%name = shapes kind(inside), rest`."""
  name: str  # without the percent sign
  kind: str  # the opcode: dot, fusion, while, ...
  shapes: tuple[Shape, ...]  # of its results
  operands: tuple[str, ...]  # names of instructions of the same computation
  inside: str  # the text between the brackets
  rest: str  # the attributes
  root: bool  # its result is that of the computation

  def called(self, role: str) -> list[str]:
    """The computations that an attribute such as `calls` or `body` names."""
    found = re.search(rf"[ ,]{role}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.rest)
    return [] if found is None else [found[1]] if found[1] else NAME.findall(found[2])

  @property
  def source(self) -> str:
    """The operation of the Python program, as jax names it."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else self.name


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
  """The instruction on a line; None where there is none."""
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
  """An HLO text as computations and their instructions.

  Attributes: parts, the instructions by name of each computation by name; entry, the name of the
  computation that the program runs. Raises ValueError for a text without one.
  """

  def __init__(self, text: str, searches: Mapping[str, int] | None = None):
    """searches: scopes (`jax.named_scope`) whose loops end by their data -> rounds to count."""
    self.searches = dict(searches or {})
    self.parts: dict[str, dict[str, Op]] = {}
    self.entry = ""
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
    ValueError where start, step and end are not constants of the program.
    """
    for scope, rounds in self.searches.items():
      if f"/{scope}/" in loop.source:
        return rounds
    known = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.rest)
    if known:
      return int(known[1])
    condition, body = loop.called("condition")[0], loop.called("body")[0]
    # of the condition `counter < end`: which entry of the loop's state it reads, and the constant
    integers = [(part, op) for part, op in self.inside(condition)
                if op.shapes[0].dtype in INTEGERS and not op.shapes[0].dims]
    counters = {int(index[1]) for _, op in integers if op.kind == "get-tuple-element"
                if (index := re.search(r"index=(\d+)", op.rest))}
    ends = {self._constant(*found) for found in integers} - {None}
    if len(counters) == 1 and len(ends) == 1:
      counter, end = counters.pop(), ends.pop()
      first = self.parts[part][self.parts[part][loop.operands[0]].operands[counter]]
      start = self._constant(part, first)
      step = self._step(body, self.root(body).operands[counter])
      if start is not None and end is not None and step:
        return max(0, -(-(end - start) // step))
    raise ValueError(f"loop {loop.name} ({loop.source}): start, step and end of its counter are "
                     "not constants of the program")

  def _constant(self, part: str, op: Op) -> int | None:
    """The integer that an instruction gives, through copies; None if it is not a constant."""
    if op.kind in ("copy", "bitcast", "convert"):
      return self._constant(part, self.parts[part][op.operands[0]])
    return int(op.inside) if op.kind == "constant" and re.fullmatch(r"\d+", op.inside) else None

  def _step(self, part: str, name: str) -> int | None:
    """The constant that an addition, in a fusion or not, adds; None if it does not."""
    op = self.parts[part][name]
    if op.kind in ("copy", "bitcast"):
      return self._step(part, op.operands[0])
    given = {self._constant(part, self.parts[part][name]) for name in op.operands}
    if op.kind == "fusion":
      inner = op.called("calls")[0]
      given |= {self._constant(inner, inside) for inside in self.parts[inner].values()}
      op = self.root(inner)
    found = given - {None}
    return found.pop() if op.kind == "add" and len(found) == 1 else None

  def loops(self, part: str | None = None) -> list[tuple[int, str, str]]:
    """(trips, body, source) of the loops that a computation runs itself; default the entry."""
    part = part or self.entry
    return [(self.trips(part, op), op.called("body")[0], op.source)
            for op in self.parts[part].values() if op.kind == "while"]

  def arrays(self) -> dict[str, tuple[Shape, str]]:
    """Every array that exists in a memory: the name of its instruction -> (shape, source).

    What is inside a fusion never reaches one.
    """
    fused = {name for part in self.parts.values() for op in part.values()
             for name in op.called("calls") + (op.called("to_apply") if op.kind != "call" else [])}
    return {op.name: (shape, op.source) for name, part in self.parts.items() if name not in fused
            for op in part.values() for shape in op.shapes}

  def inside(self, part: str) -> Iterator[tuple[str, Op]]:
    """(computation, instruction) of a computation and of all that is fused into it."""
    for op in self.parts[part].values():
      yield part, op
      if op.kind in ("fusion", "async-start"):
        yield from self.inside(op.called("calls")[0])


def _iota(text: str) -> np.ndarray:
  """`[4,2]<=[2,4]T(1,0)` or `([4,2]T(1,0))` -> device numbers in that order."""
  found = re.match(r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?$", text)
  if found is None:
    raise ValueError(f"unknown order of devices {text!r}")
  shape, dims, order = ([int(n) for n in g.split(",")] if g else None for g in found.groups())
  assert dims is not None  # the one group that is not optional
  ids = np.arange(math.prod(dims)).reshape(dims)
  ids = ids if order is None else ids.transpose(order)
  return ids if shape is None else ids.reshape(shape)


def group_of(rest: str) -> tuple[int, ...]:
  """The devices of the first group of a collective, from its attributes in any of the notations.

  Raises ValueError for a notation that is not known.
  """
  # of a permutation: each device sends to one other
  pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}(?:,\{(\d+),(\d+)\})?", rest)
  if pairs:
    return tuple(range(2))
  # every group written out
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
  if listed:
    return tuple(int(n) for n in listed[1].split(","))
  # [groups, devices in each]<=[all devices, reordered]
  iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", rest)
  if iota:
    return tuple(int(n) for n in _iota(iota[1])[0])
  # the axes of a mesh over which it runs, at index 0 of the others
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
