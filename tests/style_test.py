"""Sizes, docstrings, headers, and calls that data must never reach."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "entrolab").rglob("*.py"))
METHODS = [p for p in FILES if p.parent.name == "methods" and p.stem != "__init__"]
RECIPES = sorted((ROOT / "experiments").glob("*.py"))
name = lambda p: str(p.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_sizes_and_docstrings(path):
  text = path.read_text()
  tree = ast.parse(text)
  assert text.count("\n") <= (200 if path in METHODS else 400)
  assert ast.get_docstring(tree), "a file says what it is"
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      doc = ast.get_docstring(node) or ""
      assert (node.end_lineno or 0) - node.lineno + 1 - doc.count("\n") <= 60, node.name
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


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipes_are_short_and_state_measured_numbers(path):
  text = path.read_text()
  assert text.count("\n") <= 50
  header = ast.get_docstring(ast.parse(text)) or ""
  assert f"--config=experiments/{path.name}" in header and "Expect" in header
  assert re.search(r"Expect.*\d", header, re.S) and "FIGURES" not in header
