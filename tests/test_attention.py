"""Attention and RoPE against their equations, row by row and head by head."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from r1jax.model import attention
from r1jax.model.attention import KV, Window
from r1jax.model.rope import rope

# Sums of at most a hundred float32 products of order 1, in another order.
CLOSE: Any = {'rtol': 1e-5, 'atol': 1e-5}


def attend(*args):
  # A new function, since the compiler's cache does not see QUERY_BLOCK.
  return jax.jit(lambda *args: attention.attend(*args))(*args)


def softmax_over_everything(q_BTHC, own, document_BT, context, nearest=None):
  """softmax(q k^T / sqrt(C)) v with all visible keys of a query in one list.

  Of that list, in the order of the text, a window leaves the last ones.
  """
  out = np.zeros(q_BTHC.shape)
  for b, t, h in np.ndindex(q_BTHC.shape[:3]):
    keys, values = [], []
    own_mask = (np.arange(document_BT.shape[1]) <= t) & (
      document_BT[b] == document_BT[b, t]
    )
    for kv, mask in [*context, (own, own_mask[None])]:
      k = h * kv.k.shape[1] // q_BTHC.shape[2]
      row = b * len(kv.k) // len(q_BTHC)
      visible = mask[row % len(mask)]
      keys.append(kv.k[row, k].T[visible])
      values.append(kv.v[row, k][visible])
    nearest_keys = np.concatenate(keys)[-(nearest or 0) :]
    scores = nearest_keys @ q_BTHC[b, t, h] / np.sqrt(q_BTHC.shape[3])
    weights = np.exp(scores - scores.max())
    out[b, t, h] = weights / weights.sum() @ np.concatenate(values)[-len(weights) :]
  return out


def random_kv(rng, rows, kv_heads, length, channels=4):
  return KV(
    rng.normal(size=(rows, kv_heads, channels, length)).astype(np.float32),
    rng.normal(size=(rows, kv_heads, length, channels)).astype(np.float32),
  )


def example(kv_heads=2):
  """Four rows of six tokens, 4 heads of 4; three segments shared by 2, 1 and 4 rows."""
  rng = np.random.default_rng(0)
  q_BTHC = rng.normal(size=(4, 6, 4, 4)).astype(np.float32)
  document_BT = np.array([[0] * 6, [0, 0, 0, 1, 1, 1], [5, 5, 2, 2, 2, 7], [1] * 6])
  shared = random_kv(rng, 2, kv_heads, 5), np.array([[0, 0, 1, 1, 1], [1] * 5], bool)
  each = random_kv(rng, 4, kv_heads, 3), np.array([[1, 1, 0]], bool)
  one = random_kv(rng, 1, kv_heads, 2), np.array([[0, 1]], bool)
  return q_BTHC, random_kv(rng, 4, kv_heads, 6), document_BT, [shared, each, one]


@pytest.mark.parametrize(('kv_heads', 'segments'), [(1, 3), (2, 0), (2, 3), (4, 1)])
def test_attention_is_one_softmax_over_all_visible_keys(kv_heads, segments):
  q_BTHC, own, document_BT, context = example(kv_heads)
  context = context[:segments]
  expected = softmax_over_everything(q_BTHC, own, document_BT, context)
  np.testing.assert_allclose(
    attend(q_BTHC, own, document_BT, context), expected, **CLOSE
  )


def positions(document_BT, context):
  """The position of each query in its text: visible keys of the context come first."""
  before = np.zeros(len(document_BT), int)
  for _, mask in context:
    before += np.repeat(mask.sum(1), len(document_BT) // len(mask))
  same = document_BT[:, :, None] == document_BT[:, None]
  return (before[:, None] + np.tril(same).sum(2) - 1).astype(np.int32)


@pytest.mark.parametrize('nearest', [1, 3, 5, 20])
@pytest.mark.parametrize('block', [2, 64])
def test_a_window_leaves_the_nearest_keys(monkeypatch, nearest, block):
  monkeypatch.setattr(attention, 'QUERY_BLOCK', block)
  monkeypatch.setattr(attention, 'SECTIONS', 2)
  q_BTHC, own, document_BT, context = example()
  window = Window(jnp.int32(nearest), positions(document_BT, context))
  expected = softmax_over_everything(q_BTHC, own, document_BT, context, nearest)
  found = attend(q_BTHC, own, document_BT, context, None, window)
  np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize('block', [1, 2, 4])
def test_blocks_of_queries_change_nothing(monkeypatch, block):
  monkeypatch.setattr(attention, 'QUERY_BLOCK', block)
  monkeypatch.setattr(attention, 'LARGEST_BLOCK', block)
  q_BTHC, own, document_BT, context = example()
  expected = softmax_over_everything(q_BTHC, own, document_BT, context)
  np.testing.assert_allclose(
    attend(q_BTHC, own, document_BT, context), expected, **CLOSE
  )


# Two blocks written out; three longer ones; and three sections of two blocks, the last
# one not full.
@pytest.mark.parametrize(
  ('block', 'most', 'largest', 'length'),
  [(64, 8, 256, 73), (5, 3, 20, 41), (5, 3, 5, 28)],
)
def test_a_long_row_equals_one_block_in_values_and_gradients(
  monkeypatch, block, most, largest, length
):
  rng = np.random.default_rng(1)
  monkeypatch.setattr(attention, 'QUERY_BLOCK', block)
  monkeypatch.setattr(attention, 'SECTIONS', most)
  monkeypatch.setattr(attention, 'LARGEST_BLOCK', largest)
  q_BTHC = rng.normal(size=(2, length, 2, 4)).astype(np.float32)
  own, shared = random_kv(rng, 2, 1, length), random_kv(rng, 1, 1, 3)
  context = [(shared, np.array([[False, True, True]]))]
  document_BT = np.stack([np.zeros(length, int), np.arange(length) // (length // 3)])
  weight = rng.normal(size=q_BTHC.shape).astype(np.float32)

  def value_and_gradients():
    def weighted(q, own):
      return jnp.sum(attend(q, own, document_BT, context) * weight)

    return jax.value_and_grad(weighted, argnums=(0, 1))(q_BTHC, own)

  blocked = value_and_gradients()
  monkeypatch.setattr(attention, 'QUERY_BLOCK', length)
  # 1e-4: gradients of keys are sums over all later queries.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
    blocked,
    value_and_gradients(),
  )


def test_gradients_equal_finite_differences(monkeypatch):
  monkeypatch.setattr(attention, 'QUERY_BLOCK', 4)
  with jax.enable_x64(True):
    q_BTHC, own, document_BT, context = jax.tree.map(
      lambda x: jnp.asarray(x, float) if x.dtype == np.float32 else x, example()
    )
    kvs, masks = zip(*context, strict=True)
    check_grads(
      lambda q, own, kvs: attend(
        q, own, document_BT, list(zip(kvs, masks, strict=True))
      ),
      (q_BTHC, own, kvs),
      order=1,
      modes=['rev'],
    )


def test_a_fully_masked_segment_has_no_weight():
  q_BTHC, own, document_BT, context = example()
  nothing = (context[1][0], np.zeros((1, 3), bool))

  def value_and_gradient(context):
    def total(q):
      return jnp.sum(attend(q, own, document_BT, context) ** 2)

    return jax.value_and_grad(total)(q_BTHC)

  with_it, without = value_and_gradient([nothing]), value_and_gradient([])
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), with_it, without)


def test_large_scores_do_not_overflow():
  q_BTHC, own, document_BT, context = example()
  # Scores of order 1e4; exp(89) overflows float32.
  expected = softmax_over_everything(q_BTHC * 1e4, own, document_BT, context)
  np.testing.assert_allclose(
    attend(q_BTHC * np.float32(1e4), own, document_BT, context), expected, **CLOSE
  )


def test_masked_keys_have_no_weight_next_to_a_very_low_score():
  # The query sees one key, of score -1e6 and value 2; that of score 0 it does not.
  def one(x):
    return jnp.full((1, 1, 1, 1), x)

  hidden = KV(one(0.0), one(7.0)), np.array([[False]])
  own = KV(one(-1.0), one(2.0))
  assert attend(one(1e6), own, np.array([[0]]), [hidden]).item() == 2


def test_rope_multiplies_complex_numbers_by_a_phase():
  rng = np.random.default_rng(2)
  x_BTHC = rng.normal(size=(2, 3, 2, 6)).astype(np.float32)
  positions_BT = np.array([[0, 1, 2], [7, 300, 4]])
  z = x_BTHC[..., :3] + 1j * x_BTHC[..., 3:]
  angle = positions_BT[..., None] * 50.0 ** (-2 * np.arange(3) / 6)
  z = z * np.exp(1j * angle)[:, :, None]
  expected = np.concatenate([z.real, z.imag], axis=-1)
  # 1e-4: an angle of 300 is known in float32 to 2e-5.
  np.testing.assert_allclose(
    rope(jnp.asarray(x_BTHC), jnp.asarray(positions_BT), 50.0), expected, atol=1e-4
  )


def test_rope_by_hand():
  # One pair, frequency 1: (1, 0) at position 1 is (cos 1, sin 1).
  turned = rope(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[1]]), 10_000.0)
  np.testing.assert_allclose(turned[0, 0, 0], [0.5403023, 0.8414710], rtol=1e-6)


def test_products_after_rope_depend_only_on_the_distance():
  rng = np.random.default_rng(3)
  q, k = jnp.asarray(rng.normal(size=(2, 1, 1, 1, 8)), jnp.float32)

  def product(i, j):
    return jnp.vdot(rope(q, jnp.array([[i]]), 100.0), rope(k, jnp.array([[j]]), 100.0))

  np.testing.assert_allclose(product(5, 2), product(45, 42), rtol=1e-4)
  assert abs(product(5, 2) - product(5, 3)) > 1e-2


def test_a_block_of_a_wider_type_attends_as_one_of_the_queries_type():
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    for shape in ((3, 1, 4, 16), (3, 2, 16, 40), (3, 2, 40, 16))
  )
  seen = jnp.ones((3, 40), bool)
  narrow = attention.attend_all(q, [(KV(k, v), seen)])
  wide = KV(k.astype(jnp.float32), v.astype(jnp.float32))
  # Weights that were not rounded to 2^-9 would be off by about 1e-3.
  np.testing.assert_allclose(
    attention.attend_all(q, [(wide, seen)]), narrow, rtol=1e-5, atol=1e-5
  )
