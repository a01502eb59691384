"""Parses outputs: thoughts, summary, answer, reflective words."""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

TAGS = ('<think>', '</think>', '<answer>', '</answer>')
TAG_PATTERN = re.compile('|'.join(TAGS))
OPEN_BOX = 'The answer is \\boxed{'


class Parsed(NamedTuple):
  """The parts of a well-formed output, without the whitespace around them."""

  think: str
  summary: str
  answer: str


# Of an output; the template asks for it
Form = Literal['tags', 'boxed', 'line', 'code', 'text']


def parse(text: str, form: Form = 'tags') -> Parsed | None:
  """Returns the parts of an output, or None if it does not have the form.

  'tags' is `<think>…</think> … <answer>…</answer>`. Strict: each tag exactly once, in
  this order, and nothing but whitespace before and after. The text between thoughts and
  answer is the summary, which R1 learns to write in its first stage.

  'boxed' is a text with a complete `\\boxed{…}`, after the thoughts if there are any.
  The answer is the content of the last one, and that text is the summary.

  'line' is a text with a line `Answer: …`, after the thoughts if there are any. The
  answer is what the last such line says, without stars around it, and that text is the
  summary.

  'code' is a text with a complete block of code between lines of backticks, after the
  thoughts if there are any. The answer is the content of the last one, and that text is
  the summary.

  'text' is any text, after the thoughts if there are any. All of it is the answer and
  the summary, without the tags of an answer around it.

  Any part may be empty. Takes linear time on any text.
  """
  text = text.strip()
  if form != 'tags':
    think, rest = _split_thoughts(text)
    if rest is None:
      return None
    rest = rest.strip()
    if form == 'text':
      rest = rest.removeprefix('<answer>').removesuffix('</answer>').strip()
    answer = _ANSWERS[form](rest)
    return None if answer is None else Parsed(think.strip(), rest, answer)
  if any(text.count(tag) != 1 for tag in TAGS):
    return None
  if not (text.startswith('<think>') and text.endswith('</answer>')):
    return None
  inside = text.removeprefix('<think>').removesuffix('</answer>')
  think, _, rest = inside.partition('</think>')
  summary, tag, answer = rest.partition('<answer>')
  if not tag:  # the answer was opened inside the thoughts
    return None
  return Parsed(think.strip(), summary.strip(), answer.strip())


def _split_thoughts(text: str) -> tuple[str, str | None]:
  """Returns the thoughts and what follows, which is None if the thoughts never end."""
  think, tag, rest = text.partition('</think>')
  if tag:
    return think.removeprefix('<think>'), rest
  return ('', text) if '<think>' not in text else (text, None)


def fault(text: str, form: Form = 'tags') -> str:
  """Returns why `parse` gives None: 'thoughts', 'answer' or 'form'; '' if it doesn't.

  'thoughts' never end. With 'answer' there is no complete answer after them. 'form' is
  everything else, such as a tag that stands twice.
  """
  if parse(text, form) is not None:
    return ''
  _, rest = _split_thoughts(text)
  if rest is None:
    return 'thoughts'
  answered = '</answer>' in rest.partition('<answer>')[2]
  return 'form' if answered and form == 'tags' else 'answer'


_BOX = re.compile(r'\\(?:boxed|fbox)(?:\s*(\{)|\s+(-?[\w./]+))|\\.|[{}]', re.DOTALL)


def last_box(text: str) -> str | None:
  """Returns the content of the last complete `\\boxed{…}`, or None without one.

  That is the outer one of nested boxes; `\\boxed 2` is complete. Takes linear time.
  """
  content: str | None = None
  open_braces: list[int | None] = []  # where the content of a box begins
  for found in _BOX.finditer(text):
    if found[2]:
      content = found[2]
    elif found[1] or found[0] == '{':
      open_braces.append(found.end() if found[1] else None)
    elif found[0] == '}' and open_braces:
      start = open_braces.pop()
      if start is not None:
        content = text[start : found.start()].strip()
  return content


