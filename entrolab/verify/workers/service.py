"""What a worker serves: a module with three functions, named when the pool is made."""

from typing import Any, Protocol


class Service(Protocol):
  """The three functions. Of their arguments only those of `work` come from a policy."""

  def load(self) -> None:
    """Imports what the service needs, in the worker, which is not confined.

    Raises ImportError, which says what to install.
    """
    ...

  def prepare(self, context: Any) -> Any:
    """What jobs of a context share, made in the worker before the child is forked that needs it."""
    ...

  def work(self, prepared: Any, *job: Any) -> tuple[Any, bool]:
    """(the value of a job as plain JSON, whether this child must not serve another), in the child.

    Whatever it raises leaves the job without a value.
    """
    ...
