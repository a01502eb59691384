"""Inputs that tests of several modules share."""

from hypothesis import strategies

from r1jax.text import parsing

# Pieces of which garbage that looks like an output is made.
PIECES = strategies.sampled_from(
  [
    *parsing.TAGS,
    '<',
    '>',
    '<think',
    'answer>',
    '</',
    ' ',
    '\n',
    '\u00a0',
    'x',
    '16',
    '\0',
  ]
)


def evaluation(right, k=4, length=90.0, general=0.5, lang=1.0, preference=0.5):
  """A row of the stage table; `right` counts by problem."""
  share = sum(right) / (k * len(right))
  return {
    'reasoning': {
      'k': k,
      'right': list(right),
      'groups': [str(n) for n in range(len(right))],
      'pass_at_1': {'mean': share},
      'length': {'mean': length},
      'rewards': {'language': {'mean': lang}},
    },
    'general': {
      'pass_at_1': {'mean': general},
      'rewards': {'preference': {'mean': preference}},
    },
  }
