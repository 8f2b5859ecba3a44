"""Sizes, docstrings, headers, and calls that data must never reach."""

import ast
import pathlib
import re

import pytest

from scripts import house_counts, house_figures

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "entrolab").rglob("*.py"))
METHODS = [p for p in FILES if p.parent.name == "methods" and p.stem != "__init__"]
RECIPES = sorted((ROOT / "experiments").glob("*.py"))
name = lambda p: str(p.relative_to(ROOT))


def over_bounds(package):
  """Modules and functions that have more lines or nodes than scripts/house.py allows."""
  found = {}
  for module in package.modules:
    counts = module.counts
    if counts.lines > house_figures.FILE_LINES or counts.nodes > house_figures.FILE_NODES:
      found[module.name] = f"{counts.lines} lines, {counts.nodes} AST nodes"
    found |= {function.name: f"{function.nodes} AST nodes" for function in module.functions
              if function.nodes > house_figures.FUNCTION_NODES}
  return found


def test_sizes():
  assert not over_bounds(house_counts.read_package(ROOT / "entrolab"))


def test_sizes_are_seen(tmp_path):
  (tmp_path / "long.py").write_text("\n" * (house_figures.FILE_LINES + 1))
  (tmp_path / "dense.py").write_text("x; x; x; x; x\n" * 201)
  (tmp_path / "right.py").write_text("def small():\n" + "  x\n" * 174)
  (tmp_path / "large.py").write_text("class A:\n  def large(self):\n" + "    x\n" * 175)
  found = over_bounds(house_counts.read_package(tmp_path))
  assert found.keys() == {"long", "dense", "large.A.large"}


@pytest.mark.parametrize("path", METHODS, ids=name)
def test_methods_are_short(path):
  assert path.read_text().count("\n") <= 220


@pytest.mark.parametrize("path", FILES, ids=name)
def test_docstrings(path):
  tree = ast.parse(path.read_text())
  assert ast.get_docstring(tree), "a file says what it is"
  for node in tree.body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
      assert ast.get_docstring(node), node.name


def calls(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_data_is_never_executed(path):
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      modules = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
      assert not {"pickle", "dill", "cloudpickle", "marshal"} & set(modules)
    if isinstance(node, ast.ExceptHandler):
      assert node.type is not None, f"bare except in line {node.lineno}"
  for function, keywords in calls(tree):
    assert function not in ("eval", "exec", "compile", "os.system"), function
    assert keywords.get("shell") != "True" and keywords.get("trust_remote_code") != "True"
    assert keywords.get("allow_pickle") != "True"


@pytest.mark.parametrize("path", METHODS, ids=name)
def test_method_headers(path):
  doc = ast.get_docstring(ast.parse(path.read_text())) or ""
  assert re.match(r"[A-Z0-9][^\n]*: [^\n]+\.\n", doc), "NAME: what it does."
  header = " ".join(doc.split())
  assert re.search(r"arXiv:\d{4}\.\d{4,5}|own definition", header)
  for part in ("Acts on: ", "State: ", "Official code: "):
    assert part in header, part
  assert "Differs from " in header


MEASURED = r"pass@1 [01]\.\d{3} -> [01]\.\d{3}\b"


def states_result(header):
  """Whether a recipe's header says behind `Expect` what was measured, or that nothing was."""
  _, expect, result = " ".join(header.split()).partition("Expect")
  without_intervals = re.sub(r" \[[^\]]*\]", "", result)
  return bool(expect) and bool(re.search(rf"{MEASURED}|\bunmeasured\b", without_intervals))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipes_are_short_and_state_their_result(path):
  text = path.read_text()
  assert text.count("\n") <= 50
  header = ast.get_docstring(ast.parse(text)) or ""
  assert f"--config=experiments/{path.name}" in header
  assert states_result(header), (
      f"{name(path)}: write into its docstring `Expect (seed 0, 256 problems): pass@1 0.xxx -> "
      "0.xxx`, out of your own run, or `Expect: unmeasured.`")


@pytest.mark.parametrize("header, stated", [
    ("Expect (seed 0, 256 problems): pass@1 0.400 -> 0.486, pass@16 0.863 -> 0.828", True),
    ("Expect (seed 0): pass@1 0.318 [0.256, 0.381] ->\n0.454 [0.381, 0.527].", True),
    ("Expect: unmeasured.", True),
    ("Expect (seed 0): not measured", False),
    ("Expect (seed 0): pass@1 0.4 -> 0.5", False),
    ("Expect (seed 0): pass@1 0.xxx -> 0.xxx", False),
    ("Expect (seed 0): pass@16 0.400 -> 0.486", False),
    ("pass@1 0.400 -> 0.486, before anything is expected", False),
    ("Unmeasured figures. Expect pass@1 to rise by 0.1.", False),
])
def test_a_result_that_is_not_stated_is_seen(header, stated):
  assert states_result(header) == stated


def asked_what_they_have(tree):
  """Lines that ask a task or a strategy by getattr, hasattr or isinstance what it has."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
      of = ast.unparse(node.args[0]).split(".")[-1]
      if node.func.id in ("getattr", "hasattr", "isinstance") and of in (
          "task", "strategy", "rollout", "environment"):
        yield node.lineno


# below verify/ a task is a program to be run, of two kinds
@pytest.mark.parametrize("path", [p for p in FILES if "verify" not in p.parts], ids=name)
def test_tasks_and_strategies_are_not_asked_what_they_have(path):
  """Their protocols have a default for every optional member."""
  assert not list(asked_what_they_have(ast.parse(path.read_text())))


def test_a_question_to_a_task_is_seen():
  assert list(asked_what_they_have(ast.parse("key = getattr(engine.task, 'key', None)"))) == [1]
