"""Files that are there whole or not at all."""

import os
import pathlib
import tempfile


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes beside the target and renames: a reader or a kill never meets half a file."""
  with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
    file.write(text)
  os.chmod(file.name, 0o644)
  os.replace(file.name, path)
