"""Every golden file of the repository, value by value, in float64."""

import pathlib

import pytest

from tests import adapters

FILES = sorted((pathlib.Path(__file__).parent / "golden").glob("*.npz"))
assert FILES, "tests/golden holds no file"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden(path):
  case, worst = adapters.check(path)
  assert worst.error <= worst.tolerance
  assert len(case.rows) >= 1
