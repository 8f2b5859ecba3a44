"""Chat templates as transformers renders them: jinja in a sandbox, with its names and filters."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

LIMIT = 65536  # characters of a template
# what a template may raise besides jinja's own errors: it runs arithmetic, look-ups and methods
FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


def check(where: object, template: str) -> None:
  """Raises ValueError for a chat template that is too long to be one."""
  if len(template) > LIMIT:
    raise ValueError(f"{where}: a chat template of {len(template)} characters; at most {LIMIT} are "
                     "accepted")


def failed(name: str, error: Exception) -> ValueError:
  """The error of a template that failed, with the template's words."""
  return ValueError(f"{name}: the chat template failed: {error}")


def _raise(message: str) -> NoReturn:
  from jinja2 import TemplateError
  raise TemplateError(message)


def _json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
          separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
  # jinja's own filter writes < and & for HTML
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                    sort_keys=sort_keys)


def _environment() -> Any:
  from jinja2 import nodes
  from jinja2.ext import Extension, loopcontrols
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  class Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what an assistant says; it renders as it is.
    """
    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return nodes.Scope(body).set_lineno(line)

  made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                       extensions=[Generation, loopcontrols])
  made.filters["tojson"] = _json
  made.globals |= dict(raise_exception=_raise,
                       strftime_now=lambda form: datetime.datetime.now().strftime(form))
  return made


def render(name: str, template: str, messages: Sequence[Mapping[str, Any]],
           special: Mapping[str, str]) -> str:
  """The text of a conversation, up to where the answer begins.

  special: the tokens that the template may name, such as bos_token. Raises ValueError, with the
  words of the template or of jinja, where it fails.
  """
  from jinja2 import TemplateError
  try:
    return _environment().from_string(template).render(
        messages=messages, tools=None, documents=None, add_generation_prompt=True, **special)
  except (TemplateError, *FAILURES) as error:
    raise failed(name, error) from error