_LINE = re.compile(r'\banswer[ \t*]*:([^\n]*)', re.IGNORECASE)


def last_line(text: str) -> str | None:
  """Returns what follows `Answer:` on the last line with it, or None without one.

  The line is that of DAPO's prompts (arXiv 2503.14476), and like its reward this takes
  any case and any words before. Takes linear time.
  """
  found = [said for line in _LINE.findall(text) if (said := line.strip(' \t\r*'))]
  return found[-1] if found else None


_FENCE = re.compile(r' {0,3}(`{3,})([^`]*)$')


def last_block(text: str) -> str | None:
  """Returns the content of the last complete block of code, or None without one.

  A block is as in Markdown: from a line that begins with three backticks or more, and
  maybe a language, to a line of as many alone. Takes linear time.
  """
  content, begun, fence = None, None, ''
  start = 0
  for line in text.splitlines(keepends=True):
    if found := _FENCE.match(line):
      if begun is None:
        begun, fence = start + len(line), found[1]
      elif len(found[1]) >= len(fence) and not found[2].strip():
        content, begun = text[begun:start], None
    start += len(line)
  return content


_ANSWERS: dict[Form, Callable[[str], str | None]] = {
  'boxed': last_box,
  'line': last_line,
  'code': last_block,
  'text': lambda text: text,
}

_OPENED = re.compile(r'<think>\s*(</think>\s*)?')


def opened(prompt: str) -> str:
  """Returns the beginning of the output that a prompt already contains, or ''.

  R1's chat template ends with '<think>', and the model continues inside the thoughts.
  The template of a model that should not think ends with empty thoughts, and that of
  one that should answer at once with `OPEN_BOX`.
  """
  if prompt.endswith(OPEN_BOX):
    return OPEN_BOX
  opening = prompt[prompt.rfind('<think>') :] if '<think>' in prompt else ''
  return opening if _OPENED.fullmatch(opening) else ''


def remainder(prompt: str, output: str) -> str:
  """Returns the part of an output that the prompt does not contain yet."""
  opening = opened(prompt)
  if opening == OPEN_BOX:
    return output.removeprefix(OPEN_BOX)
  if '</think>' in opening:
    thoughts, tag, rest = output.partition('</think>')
    return rest.lstrip('\n') if tag else thoughts
  return output.removeprefix('<think>').removeprefix('\n') if opening else output


def visible(output: str) -> str:
  """Returns what a user sees of an output: the text after the thoughts, without tags.

  That is '' for an output that never stops thinking.
  """
  _, _, rest = output.partition('</think>')
  plain = TAG_PATTERN.sub(' ', rest)  # words on both sides of a tag are two
  return '\n'.join(' '.join(line.split()) for line in plain.strip().splitlines())


# The ten terms that the R1 paper counts (Nature version, Extended Data Fig. 1a), one
# more that announces another attempt, and their Polish translations. 'no' and 'nie' are
# left out: they end every failed attempt, so they do not show reflection.
REFLECTIVE: frozenset[str] = frozenset(
  (
    *('wait', 'mistake', 'however', 'but', 'retry', 'error', 'verify', 'wrong'),
    *('evaluate', 'check'),
    'again',
    *('czekaj', 'poczekaj', 'zaczekaj', 'pomyłka', 'jednak', 'ale', 'błąd', 'błędny'),
    *('błędnie', 'źle', 'sprawdź', 'sprawdzam', 'sprawdzę', 'sprawdźmy', 'ponownie'),
    'znowu',
  )
)
_WORD = re.compile(r'[^\W\d_]+')


def is_reflective(text: str) -> bool:
  """Returns whether `text` has one of REFLECTIVE as a whole word, in any case."""
  return not REFLECTIVE.isdisjoint(_WORD.findall(text.lower()))
