"""Symbolic comparison as a service of workers: a job is (reference, answer, decimals)."""

from typing import Any

from entrolab.verify.symbolic import compare


def load() -> None:
  """Imports math-verify. Raises ImportError with the command that installs it."""
  try:
    compare.load()
  except ImportError as error:
    raise ImportError(f"a verifier worker cannot import math-verify ({error}): {compare.INSTALL}"
                      ) from None


def prepare(context: Any) -> None:
  """Comparisons share nothing."""
  del context


def work(prepared: None, gold: str, answer: str, digits: int) -> tuple[list[str], bool]:
  """([status, reason], False) of `compare.compare`."""
  del prepared
  return [*compare.compare(gold, answer, digits)], False
