"""README's table of methods, out of the methods' own docstrings and docs/results.json.

  python scripts/methods_table.py [--check README.md | --write README.md]
  python scripts/methods_table.py --differences   # docs/papers_against_code.md
  python scripts/methods_table.py --collect NAME=RUN ...   # finished runs to docs/results.json
"""

import argparse
import ast
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results.json"
FIGURES = ("pass@1", "pass@16", "entropy")  # after the default run of the recipe
SHARED = "base_objectives"  # recipe, tests and golden files of many
BASELINES = ("toy", "grpo", SHARED)
BEGIN, END = "<!-- methods -->\n", "<!-- /methods -->"


def header(path: pathlib.Path) -> str:
  """The module's docstring with line breaks as spaces."""
  return " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())


def recipe_of(stem: str) -> pathlib.Path | None:
  """The recipe of that name, or one that uses the method, baselines first."""
  paths = sorted((ROOT / "experiments").glob("*.py"))
  recipes = sorted(paths, key=lambda p: (*BASELINES, p.stem).index(p.stem))
  uses = [p for p in recipes if re.search(rf"\b{stem}\.\w", p.read_text())]
  return next((p for p in [*recipes, *uses] if p.stem == stem), uses[0] if uses else None)


def golden_of(stem: str) -> str:
  """What the golden files of a method are called: the base objectives share theirs."""
  own = any((ROOT / "tests/golden").glob(f"{stem}_*"))
  used = re.search(rf"\b{stem}\.\w", (ROOT / f"tests/methods/{SHARED}_test.py").read_text())
  return SHARED if used and not own else stem


def row(path: pathlib.Path) -> str:
  """One method: what, paper, acts on, state, file, recipe, golden files."""
  text, stem = header(path), path.stem
  what = text.split(": ", 1)[1].split(". ")[0].removesuffix(".")
  papers = ", ".join(f"[{i}](https://arxiv.org/abs/{i})"
                     for i in dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)))
  part = lambda name: (re.search(rf"{name}: (.*?)\.(?: |$)", text) or ["", "none"])[1].strip()
  recipe, golden = recipe_of(stem), len(list((ROOT / "tests/golden").glob(f"{golden_of(stem)}_*")))
  known = json.loads(RESULTS.read_text())
  result = known.get(stem)
  if recipe and recipe.stem != SHARED:  # a part of a recipe that has another name
    result = result or known.get(recipe.stem)
  cells = [f"[`{stem}`](entrolab/methods/{stem}.py)", what, papers or "own definition",
           part("Acts on"), part("State"),
           f"[{recipe.name}](experiments/{recipe.name})" if recipe else "",
           f"{golden} pass" if golden else "",
           " / ".join(f"{result[name]:.3f}" for name in FIGURES) if result else "no own run"]
  return "| " + " | ".join(cells) + " |"


def table() -> str:
  """The whole table, sorted by file."""
  files = sorted(p for p in (ROOT / "entrolab/methods").glob("*.py") if p.stem != "__init__")
  head = ["| method | what it does | paper | acts on | state | recipe | golden files | pass@1 / "
          "pass@16 / entropy |", "|---|---|---|---|---|---|---|---|"]
  return "\n".join([*head, *map(row, files)]) + "\n"


def differences() -> str:
  """docs/papers_against_code.md: one row a difference that a header states."""
  lines = ["# Papers against their code", "",
           "Where a paper, its official code and this project disagree: one row a difference, as",
           "the header of the method states it. Keywords in code type select the sides;",
           "`scope=\"micro\"` of `Objective` scores each micro-batch alone, as most official code",
           "does. Made by",
           "`python scripts/methods_table.py --differences`.", "",
           "| method | difference |", "|---|---|"]
  for path in sorted((ROOT / "entrolab/methods").glob("*.py")):
    found = re.search(r"Differs from (?:the|that) .*?: (.*)", header(path))
    if not found:
      continue
    parts = re.split(r";? ?\(\d\) ", found[1])
    rows = [p.strip().rstrip(";") for p in parts if p.strip()]
    lines += [f"| `{path.stem}` | {text[0].upper() + text[1:]} |" for text in rows]
  return "\n".join(lines) + "\n"


def collect(runs: list[str]) -> None:
  """Adds the first and last evaluation of finished runs (`name=folder`) to docs/results.json."""
  known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
  for entry in runs:
    name, _, folder = entry.partition("=")
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    evaluations = [r for r in rows if "eval/entropy" in r]
    before, after = evaluations[0], evaluations[-1]
    touched = [r["method/touched"] for r in rows if "method/touched" in r]
    figures = {n: round(after[f"eval/{n}"], 4) for n in (*FIGURES, "pass@1_low", "pass@1_high")}
    known[name] = {**figures, "touched": [round(touched[0], 4), round(touched[-1], 4)],
                   "steps": len(touched), "before": round(before["eval/pass@1"], 4)}
  RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def main() -> None:
  """Prints, checks or writes."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--check", type=pathlib.Path, metavar="README")
  parser.add_argument("--write", type=pathlib.Path, metavar="README")
  parser.add_argument("--differences", action="store_true")
  parser.add_argument("--collect", nargs="+", metavar="NAME=RUN")
  args = parser.parse_args()
  if args.collect:
    collect(args.collect)
    return
  if args.differences:
    print(differences(), end="")
    return
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
