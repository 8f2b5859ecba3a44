"""A third-party environment that evaluates actions: what a worker must confine."""


class Evaluates:
  """The reward is the value of the action."""

  def reset(self, seed=None):
    """(observation, info)."""
    return f"seed {seed}", {}

  def step(self, action):
    """(observation, reward, terminated, truncated, info)."""
    return "next", eval(action), True, False, {}
