"""What the files of a package hold, counted: lines, comments, syntax tree nodes, functions.

The terms are defined in scripts/house.py, which prints them.
"""

import ast
import dataclasses
import io
import pathlib
import tokenize
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scripts.house_imports import (
    FUNCTIONS,
    Graph,
    imports,
    is_text,
    is_within,
    module_name,
    package_imports,
    package_name,
    parse,
)

NODES = (ast.expr, ast.stmt)
EVERY_NODE = (ast.AST,)
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


class Counts(NamedTuple):
  """Of a file, or the sums over several."""
  lines: int              # of the file
  code: int               # lines neither blank, nor only a comment, nor of a docstring
  comments: int           # lines with one, alone or behind code
  only_comment: int       # lines of these without code
  docstrings: int         # lines
  nodes: int              # of the syntax tree
  assignments: int        # plain ones: `x = ...`, neither `x += ...` nor `x: int = ...`
  tuple_assignments: int  # `a, b = x, y`: a tuple on both sides


class Use(NamedTuple):
  """A private name of another module that a file uses."""
  line: int  # where it stands
  name: str  # with its module: rollout.decode._repeated


@dataclasses.dataclass(frozen=True)
class Function:
  """A function or method, at any level of nesting."""
  name: str         # with the module, classes and functions around it: learner.Learner.step
  line: int         # of `def`
  lines: int        # from `def` to the last line; a docstring counts as one
  nodes: int        # nested functions included
  documented: bool  # has a docstring
  typed: bool       # every parameter besides self and cls is annotated

  @property
  def public(self) -> bool:
    """Without a leading underscore; what is around it does not matter."""
    return not self.name.rpartition(".")[2].startswith("_")


@dataclasses.dataclass(frozen=True)
class Module:
  """A file of the package, counted."""
  name: str  # without the package: rollout.plain
  path: pathlib.Path  # below the folder that the package lies in: entrolab/rollout/plain.py
  counts: Counts  # of the file
  functions: list[Function]  # in it, at any level
  any_fields: dict[str, int]  # by record, only records that have such fields
  private_uses: list[Use]  # private names of other modules


@dataclasses.dataclass(frozen=True)
class Package:
  """All files of a package and its import graphs, by names without the package."""
  modules: list[Module]  # its files
  graph: Graph         # all imports
  start_graph: Graph   # those that run at import: without imports inside functions

  @property
  def functions(self) -> list[Function]:
    """Those of all modules."""
    return [function for module in self.modules for function in module.functions]

  def part(self, names: Sequence[str]) -> list[Module]:
    """The modules of these names, and all modules in packages of these names."""
    return [m for m in self.modules if any(is_within(m.name, name) for name in names)]


def read_package(root: pathlib.Path, skip: Sequence[str] = (),
                 kinds: tuple[type, ...] = NODES) -> Package:
  """Reads every Python file below root, except those whose name matches a glob of skip.

  kinds are the classes of syntax tree nodes that count.
  Raises ValueError when there is no file, SyntaxError for one that does not parse.
  """
  paths = [path for path in sorted(root.resolve().rglob("*.py"))
           if not any(path.match(pattern) for pattern in skip)]
  if not paths:
    raise ValueError(f"{root}: no Python files")
  return Package(modules=[read_module(path, root, kinds) for path in paths],
                 graph=read_graph(paths, root, inside_functions=True),
                 start_graph=read_graph(paths, root, inside_functions=False))


def read_graph(paths: list[pathlib.Path], root: pathlib.Path, *, inside_functions: bool) -> Graph:
  """Imports among these files; what is skipped is not in the graph either."""
  names = {module_name(path, root): path for path in paths}
  graph = {}
  for name, path in names.items():
    imported = imports(path, root, inside_functions=inside_functions)
    graph[short(name, root)] = [short(other, root) for other in imported if other in names]
  return graph


def short(module: str, root: pathlib.Path) -> str:
  """The module's name without that of the package; the package's for the package itself."""
  return module.removeprefix(f"{package_name(root)}.")


def read_module(path: pathlib.Path, root: pathlib.Path, kinds: tuple[type, ...]) -> Module:
  """Counts one file."""
  tree = parse(path)
  name = short(module_name(path, root), root)
  return Module(name=name,
                path=path.resolve().relative_to(root.resolve().parent),
                counts=count(path.read_text(encoding="utf-8"), tree, kinds),
                functions=list(read_functions(tree, kinds, name)),
                any_fields=any_fields(tree),
                private_uses=sorted(private_uses(tree, path, root)))


