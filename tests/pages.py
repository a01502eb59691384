"""Reads the Markdown of the README and of docs/."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / 'README.md'
DOCS = ROOT / 'docs'
PAGES = (README, *sorted(DOCS.glob('*.md')))

FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def fenced(text: str, language: str = '') -> list[str]:
  """Returns the fenced blocks of a language; '' is that of commands and maps."""
  return [code for name, code in FENCE.findall(text) if name == language]


def prose(text: str) -> str:
  """Returns the text without code, tables, headings, pictures and comments."""
  lines = FENCE.sub('', text).splitlines()
  return '\n'.join('' if re.match(r'[#|<]|!\[', line) else line for line in lines)


def paragraphs(text: str) -> list[str]:
  """Returns the paragraphs and the items of lists."""
  items = re.sub(r'^\s*(?:- |\d+\. )', '\n', prose(text), flags=re.MULTILINE)
  return [part.strip() for part in items.split('\n\n') if part.strip()]


def tables(text: str) -> list[list[list[str]]]:
  """Returns each table as rows of cells; the second row is the rule."""
  return list(_tables(text))


def _tables(text: str) -> Iterator[list[list[str]]]:
  for block in re.findall(r'(?:^\|.*\|\n)+', text, re.MULTILINE):
    yield [
      [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
      for line in block.splitlines()
    ]


def commands(text: str) -> list[list[str]]:
  """Returns the words of each `python -m ...` in blocks and in the text.

  A command that goes on behind a backslash is one; what follows a # is left out.
  """
  joined = text.replace('\\\n', ' ')
  lines = [line for block in fenced(joined) for line in block.splitlines()]
  lines += re.findall(r'`([^`\n]*python -m [^`]*)`', FENCE.sub('', joined))
  found = (re.search(r'python -m ([^#]*)', line) for line in lines)
  return [command.group(1).split() for command in found if command]


def anchors(text: str) -> set[str]:
  """Returns the anchors that GitHub gives to the headings."""
  titles = re.findall(r'^#+ (.*)$', FENCE.sub('', text), re.MULTILINE)
  plain = [re.sub(r'[^\w\- ]', '', title.lower()) for title in titles]
  return {title.replace(' ', '-') for title in plain}
