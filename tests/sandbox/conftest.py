"""The fixture of all tests in this folder: a sandbox of each kind that works on this machine."""

import pytest

from entrolab.verify.sandbox.outside import KINDS, Limits, Sandbox, SandboxError


@pytest.fixture(scope="module", params=KINDS)
def box(request):
  try:
    return Sandbox(request.param, limits=Limits(seconds=30.0))
  except SandboxError as error:
    pytest.skip(str(error))
