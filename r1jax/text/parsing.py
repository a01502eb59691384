"""Takes outputs apart: thoughts, summary, answer, reflective words."""

import re
from typing import NamedTuple

TAGS = ('<think>', '</think>', '<answer>', '</answer>')
TAG_PATTERN = re.compile('|'.join(TAGS))


class Parsed(NamedTuple):
  """The parts of a well-formed output, without the whitespace around them."""

  think: str
  summary: str
  answer: str


def parse(text: str) -> Parsed | None:
  """The parts of `<think>…</think> … <answer>…</answer>`, or None for anything else.

  Strict: each tag exactly once, in this order, and nothing but whitespace before and
  after. What stands between thoughts and answer is the summary, which R1 learns to
  write in its first stage; any part may be empty. Takes linear time on any text.
  """
  text = text.strip()
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


_OPENED = re.compile(r'<think>\s*(</think>\s*)?')


def opened(prompt: str) -> str:
  """What of an output a prompt has written already, or ''.

  '<think>' with its end: R1's chat template ends so, and its model goes on inside the
  thoughts. Or thoughts that are empty: so ends the one of a model that is not to think.
  """
  opening = prompt[prompt.rfind('<think>') :] if '<think>' in prompt else ''
  return opening if _OPENED.fullmatch(opening) else ''


def going_on(prompt: str, output: str) -> str:
  """The part of an output that is left to say after a prompt that has opened it."""
  opening = opened(prompt)
  if '</think>' in opening:
    thoughts, tag, rest = output.partition('</think>')
    return rest.lstrip('\n') if tag else thoughts
  return output.removeprefix('<think>').removeprefix('\n') if opening else output


def visible(output: str) -> str:
  """What a user is shown of an output: all that follows the thoughts, without tags.

  An output that never stops thinking shows nothing.
  """
  _, _, rest = output.partition('</think>')
  apart = TAG_PATTERN.sub(' ', rest)  # words on both sides of a tag are two
  return '\n'.join(' '.join(line.split()) for line in apart.strip().splitlines())


# The ten terms that the R1 paper counts (Nature version, Extended Data Fig. 1a), then
# one more that means another attempt, then their Polish counterparts. Not 'no' and
# 'nie': they end every attempt that failed, so they say nothing about looking back.
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
  """Whether `text` holds one of REFLECTIVE as a whole word, in any case."""
  return not REFLECTIVE.isdisjoint(_WORD.findall(text.lower()))
