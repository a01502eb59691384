"""What a comparison says, in words and as a page of its own."""

import dataclasses
from collections.abc import Sequence
from html import escape

from r1jax.report.page import PAGE

LEVEL = 0.05  # of a test; divided by the number of tests in a family
ROLES = ('one', 'two', 'three', 'four', 'five')  # of curves, in order
# The page has colours for two curves; these are told apart in light and dark.
_STYLE = """<style>
:root { --three: #7a4fa3; --four: #9a7b12; --five: #3d6fb4; }
@media (prefers-color-scheme: dark) {
  :root { --three: #b794dc; --four: #d3b44c; --five: #82aee6; }
}
.line.three { stroke: var(--three); }
.line.four { stroke: var(--four); }
.line.five { stroke: var(--five); }
.band.three, .dot.three, .name.three { fill: var(--three); }
.band.four, .dot.four, .name.four { fill: var(--four); }
.band.five, .dot.five, .name.five { fill: var(--five); }
</style>"""


def verdict(difference: float, told_apart: bool) -> str:
  """'higher', 'lower', or 'not told apart'."""
  if not told_apart or not difference:
    return 'not told apart'
  return 'higher' if difference > 0 else 'lower'


def shared(count: int, kind: str) -> str:
  """A sentence on how `count` comparisons of a kind share the level of the page."""
  level = 100 * LEVEL / count
  among = f', so each at {level:.2g} % with a {100 - level:.4g} % interval (Bonferroni)'
  return (
    f'{count} {"comparison" if count == 1 else "comparisons"} {kind}, at a level of '
    f'{100 * LEVEL:g} % in all{among if count > 1 else ""}.'
  )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
  """The rows of a table as lines of text: the first column left, the others right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *others in rows:
    cells = [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
    lines.append('  '.join([first.ljust(widths[0]), *cells]))
  return lines


def table(rows: Sequence[Sequence[str]]) -> str:
  """The rows as an HTML table, the first of them its head."""
  number = '<t{0} class="number">{1}</t{0}>'

  def row(cells: Sequence[str], kind: str) -> str:
    first, *others = map(escape, cells)
    rest = ''.join(number.format(kind, cell) for cell in others)
    return f'<tr><th>{first}</th>{rest}</tr>'

  head, *body = rows
  return (
    f'<div class="scroll"><table><thead>{row(head, "h")}</thead>'
    f'<tbody>{"".join(row(cells, "d") for cells in body)}</tbody></table></div>'
  )


def figure(title: str, caption: str, svg: str) -> str:
  """A chart with its title and what to look for."""
  return (
    f'<figure class="wide"><h3>{escape(title)}</h3>{svg}'
    f'<figcaption>{escape(caption)}</figcaption></figure>'
  )


def page(
  title: str, facts: str, sentences: Sequence[str], parts: Sequence[str], source: str
) -> str:
  """One HTML page; `parts` are HTML already, `source` says which files it shows."""
  lead = ''.join(f'<p>{escape(sentence)}</p>' for sentence in sentences)
  return PAGE.substitute(
    title=escape(title),
    facts=escape(facts),
    body='\n'.join([_STYLE, lead, *parts]),
    source=escape(source),
  )


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What an ablation says: lines for a terminal, a page for a browser or a notebook."""

  lines: list[str]
  html: str

  def _repr_html_(self) -> str:
    # In a frame of its own, as the page has its own style.
    source = escape(self.html)
    return f'<iframe srcdoc="{source}" width="100%" height="900"></iframe>'
