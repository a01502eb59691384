"""Packed outputs: every token has exactly one position."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from r1jax import packing
from r1jax.packing import unpack


def test_first_fit_takes_the_longest_first():
  lengths = np.array([4, 9, 3, 6, 1])
  # 9 alone; 6 and 4 fill a row of 10; 3 needs a third; 1 goes back to the first.
  assert packing.first_fit(lengths, 10, 4) == [[1, 4], [3, 0], [2]]


def test_a_row_has_a_maximum_number_of_outputs():
  assert packing.first_fit(np.ones(5, int), 100, 2) == [[0, 1], [2, 3], [4]]


@hypothesis.given(strategies.data())
def test_every_token_has_one_position_in_rows_of_its_prompt(data):
  prompts, group_size, length = (
    data.draw(strategies.integers(1, most)) for most in (4, 9, 7)
  )
  numbers = strategies.integers(1, length)
  count = prompts * group_size
  drawn = data.draw(strategies.lists(numbers, min_size=count, max_size=count))
  lengths = np.reshape(drawn, (prompts, group_size))
  rows = data.draw(strategies.sampled_from([(2, 1), (2, 2), (6, 2), (6, 3)]))
  layout = packing.plan(lengths, length, *rows)

  real = np.arange(length) < lengths[..., None]
  tokens = 1 + np.arange(real.size).reshape(real.shape)
  packed = layout.by_token(tokens)
  assert np.array_equal(layout.undo(packed, real.shape), np.where(real, tokens, 0))
  assert np.count_nonzero(packed) == real.sum()
  assert np.array_equal(packed > 0, layout.documents > 0)
  # Whatever is not counted is empty.
  assert not packed[layout.count :].any()
  assert packed[: layout.count].any(axis=(1, 2, 3)).all()

  owner = layout.by_prompt(np.arange(prompts))
  advantage = layout.by_output(np.arange(1, count + 1).reshape(lengths.shape))
  assert sorted(advantage[advantage > 0]) == list(range(1, count + 1))
  for n, p, o in zip(*np.nonzero(advantage), strict=True):
    prompt, sample = divmod(advantage[n, p, o] - 1, group_size)
    span = slice(
      layout.starts[n, p, o], layout.starts[n, p, o] + lengths[prompt, sample]
    )
    assert owner[n, p] == prompt
    assert layout.lengths[n, p, o] == lengths[prompt, sample]
    assert np.array_equal(
      packed[n, p].reshape(-1)[span], tokens[prompt, sample][real[prompt, sample]]
    )
    assert (layout.documents[n, p].reshape(-1)[span] == o + 1).all()
    offsets = layout.offsets[n, p].reshape(-1)[span]
    assert offsets.tolist() == list(range(len(offsets)))
  assert np.count_nonzero(layout.lengths) == count


def test_the_shape_does_not_depend_on_the_lengths():
  short, long = (
    packing.plan(np.full((3, 5), 2), 8, 4, 2),
    packing.plan(np.full((3, 5), 8), 8, 4, 2),
  )
  assert short.tokens.shape == long.tokens.shape
  # 5 outputs of 2 tokens: a row of 4 and one of 1, so a place a prompt, 2 at a time;
  # 5 of 8 tokens: 5 rows, 3 places a prompt.
  assert (short.count, long.count) == (2, 5)


@pytest.mark.parametrize(
  ('sizes', 'expected'),
  [
    ((16, 24, 320, 16), 2),  # sqrt(2.4) = 1.5: 2 is nearer than 1
    ((32, 128, 128, 32), 8),  # sqrt(64)
    ((8, 32, 128, 6), 2),  # of 1, 2, 3, 6
    ((16, 4, 1000, 16), 1),  # sqrt(0.128)
    ((64, 1000, 100, 8), 8),  # sqrt(1280), but no more than there are
    ((1, 1024, 512, 16), 1),  # sqrt(4), but a group fills no more than G
    ((32, 128, 128, 32, 8), 4),  # 32 / 8 would not leave a prompt for each device
  ],
)
def test_long_prompts_are_shared_by_more_rows(sizes, expected):
  assert packing.rows_of_a_prompt(*sizes) == expected


def test_rows_that_do_not_divide_by_the_devices_are_refused():
  with pytest.raises(ValueError, match='multiple of the 4 devices, got 6'):
    packing.rows_of_a_prompt(8, 10, 10, 6, devices=4)


def test_unpack_puts_each_output_in_a_row_of_its_own():
  # Two rows of four: outputs of 3, 1 and 2 tokens, and an empty place.
  rows = jnp.array([[[1, 2, 3, 4], [5, 6, 0, 0]]])
  got = unpack(rows, jnp.array([[0, 3, 4, 0]]))
  expected = [[1, 2, 3, 4], [4, 5, 6, 0], [5, 6, 0, 0], [1, 2, 3, 4]]
  np.testing.assert_array_equal(got, [expected])


@hypothesis.given(strategies.data())
def test_each_shard_of_prompts_has_its_part_of_every_micro_batch(data):
  group_size, length, parts = 3, 5, data.draw(strategies.integers(1, 3))
  drawn = data.draw(
    strategies.lists(strategies.integers(1, length), min_size=18, max_size=18)
  )
  lengths = np.reshape(drawn, (6, group_size))
  owners = np.array(data.draw(strategies.permutations([n % parts for n in range(6)])))
  chosen = [np.flatnonzero(owners == part).tolist() for part in range(parts)]
  at_a_time = 2
  layout = packing.plan(
    lengths,
    length,
    at_a_time * parts * 2,
    2,
    chosen,
    room=data.draw(strategies.integers(0, 7)),
  )
  assert layout.prompts.shape[1] == at_a_time * parts
  held = layout.lengths.sum(-1) > 0
  for part in range(parts):
    own = slice(part * at_a_time, (part + 1) * at_a_time)
    found = layout.prompts[:, own][held[:, own]]
    assert set(found.tolist()) == set(chosen[part])
    # One part alone needs as many places as `slots` says.
    assert len(found) == packing.slots(lengths[chosen[part]], length, 2)
  fullest = max(
    held[:, p * at_a_time : (p + 1) * at_a_time].sum() for p in range(parts)
  )
  assert layout.count == -(-fullest // at_a_time)
  tokens = layout.tokens[layout.tokens >= 0]
  assert len(tokens) == len(set(tokens.tolist())) == lengths.sum()
