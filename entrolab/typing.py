"""Array types, and the slots of an objective as return types.

`Float[Array, "B T"]` and its kin come from jaxtyping where it is installed and are annotations of
`jax.Array` elsewhere, so that a loss can be imported with jax alone; `declared` reads either.
B rows (groups contiguous), T response positions, V vocabulary entries.

The return annotation of a method says which slot of the equation it fills; `Objective` reads it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_origin

import jax
import jax.numpy as jnp


class Declared(NamedTuple):
  """What an annotation says of an array."""
  kind: str  # "bool", "float", "int" or "key"
  dims: tuple[str, ...]  # a name or a number for each axis; "*b" stands for any number of axes


if TYPE_CHECKING:  # a shape is a comment to a type checker
  from typing import Annotated as Bool
  from typing import Annotated as Float
  from typing import Annotated as Int
  from typing import Annotated as Key

  Array = jax.Array
else:
  try:
    from jaxtyping import Array, Bool, Float, Int, Key
  except ImportError:
    class _Kind:
      """`_Kind("float")[Array, "B T"]` is `Annotated[Array, Declared("float", ("B", "T"))]`."""

      def __init__(self, kind: str):
        self.kind = kind

      def __getitem__(self, item: tuple[type, str]) -> Any:
        return Annotated[item[0], Declared(self.kind, tuple(item[1].split()))]

    Array, Bool, Float, Int, Key = jax.Array, *map(_Kind, ("bool", "float", "int", "key"))

__all__ = ["Array", "Bool", "Declared", "Float", "Int", "Key", "Reward", "Advantage", "Weight",
           "Surrogate", "Penalty", "Scale", "Outer", "SLOTS", "boolean", "declared", "exact",
           "name_of", "slot_of", "real"]

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


def declared(annotation: Any) -> Declared | None:
  """What the annotation of an array, or of an array or None, says; None for any other annotation.
  """
  if get_origin(annotation) in (Union, type(int | None)):
    members = [member for member in get_args(annotation) if member is not type(None)]
    return declared(members[0]) if len(members) == 1 else None
  if get_origin(annotation) is Annotated:
    inner, *extras = get_args(annotation)
    found = next((extra for extra in extras if isinstance(extra, Declared)), None)
    return found or declared(inner)
  kinds: dict[str, Any] = {"bool": Bool, "float": Float, "int": Int, "key": Key}
  if isinstance(annotation, type) and "jaxtyping" in type(annotation).__module__:
    of: Any = annotation
    kind = next(name for name, other in kinds.items() if of.dtypes == other.dtypes)
    return Declared(kind, tuple(of.dim_str.split()))
  return None


def boolean(x: Array) -> Array:
  """x as a flag: true where it is not 0. Numbers would be rounded by `&`, negated bit by bit by
  `~`, and taken for positions by an index."""
  return x if jnp.result_type(x) == jnp.bool_ else jnp.asarray(x) != 0


def real(x: Array) -> Array:
  """x as the default float type: float32, or float64 where 64-bit types are enabled."""
  return jnp.asarray(x).astype(jnp.result_type(float))


def exact(x: Array) -> jax.lax.Precision | None:
  """The precision of a matmul of x: float32 is float32 on every device. By default an accelerator
  multiplies float32 in one pass of bfloat16 (TPU) or TF32 (GPU)."""
  wide = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits >= 32
  return jax.lax.Precision.HIGHEST if wide else None
