"""R1's filters for training outputs: the faults of an output.

The paper keeps outputs that are right and readable: in one language, without long
paragraphs, code blocks and repetition (Nature version, stages 1 and 3).
"""

from r1jax import tasks
from r1jax.tasks import Problem
from r1jax.text import language, parsing

LONGEST_LINE = 160  # characters of a paragraph
FAULTS = ('form', 'wrong', 'language', 'paragraph', 'code', 'repetition')


def faults(problem: Problem, output: str) -> list[str]:
  """Returns the names of an output's faults, in the order of `FAULTS`."""
  parsed = parsing.parse(output, problem.form)
  if parsed is None:
    return ['form']
  text = '\n'.join(parsed)
  thoughts = _lines(parsed.think)
  found = {
    'wrong': not tasks.verify(problem, parsed.answer),
    'language': not all(
      language.is_of(word, problem.language) for word in language.words(text)
    ),
    'paragraph': any(len(line) > LONGEST_LINE for line in _lines(text)),
    'code': '```' in text,
    # Lines of the thoughts only: a right answer may be 3 3 7.
    'repetition': len(set(thoughts)) < len(thoughts),
  }
  return [name for name in FAULTS if found.get(name)]


def _lines(text: str) -> list[str]:
  return [line.strip() for line in text.splitlines() if line.strip()]
