"""Array types, and the slots of an objective as return types.

`Float[Array, "B T"]` and its kin come from jaxtyping where it is installed and mean a plain
`jax.Array` elsewhere, so that a loss can be imported with jax alone. B rows (groups contiguous),
T response positions, V vocabulary entries.

The return annotation of a method says which slot of the equation it fills; `Objective` reads it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import jax
import jax.numpy as jnp

if TYPE_CHECKING:  # a shape is a comment to a type checker
  from typing import Annotated as Bool
  from typing import Annotated as Float
  from typing import Annotated as Int
  from typing import Annotated as Key

  Array = jax.Array
else:
  try:
    from jaxtyping import Array, Bool, Float, Int, Key
  except ImportError:  # the types are documentation then
    class _Plain:
      def __class_getitem__(cls, item: Any) -> type:
        return jax.Array

    Array, Bool, Float, Int, Key = jax.Array, _Plain, _Plain, _Plain, _Plain

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Reward", "Advantage", "Weight", "Surrogate",
           "Penalty", "Scale", "Outer", "SLOTS", "name_of", "slot_of", "real"]

Reward = Annotated[Float[Array, " B"], "reward"]  # a scalar for each response, from its verdict
Advantage = Annotated[Float[Array, "B *T"], "advantage"]  # for each row or token; gradient stopped
Weight = Annotated[Float[Array, "B T"], "weight"]  # multiplies a term; gradient stopped
Surrogate = Annotated[Float[Array, "B T"], "surrogate"]  # the policy-gradient loss of a token
Penalty = Annotated[Float[Array, "B T"], "penalty"]  # added to the loss of a token
Scale = Annotated[Float[Array, "B T"], "scale"]  # how tokens add up; the denominator is part of it
Outer = Annotated[Float[Array, ""], "outer"]  # a function of one aggregated penalty
SLOTS = ("reward", "advantage", "weight", "surrogate", "penalty", "scale", "outer")


def name_of(fn: Callable[..., Any]) -> str:
  """`file.function`, by which configurations, checkpoints and metrics know a function: `kl.k3`.

  The folders above the file are left out, so that moving them changes no identity.
  """
  return f"{fn.__module__.rsplit('.', 1)[-1]}.{fn.__qualname__}"


def slot_of(annotation: Any) -> str | None:
  """The slot that a return annotation names; None where it names none."""
  if get_origin(annotation) is not Annotated:
    return None
  return next((extra for extra in get_args(annotation)[1:] if extra in SLOTS), None)


def real(x: Array) -> Array:
  """x as the default float type: float32, or float64 where 64-bit types are enabled."""
  return jnp.asarray(x).astype(jnp.result_type(float))
