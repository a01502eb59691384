"""Rewards on the device are those of the host, for outputs of every kind."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.fused import texts, verify
from r1jax.rewards import rules
from r1jax.tasks import Problem, arithmetic, countdown, equations
from r1jax.text import parsing
from r1jax.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(
  ['User: make 16 from 3 5 2\nAssistant: <think>3*5=15, wait 15+2=17</think> ok'] * 3,
  300,
)
PIECES = texts.pieces(TOKENIZER.token_bytes())


def as_texts(strings, width=None):
  encoded = [string.encode() for string in strings]
  width = width or max(1, *map(len, encoded))
  rows = [list(x.ljust(width, b'\0')) for x in encoded]
  return texts.Texts(
    jnp.array(rows, jnp.uint8), jnp.array([len(x) for x in encoded], jnp.int32)
  )


def test_tokens_write_the_bytes_that_the_tokenizer_decodes():
  strings = ['3+5 = 8', '<think> zażółć </think>', 'x\ty\n', '∑ 16', '']
  ids = [[*TOKENIZER.encode(text), TOKENIZER.eos_id] for text in strings]
  longest = max(map(len, ids))
  tokens = np.array([row + [7] * (longest - len(row)) for row in ids], np.int32)
  mask = np.arange(longest) < np.array([[len(row)] for row in ids])
  found = jax.jit(texts.written)(tokens, mask, PIECES)
  for text, row, length in zip(strings, found.bytes, found.lengths, strict=True):
    assert bytes(np.asarray(row)[:length]).decode() == text


def test_every_token_has_its_bytes():
  known = TOKENIZER.token_bytes()
  assert len(known) == TOKENIZER.vocab_size
  assert known[TOKENIZER.eos_id] == known[TOKENIZER.pad_id] == b''
  single = {piece for piece in known if len(piece) == 1}
  assert len(single) == 256
  for token, piece in enumerate(known):
    assert TOKENIZER.decode([token]) == piece.decode(errors='replace')


FORMED = '<think>a 3+5</think> so <answer>3+5*2</answer>'
PARTS = [*parsing.TAGS, ' ', '\n', 'x', '3', '<', '</', '>', 'think>', '\x1c', '']


def disturbed(rng, text):
  """A text with a few parts put in, left out or doubled."""
  for _ in range(rng.randrange(4)):
    place, other = sorted(rng.choices(range(len(text) + 1), k=2))
    text = text[:place] + rng.choice([*PARTS, text[place:other]]) + text[other:]
  return text


def test_the_form_is_that_of_the_parser():
  rng = random.Random(0)
  strings = [FORMED, '', '<think></think><answer></answer>', f' \n{FORMED}\t ']
  strings += [disturbed(rng, FORMED) for _ in range(3000)]
  formed, answers = jax.jit(texts.parse)(as_texts(strings))
  right = 0
  for text, has, row, length in zip(strings, formed, *answers, strict=True):
    parsed = parsing.parse(text)
    assert bool(has) == (parsed is not None), text
    if parsed:
      right += 1
      assert bytes(np.asarray(row)[:length]).decode() == parsed.answer, text
  assert 300 < right < 2900


def answers_of(rng, count):
  """Answers of all kinds to problems of all tasks."""
  tree = ['3', '5', '2', '15', '0', '05', '21', '+', '-', '*', '(', ')', ' ']
  good = ['3*5+2', '(3+5)*2', '2 * (5 + 3)', '5*3+2', '((3))+5+2', '3*(5-2)', '16']
  good += ['x=7', 'x = 7', '7', '007', '123456789', '1234567890', '95']
  odd = ['', '()', '-3+5', '3**2', '3 5', '2(3+5)', '(3)(5)', 'x 7', '=7', 'xx=7']
  odd += ['x=', 'x\n=\t7', '7 8', '3+5+2 ', '3+5+2\n', '3/5', '3+5\0', '10-3', '٣', '²']
  odd += ['(' * 39 + '3' + ')' * 39, '+'.join(['3'] * 40), '+'.join(['3'] * 41)]
  for _ in range(count):
    match rng.randrange(3):
      case 0:
        yield rng.choice(4 * good + odd)
      case 1:
        yield ''.join(rng.choices(tree, k=rng.randrange(1, 9)))
      case 2:
        text = rng.choice(good)
        place = rng.randrange(len(text) + 1)
        yield text[:place] + rng.choice(tree) + text[place + rng.randrange(2) :]


PROBLEMS = [
  Problem('1', 'countdown', '', {'numbers': [3, 5, 2], 'target': 16}),
  Problem('2', 'countdown', '', {'numbers': [5, 2, 3], 'target': 17}),
  Problem('3', 'countdown', '', {'numbers': [3, 3, 15], 'target': 21}),
  Problem('4', 'equations', '', {'x': 7}),
  Problem('5', 'arithmetic', '', {'result': 95}),
  Problem('6', 'arithmetic', '', {'result': 7}),
]


def truth_of(problems):
  tasks = ['countdown', 'equations', 'arithmetic']
  return verify.Truth(
    jnp.array([tasks.index(p.task) for p in problems], jnp.int32),
    jnp.array(
      [
        p.truth.get('target', p.truth.get('x', p.truth.get('result'))) for p in problems
      ],
      jnp.int32,
    ),
    jnp.array(
      [
        np.bincount(p.truth.get('numbers', []), minlength=verify.LARGEST + 1)
        for p in problems
      ],
      jnp.int32,
    ),
  )


def test_verdicts_are_those_of_the_tasks():
  rng = random.Random(1)
  answers = [text.strip() for text in answers_of(rng, 6000)]
  problems = [rng.choice(PROBLEMS) for _ in answers]
  got = jax.jit(verify.right)(as_texts(answers), truth_of(problems))
  modules = {
    m.__name__.rpartition('.')[2]: m for m in (countdown, equations, arithmetic)
  }
  counts = {name: [0, 0] for name in modules}
  for problem, answer, verdict in zip(problems, answers, got, strict=True):
    expected = modules[problem.task].verify(problem, answer)
    assert bool(verdict) == expected, (problem, answer)
    counts[problem.task][expected] += 1
  assert all(min(found) > 40 for found in counts.values()), counts


@pytest.mark.parametrize('seed', [0, 1])
def test_rewards_of_tokens_are_those_of_their_texts(seed):
  rng = random.Random(seed)
  problems, rows = [], []
  for answer in answers_of(rng, 2000):
    text = (
      f'<think>{rng.choice(["", "3*5=15, wait"])}</think> <answer>{answer}</answer>'
    )
    text = disturbed(rng, text) if rng.random() < 0.3 else text
    ids = TOKENIZER.encode(text)
    if ids and rng.random() < 0.3:
      ids[rng.randrange(len(ids))] = rng.randrange(TOKENIZER.vocab_size)
    rows.append(ids[: rng.choice([len(ids), len(ids), 60])])
    problems.append(rng.choice(PROBLEMS))
  longest = max(map(len, rows))
  tokens = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
  mask = np.arange(longest) < np.array([[len(row)] for row in rows])

  @jax.jit
  def reward(tokens, mask, truth):
    formed, answers = texts.parse(texts.written(tokens, mask, PIECES))
    return formed & verify.right(answers, truth)

  got = reward(tokens, mask, truth_of(problems))
  expected = [
    rules.accuracy(problem, TOKENIZER.decode(row)) == 1
    for problem, row in zip(problems, rows, strict=True)
  ]
  assert got.tolist() == expected
  assert 30 < sum(expected) < 1000
