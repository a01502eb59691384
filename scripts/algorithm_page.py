"""Writes docs/algorithms.md from the tables: `python -m scripts.algorithm_page`."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from r1jax import grpo
from r1jax.algorithms import ALGORITHMS
from r1jax.grpo import GRPOConfig
from r1jax.stages import methods
from r1jax.stages.rl_config import RLConfig

LENGTH = 20_480  # tokens of an output of DAPO
FILE = pathlib.Path(__file__).parents[1] / 'docs/algorithms.md'
INTRODUCTION = """\
# Algorithms

A published algorithm is a row of choices: `--rl.grpo dapo`, or in an experiment
`algorithms.PRESETS['dapo']`. Each choice is a function of a table below; flags change
one at a time, as in `--rl.grpo sapo --rl.grpo.mean tokens`. A test compares this page
with the tables; `python -m scripts.algorithm_page` writes it.

`--rl dapo` sets the method of the paper: the objective and what the column *beside it*
says, there for outputs of 20,480 tokens. Other flags change it, in any order; the
penalty is over the last fifth of the length that the experiment has by default.

## By paper

A note says how a row differs from its paper; a run says it, too.
"""
# ruff: noqa: E501 - rows of a table
ROLLOUTS = """
## Which outputs are learned from

These are settings of the stage, beside the objective:

| setting | what it does |
| --- | --- |
| `--rl.equal-groups drop` | groups of equal rewards, which give no gradient, are left out of updates and of their means |
| `--rl.equal-groups replace` | such groups are replaced by those of further prompts (DAPO), at most `--rl.most-prompts` times those of a step; the log has `prompts_asked` |
| `--rl.overlong-tokens N` | the reward falls by 1 over the last N tokens before the limit (DAPO) |
| `--rl.learn-cut-off False` | outputs without a stop token are left out of updates |
| `--rl.grpo.kl k1 --rl.grpo.kl-in reward` | the penalty is taken off the reward of an output, not off each token's gain |
"""
# Field of GRPOConfig -> title and what is in the table
TITLES = {
  'advantage': 'Advantages',
  'ratio': 'Ratios',
  'surrogate': 'Surrogates',
  'correction': 'Corrections for another sampler',
  'kl': 'KL estimates',
  'tokens': 'Tokens that learn',
  'mean': 'Means',
}


def settings(config: GRPOConfig) -> str:
  """Returns the fields that differ from GRPO's, as `name value, …`."""
  plain = GRPOConfig()
  fields = sorted(
    (field.name for field in dataclasses.fields(GRPOConfig)),
    key=lambda name: name not in grpo.TABLES,
  )
  found = {name: getattr(config, name) for name in fields}
  return (
    ', '.join(
      f'`{name} {value}`'
      for name, value in found.items()
      if value != getattr(plain, name)
    )
    or '—'
  )


def beside(name: str) -> str:
  """Returns what `--rl NAME` sets beside the objective, for outputs of DAPO's length."""
  found = methods.beside(RLConfig(max_length=((0, LENGTH),)), name)
  return ', '.join(f'`{field} {value}`' for field, value in found.items()) or '—'


def first_sentence(function: object) -> str:
  """Returns the first paragraph of a docstring in one line."""
  paragraph = (function.__doc__ or '').split('\n\n')[0]
  return re.sub(r'\s+', ' ', paragraph).strip().replace('|', r'\|')


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
  """Returns a table in Markdown."""
  lines = [head, ('---',) * len(head), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def markdown() -> str:
  """Returns docs/algorithms.md."""
  papers = [
    (
      f'`{name}`',
      row.paper,
      row.difference,
      settings(row.config),
      beside(name),
      row.note or '—',
      row.checked,
    )
    for name, row in ALGORITHMS.items()
  ]
  head = (
    *('name', 'paper', 'differs from GRPO', 'settings', 'beside it', 'note'),
    'checked against',
  )
  parts = [INTRODUCTION, table(head, papers), ROLLOUTS.rstrip()]
  for field, functions in grpo.TABLES.items():
    rows = [(f'`{name}`', first_sentence(f)) for name, f in functions.items()]
    parts.append(f'\n## {TITLES[field]}\n\n{table((field, "what it is"), rows)}')
  return '\n'.join(parts) + '\n'


if __name__ == '__main__':
  FILE.write_text(markdown())
