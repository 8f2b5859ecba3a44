"""README's table of methods, out of the methods' own docstrings.

  python scripts/methods_table.py [--check README.md | --write README.md]
"""

import argparse
import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- methods -->\n", "<!-- /methods -->"


def header(path: pathlib.Path) -> str:
  """The module's docstring with line breaks as spaces."""
  return " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())


def row(path: pathlib.Path) -> str:
  """One method: what, paper, acts on, state, file, recipe, golden files."""
  text, stem = header(path), path.stem
  what = text.split(": ", 1)[1].split(". ")[0].removesuffix(".")
  papers = ", ".join(f"[{i}](https://arxiv.org/abs/{i})"
                     for i in dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)))
  part = lambda name: (re.search(rf"{name}: (.*?)\.(?: |$)", text) or ["", "none"])[1].strip()
  recipe = ROOT / "experiments" / f"{stem}.py"
  golden = len(list((ROOT / "tests/golden").glob(f"{stem}_*.npz")))
  cells = [f"[`{stem}`](entrolab/methods/{stem}.py)", what, papers or "own definition",
           part("Acts on"), part("State"),
           f"[{recipe.name}](experiments/{recipe.name})" if recipe.is_file() else "",
           f"{golden} files" if golden else ""]
  return "| " + " | ".join(cells) + " |"


def table() -> str:
  """The whole table, sorted by file."""
  files = sorted(p for p in (ROOT / "entrolab/methods").glob("*.py") if p.stem != "__init__")
  head = ["| method | what it does | paper | acts on | state | recipe | golden |",
          "|---|---|---|---|---|---|---|"]
  return "\n".join([*head, *map(row, files)]) + "\n"


def main() -> None:
  """Prints, checks or writes."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--check", type=pathlib.Path, metavar="README")
  parser.add_argument("--write", type=pathlib.Path, metavar="README")
  args = parser.parse_args()
  path = args.check or args.write
  if path is None:
    print(table(), end="")
    return
  before, _, rest = path.read_text().partition(BEGIN)
  old, _, after = rest.partition(END)
  if args.check and old != table():
    sys.exit(f"{path}: the table of methods is out of date; run scripts/methods_table.py --write")
  if args.write:
    path.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
  main()