def count(text: str, tree: ast.Module, kinds: tuple[type, ...]) -> Counts:
  """Lines, nodes and assignments of one file."""
  docstrings = docstring_lines(tree)
  code, comments = code_and_comment_lines(text)
  assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
  return Counts(lines=len(text.splitlines()),
                code=len(code - docstrings),
                comments=len(comments),
                only_comment=len(comments - code),
                docstrings=len(docstrings),
                nodes=count_nodes(tree, kinds),
                assignments=len(assignments),
                tuple_assignments=sum(map(is_tuple_assignment, assignments)))


def count_nodes(tree: ast.AST, kinds: tuple[type, ...]) -> int:
  """Nodes of these classes in a tree, its root included."""
  return sum(isinstance(node, kinds) for node in ast.walk(tree))


def docstring_lines(tree: ast.Module) -> set[int]:
  """Lines that docstrings stand on, empty ones within them included."""
  lines: set[int] = set()
  for node in ast.walk(tree):
    if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and node.body:
      first = node.body[0]
      if is_text(first):
        lines.update(range(first.lineno, last_line(first) + 1))
  return lines


def code_and_comment_lines(text: str) -> tuple[set[int], set[int]]:
  """Lines that have code, docstrings among it, and lines that have a comment."""
  code: set[int] = set()
  comments: set[int] = set()
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      comments.add(token.start[0])
    elif token.type not in LAYOUT:
      code.update(range(token.start[0], token.end[0] + 1))
  # An empty line within a string of several lines belongs to a token, and is blank all the same.
  blank = {number for number, line in enumerate(text.split("\n"), 1) if not line.strip()}
  return code - blank, comments


def is_tuple_assignment(node: ast.Assign) -> bool:
  """Whether it is `a, b = x, y`, in place of two assignments."""
  return isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def read_functions(node: ast.AST, kinds: tuple[type, ...], around: str) -> Iterator[Function]:
  """Functions below a node, an outer one before those in it."""
  for child in ast.iter_child_nodes(node):
    name = around
    if isinstance(child, (ast.ClassDef, *FUNCTIONS)):
      name = f"{around}.{child.name}"
    if isinstance(child, FUNCTIONS):
      docstring = ast.get_docstring(child)
      more_docstring = (docstring or "").count("\n")
      yield Function(name=name,
                     line=child.lineno,
                     lines=last_line(child) - child.lineno + 1 - more_docstring,
                     nodes=count_nodes(child, kinds),
                     documented=docstring is not None,
                     typed=is_typed(child))
    yield from read_functions(child, kinds, name)


def last_line(node: ast.stmt) -> int:
  """Where a statement ends, which `ast` leaves out for trees that were not parsed from text."""
  return node.end_lineno or node.lineno


def is_typed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
  """Whether every parameter besides self and cls is annotated; *args and **kwargs may be bare."""
  arguments = function.args
  parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
  return all(p.annotation is not None or p.arg in ("self", "cls") for p in parameters)


def any_fields(tree: ast.Module) -> dict[str, int]:
  """How many fields are annotated `Any`, for each dataclass and NamedTuple that has some."""
  counts = {}
  for record in ast.walk(tree):
    if isinstance(record, ast.ClassDef) and is_record(record):
      bare = sum(isinstance(field, ast.AnnAssign) and last_name(field.annotation) == "Any"
                 for field in record.body)
      if bare:
        counts[record.name] = bare
  return counts


def is_record(node: ast.ClassDef) -> bool:
  """Whether a class is a dataclass, of whatever library, or a NamedTuple."""
  return ("dataclass" in map(last_name, node.decorator_list)
          or "NamedTuple" in map(last_name, node.bases))


def last_name(node: ast.expr) -> str:
  """dataclass of `@dataclasses.dataclass(frozen=True)`; empty for what is no dotted name."""
  if isinstance(node, ast.Call):
    node = node.func
  if isinstance(node, ast.Attribute):
    return node.attr
  return node.id if isinstance(node, ast.Name) else ""


def private_uses(tree: ast.Module, path: pathlib.Path, root: pathlib.Path) -> Iterator[Use]:
  """Private names that a file takes from other modules of the package, or reads on them."""
  importer = module_name(path, root)
  modules = {}  # what the file calls them: their names
  for taken in package_imports(tree, path, root):
    if taken.module == importer:
      continue
    name = short(taken.module, root)
    if taken.attribute:
      if is_private(taken.attribute):
        yield Use(taken.line, f"{name}.{taken.attribute}")
      continue
    modules[taken.local] = name
    package, _, last = taken.module.rpartition(".")
    if is_private(last) and not is_within(importer, package):
      yield Use(taken.line, name)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and is_private(node.attr):
      owner = ast.unparse(node.value)
      if owner in modules:
        yield Use(node.lineno, f"{modules[owner]}.{node.attr}")


def is_private(name: str) -> bool:
  """A leading underscore, but not `__name__`."""
  return name.startswith("_") and not name.endswith("__")
