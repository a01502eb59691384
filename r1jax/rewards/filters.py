"""What is wrong with an output: R1's filters for the outputs that it learns from.

The paper keeps of several outputs those that are right and readable: in one language,
without long paragraphs, code blocks and repetition (Nature version, stages 1 and 3).
"""

from r1jax import tasks
from r1jax.tasks import Problem
from r1jax.text import language, parsing

LONGEST_LINE = 160  # characters of a paragraph
FAULTS = ('form', 'wrong', 'language', 'paragraph', 'code', 'repetition')


def faults(problem: Problem, output: str) -> list[str]:
  """The names of all that is wrong with an output, in the order of `FAULTS`."""
  parsed = parsing.parse(output)
  if parsed is None:
    return ['form']
  said = '\n'.join(parsed)
  thoughts = _lines(parsed.think)
  found = {
    'wrong': not tasks.verify(problem, parsed.answer),
    'language': not all(
      language.is_of(word, problem.language) for word in language.words(said)
    ),
    'paragraph': any(len(line) > LONGEST_LINE for line in _lines(said)),
    'code': '```' in said,
    # Not in a right answer such as 3 3 7: in the thoughts, line by line.
    'repetition': len(set(thoughts)) < len(thoughts),
  }
  return [name for name in FAULTS if found.get(name)]


def _lines(text: str) -> list[str]:
  return [line.strip() for line in text.splitlines() if line.strip()]
