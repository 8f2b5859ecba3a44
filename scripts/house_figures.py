"""The rows of the table that scripts/house.py prints, and the bounds that it checks."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from scripts.house_counts import Counts, Module, Package
from scripts.house_imports import circles, deepest_chain

FILE_LINES = 600
FILE_NODES = 2_000
FUNCTION_NODES = 350
DEPTH = 10
BOUNDS = (f"a file over {FILE_LINES} lines or {FILE_NODES:,} AST nodes, a function over "
          f"{FUNCTION_NODES} AST nodes, an import depth over {DEPTH}, a circle of imports")

# Parts of the package that the table names beside the whole; "-" where a package has none such.
PARTS = {
    "core": ("typing", "arguments", "objective", "microbatch", "vocab", "fused", "nucleus",
             "aggregate", "ranks", "control", "keys"),
    "methods": ("methods",),
    "rollout": ("rollout",),
}
# Modules where data changes hands, whose comments are counted one by one.
COMMENTED = ("trainer.loop", "trainer.step", "trainer.learner", "rollout.engine",
             "rollout.continuous_batching", "rollout.episode", "rollout.agentic", "fused")


class Figure(NamedTuple):
  """A row of the table and an entry of the JSON line."""
  key: str    # in JSON
  title: str  # in the table
  value: Any  # in JSON
  text: str   # in the table


def figures(package: Package, commented: Sequence[str] = COMMENTED) -> list[Figure]:
  """Every figure of a package, in the order of the table; comments also of commented modules."""
  return [*file_figures(package), *function_figures(package), *import_figures(package),
          *comment_figures(package, commented), *density_figures(package)]


def breaches(package: Package) -> Iterator[str]:
  """One line for every place that breaks a bound."""
  for module in package.modules:
    if module.counts.lines > FILE_LINES:
      yield f"{module.path}: {module.counts.lines:,} lines; at most {FILE_LINES}"
    if module.counts.nodes > FILE_NODES:
      yield f"{module.path}: {module.counts.nodes:,} AST nodes; at most {FILE_NODES:,}"
    for function in module.functions:
      if function.nodes > FUNCTION_NODES:
        yield (f"{module.path}:{function.line}: {function.name} has {function.nodes:,} AST nodes; "
               f"at most {FUNCTION_NODES}")
  chain = deepest_chain(package.graph)
  if len(chain) > DEPTH:
    yield f"import depth {len(chain)}; at most {DEPTH}: {' > '.join(chain)}"
  for circle in circles(package.graph):
    yield f"import circle: {' > '.join(circle)}"


def file_figures(package: Package) -> list[Figure]:
  """Files in lines and in nodes."""
  modules = package.modules
  lines = {module.name: module.counts.lines for module in modules}
  nodes = {module.name: module.counts.nodes for module in modules}
  core = {module.name: module.counts.lines for module in package.part(PARTS["core"])}
  median = by_part(package, ("methods",), lambda part: statistics.median(
      module.counts.lines for module in part))
  return [
      Figure("files", "files", len(modules), f"{len(modules):,}"),
      Figure("lines", "lines", sum(lines.values()), f"{sum(lines.values()):,}"),
      Figure("median_lines", "median file, lines", median, with_parts(median, digits=0)),
      largest("longest_file", "longest file, lines", lines),
      Figure("core_lines", "core, lines", core, with_places(sum(core.values()), core)),
      largest("largest_file", "largest file, AST nodes", nodes),
      over("large_files", f"files over {FILE_NODES:,} AST nodes", nodes, FILE_NODES),
  ]


def function_figures(package: Package) -> list[Figure]:
  """Functions in lines and in nodes."""
  # Of functions of the same name, such as a property and its setter, the larger is the later.
  functions = sorted(package.functions, key=lambda function: function.nodes)
  lines = {function.name: function.lines for function in functions}
  nodes = {function.name: function.nodes for function in functions}
  return [
      largest("longest_function", "longest function, lines", lines),
      largest("largest_function", "largest function, AST nodes", nodes),
      over("large_functions", f"functions over {FUNCTION_NODES} AST nodes", nodes,
           FUNCTION_NODES),
  ]


def import_figures(package: Package) -> list[Figure]:
  """Depth, circles, and private names of other modules."""
  chain = deepest_chain(package.graph)
  at_start = len(deepest_chain(package.start_graph))
  found = [" > ".join(circle) for circle in circles(package.graph)]
  private = [f"{module.name}:{use.line} {use.name}"
             for module in package.modules for use in module.private_uses]
  return [
      Figure("import_depth", "import depth", {"all": len(chain), "at_start": at_start},
             f"{len(chain)} ({at_start} without imports inside functions)"),
      Figure("deepest_chain", "deepest chain of imports", chain, " > ".join(chain)),
      Figure("circles", "import circles", found, "; ".join([str(len(found)), *found])),
      Figure("private_imports", "private cross-imports", private,
             "; ".join([str(len(private)), *private])),
  ]


def comment_figures(package: Package, commented: Sequence[str]) -> list[Figure]:
  """Comments, docstrings and annotations."""
  comments = by_part(package, ("core", "methods"), comment_rate)
  present = {module.name: module for module in package.modules}
  by_module = {name: comment_rate([present[name]]) if name in present else None
               for name in commented}
  docstrings = by_part(package, ("methods",), docstring_rate)
  public = [function for function in package.functions if function.public]
  documented = ratio(100 * sum(function.documented for function in public), len(public))
  typed = ratio(100 * sum(function.typed for function in public), len(public))
  return [
      Figure("comments", "comments per 100 code lines", comments, with_parts(comments)),
      Figure("comments_by_module", "comments per 100 code lines, by module", by_module,
             ", ".join(f"{name} {shown(value)}" for name, value in by_module.items())),
      Figure("docstrings", "docstring lines, %", docstrings, with_parts(docstrings, digits=0)),
      Figure("public_functions", "public functions with docstring / typed, %",
             {"documented": documented, "typed": typed},
             f"{shown(documented, digits=0)} / {shown(typed, digits=0)}"),
  ]


def density_figures(package: Package) -> list[Figure]:
  """Nodes per line, assignments that save lines, and fields whose type says nothing."""
  density = by_part(package, ("rollout", "methods"), nodes_per_line)
  whole = summed(package.modules)
  tuples = ratio(100 * whole.tuple_assignments, whole.assignments)
  fields = {f"{module.name}.{record}": fields
            for module in package.modules for record, fields in module.any_fields.items()}
  return [
      Figure("nodes_per_line", "AST nodes per code line", density, with_parts(density)),
      Figure("tuple_assignments", "assignments `a, b = x, y`, % of all", tuples, shown(tuples)),
      Figure("any_fields", "`Any` fields of records", fields,
             with_places(sum(fields.values()), fields)),
  ]


def comment_rate(part: list[Module]) -> float | None:
  """Comments per 100 code lines."""
  counts = summed(part)
  return ratio(100 * counts.comments, counts.code)


def docstring_rate(part: list[Module]) -> float | None:
  """Docstring lines in percent of the lines that are code, comment or docstring."""
  counts = summed(part)
  return ratio(100 * counts.docstrings, counts.docstrings + counts.code + counts.only_comment)


def nodes_per_line(part: list[Module]) -> float | None:
  """AST nodes per code line."""
  counts = summed(part)
  return ratio(counts.nodes, counts.code)


def summed(part: list[Module]) -> Counts:
  """Each count summed over modules."""
  return Counts(*map(sum, zip(*(module.counts for module in part), strict=True)))


def ratio(part: int, whole: int) -> float | None:
  """part / whole to two digits; None for an empty whole."""
  return round(part / whole, 2) if whole else None


def by_part(package: Package, names: Sequence[str],
            measure: Callable[[list[Module]], float | None]) -> dict[str, float | None]:
  """A measure of the whole package and of PARTS of it; None for a part that it does not have."""
  parts = {name: package.part(PARTS[name]) for name in names}
  measured = {name: measure(part) if part else None for name, part in parts.items()}
  return {"whole": measure(package.modules), **measured}


def largest(key: str, title: str, sizes: dict[str, int]) -> Figure:
  """The largest of some sizes, with its place; "-" when there is none."""
  name = max(sizes, key=lambda place: sizes[place], default=None)
  if name is None:
    return Figure(key, title, {}, "-")
  return Figure(key, title, {name: sizes[name]}, f"{sizes[name]:,} ({name})")


def over(key: str, title: str, sizes: dict[str, int], bound: int) -> Figure:
  """How many sizes exceed a bound, and where."""
  exceeding = {name: size for name, size in sizes.items() if size > bound}
  return Figure(key, title, exceeding, with_places(len(exceeding), exceeding))


def shown(value: float | None, digits: int = 1) -> str:
  """The value rounded, halves up; "-" for None."""
  if value is None:
    return "-"
  scale = 10**digits
  return f"{math.floor(value * scale + 0.5) / scale:.{digits}f}"


def with_parts(values: dict[str, float | None], digits: int = 1) -> str:
  """The value of the whole, those of parts in brackets: 2.4 (core 3.5, methods 1.2)."""
  parts = [f"{name} {shown(values[name], digits)}" for name in values if name != "whole"]
  return f"{shown(values['whole'], digits)} ({', '.join(parts)})"


def with_places(count: int, places: dict[str, int]) -> str:
  """The count and what it consists of, largest first: 2: train 2,465, learner 2,101."""
  ordered = sorted(places.items(), key=lambda place: -place[1])
  listed = ", ".join(f"{name} {size:,}" for name, size in ordered)
  return f"{count:,}: {listed}" if listed else f"{count:,}"
