"""The figures by which the shape of a package is judged: size, density, comments, imports.

  python scripts/house.py [FOLDER] [--json] [--check] [--skip GLOB] [--every_node]
                          [--comments_of MODULE]

FOLDER is the folder of a Python package, entrolab/ when left out. Prints a table in Markdown, or
one line of JSON. With --check also every place that breaks a bound, and exits 1 if there is one.

  code line             neither blank, nor only a comment, nor part of a docstring
  comment               a line that has a comment, alone or behind code
  docstring lines       in percent of lines that are code, comment or docstring
  AST node              an expression or a statement of the syntax tree; with --every_node all that
                        `ast.walk` yields: contexts, operators, arguments and so on as well
  function, lines       from `def` to its end; a docstring counts as one line
  public function       at any level of nesting, without a leading underscore; it is typed when
                        every parameter besides self and cls is annotated
  import depth          modules in the longest chain of imports within the package; modules that
                        import each other in a circle count as one
  private cross-import  `other._name` of another module, or `from other import _name`; a private
                        module may be imported within the package that it lies in
  `Any` field           of a dataclass or NamedTuple, annotated `Any` and nothing else
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import house_counts, house_figures  # noqa: E402
from scripts.house_imports import imports  # noqa: E402

__all__ = ["imports", "main"]  # the laws on layers read imports from here


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints the figures, and with --check what breaks a bound."""
  what, _, details = (__doc__ or "").partition("\n")
  parser = argparse.ArgumentParser(description=what, epilog=details,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "entrolab",
                      metavar="FOLDER", help="a Python package; entrolab/ when left out")
  parser.add_argument("--json", action="store_true", help="one line of JSON, not the table")
  parser.add_argument("--check", action="store_true",
                      help=f"exit 1 for {house_figures.BOUNDS}; the places go to standard error")
  parser.add_argument("--skip", action="append", default=[], metavar="GLOB",
                      help="files to leave out, such as '*_test.py'; may be repeated")
  parser.add_argument("--every_node", action="store_true",
                      help="count all nodes that ast.walk yields")
  parser.add_argument("--comments_of", action="append", default=[], metavar="MODULE",
                      help="modules whose comments are counted one by one, such as rollout.draw, in"
                      " place of those where data changes hands; may be repeated")
  args = parser.parse_args(arguments)
  kinds = house_counts.EVERY_NODE if args.every_node else house_counts.NODES
  try:
    package = house_counts.read_package(args.folder, args.skip, kinds)
  except (SyntaxError, ValueError) as error:
    parser.error(str(error))
  rows = house_figures.figures(package, args.comments_of or house_figures.COMMENTED)
  print(json_line(rows) if args.json else table(rows))
  broken = list(house_figures.breaches(package)) if args.check else []
  for line in broken:
    print(line, file=sys.stderr)
  if broken:
    sys.exit(1)


def table(rows: list[house_figures.Figure]) -> str:
  """The figures in Markdown."""
  lines = [f"| {row.title} | {row.text} |" for row in rows]
  return "\n".join(["| figure | value |", "|---|---|", *lines])


def json_line(rows: list[house_figures.Figure]) -> str:
  """The figures by their keys."""
  return json.dumps({row.key: row.value for row in rows})


if __name__ == "__main__":
  main()
