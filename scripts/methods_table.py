"""README's table of methods, and where papers differ from their code, out of the methods' headers.

  python scripts/methods_table.py --write   # README.md and docs/papers_against_code.md
  python scripts/methods_table.py --check   # exits 1 when one of them is out of date
  python scripts/methods_table.py --collect NAME=RUN ...   # finished runs to docs/results.json
"""

import argparse
import ast
import functools
import json
import pathlib
import re
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import adapters  # noqa: E402

README = ROOT / "README.md"
DIFFERENCES = ROOT / "docs/papers_against_code.md"
RESULTS = ROOT / "docs/results.json"
GOLDEN = ROOT / "tests/golden"
METHODS = sorted(path.stem for path in (ROOT / "entrolab/methods").glob("*.py")
                 if path.stem != "__init__")
FIGURES = ("pass@1", "pass@16", "entropy")  # after the default run of the recipe
SHARED = "base_objectives"  # the recipe of many methods
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


def golden_files(stem: str) -> list[pathlib.Path]:
  """The golden files that compare a method: those of its name, else the shared ones that use it."""
  slugs = {path: adapters.slug_of(path) for path in sorted(GOLDEN.glob("*.npz"))}
  same_name = [path for path, slug in slugs.items() if slug == stem]
  return same_name or [path for path, slug in slugs.items()
                 if slug in adapters.SHARED and stem in methods_compared(adapters.SHARED[slug])]


@functools.cache
def methods_compared(module: str) -> set[str]:
  """The methods that `golden` of a test module uses, itself or through what the module defines."""
  defined: dict[str, ast.stmt] = {}
  for statement in ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()).body:
    if isinstance(statement, ast.FunctionDef):
      defined[statement.name] = statement
    elif isinstance(statement, ast.Assign):
      defined |= {target.id: statement for target in statement.targets
                  if isinstance(target, ast.Name)}
  used: set[str] = set()
  pending = ["golden"]
  while pending:
    for node in ast.walk(defined[pending.pop()]):
      if isinstance(node, ast.Name) and node.id not in used:
        used.add(node.id)
        if node.id in defined:
          pending.append(node.id)
  return used & {*METHODS}


def row(path: pathlib.Path) -> str:
  """One method: what, paper, acts on, state, file, recipe, golden files."""
  text, stem = header(path), path.stem
  what = text.split(": ", 1)[1].split(". ")[0].removesuffix(".")
  papers = ", ".join(f"[{i}](https://arxiv.org/abs/{i})"
                     for i in dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)))
  part = lambda name: (re.search(rf"{name}: (.*?)\.(?: |$)", text) or ["", "none"])[1].strip()
  recipe, golden = recipe_of(stem), len(golden_files(stem))
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
  files = [ROOT / f"entrolab/methods/{stem}.py" for stem in METHODS]
  head = ["| method | what it does | paper | acts on | state | recipe | golden files | pass@1 / "
          "pass@16 / entropy |", "|---|---|---|---|---|---|---|---|"]
  return "\n".join([*head, *map(row, files)]) + "\n"


def differences() -> str:
  """docs/papers_against_code.md: one row a difference that a header states."""
  lines = ["# Papers against their code", "",
           "Where a paper, its official code and this project disagree: one row a difference, as",
           "the header of the method states it. Keywords in code type select the sides;",
           "`scope=\"micro\"` of `Objective` scores each micro-batch alone, as most official code",
           "does. Made by `python scripts/methods_table.py --write`.", "",
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
    changed = [r["method/tokens_changed"] for r in rows if "method/tokens_changed" in r]
    figures = {n: round(after[f"eval/{n}"], 4) for n in (*FIGURES, "pass@1_low", "pass@1_high")}
    known[name] = {**figures, "tokens_changed": [round(changed[0], 4), round(changed[-1], 4)],
                   "steps": len(changed), "before": round(before["eval/pass@1"], 4)}
  RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def up_to_date() -> dict[pathlib.Path, str]:
  """The text that README.md and docs/papers_against_code.md should have."""
  before, _, rest = README.read_text().partition(BEGIN)
  _, end, after = rest.partition(END)
  if not end:
    raise ValueError(f"{README}: no table between {BEGIN.strip()} and {END}")
  return {README: before + BEGIN + table() + END + after, DIFFERENCES: differences()}


def main(arguments: Sequence[str] | None = None) -> None:
  """Writes or checks both tables, or collects runs."""
  what, _, how = (__doc__ or "").partition("\n")
  parser = argparse.ArgumentParser(description=what, epilog=how,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  action = parser.add_mutually_exclusive_group(required=True)
  action.add_argument("--write", action="store_true")
  action.add_argument("--check", action="store_true")
  action.add_argument("--collect", nargs="+", metavar="NAME=RUN")
  args = parser.parse_args(arguments)
  if args.collect:
    collect(args.collect)
    return
  texts = up_to_date()
  old = [path for path, text in texts.items() if path.read_text() != text]
  if args.check and old:
    names = ", ".join(path.name for path in old)
    sys.exit(f"out of date: {names}; run python scripts/methods_table.py --write")
  if args.write:
    for path in old:
      path.write_text(texts[path])
      print(f"wrote {path}")


if __name__ == "__main__":
  main()
