"""Comparisons of models: sentences that tests support, and a page with a table."""

import dataclasses
from collections.abc import Sequence
from html import escape

from r1jax import statistics
from r1jax.report import page, words
from r1jax.report.chart import CurveFigure
from r1jax.report.words import LEVEL


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A comparison as lines for a terminal and as a page for a browser or a notebook."""

  lines: list[str]
  html: str

  def _repr_html_(self) -> str:
    # The page has a style sheet, so a notebook shows it in a frame.
    source = escape(self.html)
    return f'<iframe srcdoc="{source}" width="100%" height="900"></iframe>'


def compare(
  title: str,
  facts: str,
  table: Sequence[Sequence[str]],
  sentences: Sequence[str],
  figures: Sequence[CurveFigure],
  source: str,
  *,
  height: int = 320,
) -> Comparison:
  """Returns a comparison of models.

  The first row of `table` is its head. `height` is that of the charts, 880 wide.
  `source` names the files from which the page was made.
  """
  html = page.render(
    'comparison.html',
    title=title,
    facts=facts,
    table=table,
    sentences=sentences,
    figures=figures,
    height=height,
    source=source,
  )
  return Comparison([*words.aligned(table), *sentences], str(html))


def difference_sentence(
  after: str,
  before: str,
  difference: statistics.Interval,
  unit: str,
  p: float,
  level: float,
) -> str:
  """Returns a sentence on `after - before`, which is significant if `p < level`."""
  mean, low, high = difference
  if p >= level or not mean:
    relation = 'not significantly different from'
  else:
    relation = 'higher than' if mean > 0 else 'lower than'
  return (
    f'{after} is {relation} {before}, {mean:+z.1f} {unit} ({low:+z.1f} to '
    f'{high:+z.1f}), p = {p:.2g}.'
  )


def level_sentence(count: int, kind: str) -> str:
  """Returns a sentence on how `count` comparisons of a kind share the page's level."""
  level = 100 * LEVEL / count
  each = f', so each at {level:.2g} % with a {100 - level:.4g} % interval (Bonferroni)'
  return (
    f'{count} {"comparison" if count == 1 else "comparisons"} {kind}, at a level of '
    f'{100 * LEVEL:g} % in all{each if count > 1 else ""}.'
  )
