"""Imports within a package: which modules a file imports, how deep they go, where they circle.

Names of modules are full ones, entrolab.rollout.plain; package_root is the folder of the package,
entrolab/. Nothing is imported or run: files are parsed.
"""

import ast
import collections
import functools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Graph = dict[str, list[str]]  # the modules that each module imports


class Import(NamedTuple):
  """A name that a file takes from a module of the package."""
  module: str     # the module that the name comes from, or stands for
  attribute: str  # what is taken out of it; empty when the name stands for the module itself
  local: str      # how the file calls it
  line: int  # where it stands


def imports(path: pathlib.Path, package_root: pathlib.Path, *,
            inside_functions: bool = True) -> list[str]:
  """Full names of the package's modules that a file of it imports, sorted.

  `from a import b` imports a.b where that is a module, and a where b is a name in it. Python runs
  the `__init__` of every package on the way to a module, so these are imported too where they have
  code, except the packages around the file, which are being imported already. Relative imports
  are resolved; imports under `if` and `try` count.

  Raises ValueError when path does not lie in package_root, SyntaxError when it does not parse.
  """
  package_root = package_root.resolve()
  importer = module_name(path, package_root)
  tree = parse(path)
  found = set()
  for taken in package_imports(tree, path, package_root, inside_functions=inside_functions):
    found.add(taken.module)
    for package in packages_of(taken.module):
      if not is_within(importer, package) and has_code(package, package_root):
        found.add(package)
  return sorted(found - {importer})


def package_imports(tree: ast.Module, path: pathlib.Path, package_root: pathlib.Path, *,
                    inside_functions: bool = True) -> Iterator[Import]:
  """Every name that the syntax tree of a file takes from the package, in no particular order."""
  for node in walk(tree, inside_functions=inside_functions):
    if isinstance(node, ast.Import):
      for alias in node.names:
        module = nearest_module(alias.name, package_root)
        if module is not None:
          yield Import(module, "", alias.asname or alias.name, node.lineno)
    elif isinstance(node, ast.ImportFrom):
      source = absolute_source(node, path, package_root)
      module = nearest_module(source, package_root)
      for alias in node.names:
        local = alias.asname or alias.name
        member = f"{source}.{alias.name}"
        if file_of(member, package_root) is not None:
          yield Import(member, "", local, node.lineno)
        elif module is not None:
          yield Import(module, alias.name, local, node.lineno)


def walk(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
  """All nodes of a tree, or only those outside functions, which run at import."""
  pending = [tree]
  while pending:
    node = pending.pop()
    yield node
    for child in ast.iter_child_nodes(node):
      if inside_functions or not isinstance(child, FUNCTIONS):
        pending.append(child)


def absolute_source(node: ast.ImportFrom, path: pathlib.Path, package_root: pathlib.Path) -> str:
  """`a.b` of `from a.b import c`; leading dots are resolved from the file's place.

  Raises ValueError for more dots than there are packages around the file.
  """
  if node.level == 0:
    return node.module or ""
  parts = module_name(path, package_root).split(".")
  # One dot is the file's package: a module drops its name for that, an __init__ has none to drop.
  dropped = node.level - (path.name == "__init__.py")
  if dropped >= len(parts):
    raise ValueError(f"{path}:{node.lineno}: {'.' * node.level} leads out of {parts[0]}")
  package = parts[:len(parts) - dropped]
  return ".".join([*package, node.module] if node.module else package)


def module_name(path: pathlib.Path, package_root: pathlib.Path) -> str:
  """Full name of a file's module; that of `a/b/__init__.py` is a.b."""
  parts = path.resolve().relative_to(package_root.resolve()).with_suffix("").parts
  if parts[-1] == "__init__":
    parts = parts[:-1]
  return ".".join([package_name(package_root), *parts])


def package_name(package_root: pathlib.Path) -> str:
  """Full name of the folder's package: its name behind those of the packages around it."""
  folder = package_root.resolve()
  names = [folder.name]
  while (folder.parent / "__init__.py").is_file():
    folder = folder.parent
    names.insert(0, folder.name)
  return ".".join(names)


def file_of(module: str, package_root: pathlib.Path) -> pathlib.Path | None:
  """The file of a module of the package, None for any other name."""
  package = package_name(package_root)
  if not is_within(module, package):
    return None
  place = package_root.joinpath(*module.removeprefix(package).split("."))
  candidates = [place / "__init__.py"]
  if module != package:
    candidates.append(place.with_name(f"{place.name}.py"))
  return next((path for path in candidates if path.is_file()), None)


def nearest_module(name: str, package_root: pathlib.Path) -> str | None:
  """The longest leading part of a dotted name that is a module of the package."""
  candidates = [name, *packages_of(name)]
  return next((part for part in candidates if file_of(part, package_root) is not None), None)


def packages_of(module: str) -> list[str]:
  """The packages around a module, innermost first: a.b and a for a.b.c."""
  parts = module.split(".")
  return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def is_within(module: str, package: str) -> bool:
  """Whether the module is the package or lies in it."""
  return f"{module}.".startswith(f"{package}.")


def has_code(package: str, package_root: pathlib.Path) -> bool:
  """Whether the package's `__init__` has more than a docstring."""
  path = file_of(package, package_root)
  return path is not None and any(not is_text(statement) for statement in parse(path).body)


def is_text(statement: ast.stmt) -> bool:
  """Whether a statement is a string that stands alone, as a docstring does."""
  return (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
          and isinstance(statement.value.value, str))


def parse(path: pathlib.Path) -> ast.Module:
  """The file's syntax tree. Raises SyntaxError with the file's name."""
  return parse_text(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def parse_text(text: str, filename: str) -> ast.Module:
  """Parses each text once: an `__init__` is looked at for every import through it."""
  return ast.parse(text, filename=filename)


def reachable(graph: Graph, start: str) -> set[str]:
  """Modules that start imports, directly or not; start itself only through a circle."""
  seen: set[str] = set()
  pending = list(graph[start])
  while pending:
    module = pending.pop()
    if module not in seen:
      seen.add(module)
      pending += graph[module]
  return seen


def floors(graph: Graph) -> dict[str, tuple[str, ...]]:
  """For each module itself and those that import each other with it, sorted."""
  below = {module: reachable(graph, module) for module in graph}
  return {module: tuple(sorted({module} | {n for n in below[module] if module in below[n]}))
          for module in graph}


def circles(graph: Graph) -> list[list[str]]:
  """For each floor of several modules the shortest circle through its first."""
  shared = sorted({floor for floor in floors(graph).values() if len(floor) > 1})
  return [shortest_circle(graph, floor[0]) for floor in shared]


def shortest_circle(graph: Graph, start: str) -> list[str]:
  """start, the modules on the shortest way back, start. Raises ValueError when there is none."""
  ways = collections.deque([[start]])
  seen: set[str] = set()
  while ways:
    way = ways.popleft()
    for module in graph[way[-1]]:
      if module == start:
        return [*way, start]
      if module not in seen:
        seen.add(module)
        ways.append([*way, module])
  raise ValueError(f"{start} does not import itself, directly or not")


def deepest_chain(graph: Graph) -> list[str]:
  """A longest chain of imports, from the top; members of a floor are joined by =."""
  floor_of = floors(graph)

  @functools.cache
  def chain(floor: tuple[str, ...]) -> list[str]:
    below = {floor_of[module] for member in floor for module in graph[member]} - {floor}
    longest = max((chain(other) for other in sorted(below)), key=len, default=[])
    return [" = ".join(floor), *longest]

  return max((chain(floor) for floor in sorted(set(floor_of.values()))), key=len)
