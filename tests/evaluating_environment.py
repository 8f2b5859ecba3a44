"""A third-party environment that evaluates actions: what a worker must confine."""


import os

from tests.dying_service import status_of


class Located:
  """An environment that shows in which process it is."""

  def reset(self, seed=None):
    """(observation, info)."""
    del seed
    return [os.getpid(), *status_of("self")], {}


class Evaluates:
  """The reward is the value of the action."""

  def reset(self, seed=None):
    """(observation, info)."""
    return f"seed {seed}", {}

  def step(self, action):
    """(observation, reward, terminated, truncated, info)."""
    return "next", eval(action), True, False, {}
