"""Writes the table of modules in docs/architecture.md from the modules' docstrings.

  python -m scripts.module_map

A row is a module and the first line of its docstring; a room's row is its package's.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'architecture.md'
BEGIN, END = '<!-- modules -->', '<!-- end of modules -->'


def module_map() -> str:
  """Returns the table as Markdown: the equations first, then the rooms."""
  top = ROOT / 'r1jax'
  lines = ['| module | what it holds |', '|---|---|']
  lines += [_row(path) for path in _modules(top)]
  for room in sorted(path.parent for path in top.glob('*/__init__.py')):
    lines.append(_row(room / '__init__.py'))
    lines += [_row(path) for path in sorted(room.glob('*/__init__.py'))]
    lines += [_row(path) for path in _modules(room)]
  return '\n'.join(lines)


def updated(page: str) -> str:
  """Returns the page with the table of today between its two marks."""
  before, rest = page.split(BEGIN)
  _, after = rest.split(END)
  return f'{before}{BEGIN}\n\n{module_map()}\n\n{END}{after}'


def _modules(folder: Path) -> list[Path]:
  return [path for path in sorted(folder.glob('*.py')) if path.name[:2] != '__']


def _row(path: Path) -> str:
  docstring = ast.get_docstring(ast.parse(path.read_text())) or ''
  first = re.split(r'\n\n', docstring, maxsplit=1)[0].replace('\n', ' ').rstrip('.')
  package = path.name == '__init__.py'
  name = path.parent if package else path
  relative = f'{name.relative_to(ROOT / "r1jax").as_posix()}{"/" * package}'
  shown = f'**{relative}**' if package else f'[{relative}](../r1jax/{relative})'
  return f'| {shown} | {first.replace("|", chr(92) + "|")} |'


if __name__ == '__main__':
  PAGE.write_text(updated(PAGE.read_text()))
