"""Fills in the templates of the report: pages of one file, without scripts."""

from pathlib import Path

import jinja2
from markupsafe import Markup

from r1jax.report import words

_TEMPLATES = jinja2.Environment(
  loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)
_TEMPLATES.filters['percent'] = words.percent


def render(template: str, **values: object) -> Markup:
  """Returns a file of `templates` filled in. Escapes every value that is no Markup."""
  return Markup(_TEMPLATES.get_template(template).render(values))
