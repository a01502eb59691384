"""Products of bfloat16 factors, their gradients, and how a CPU computes them."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import decode, decoder, linear, one_row
from r1jax.model.config import ModelConfig
from r1jax.model.decode_weights import decode_params
from r1jax.sharding.place import unbox

BFLOAT16 = jnp.bfloat16
CPU = Path('/proc/cpuinfo')
# Without such units XLA has no reason to keep the factors.
units = pytest.mark.skipif(
  not CPU.exists() or not re.search('avx512_bf16|amx_bf16', CPU.read_text()),
  reason='a processor without units for bfloat16',
)


def rounded(x):
  """The numbers of a bfloat16 array, as float64."""
  return np.asarray(jnp.asarray(x, BFLOAT16), np.float64)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('rows', [(3, 40), (24,)])
def test_products_and_gradients_of_bfloat16_are_sums_in_float32(rows, axis):
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(*rows, 64)), rng.normal(size=(64, 48))
  g = rng.normal(size=(*rows, 48))
  given = jnp.asarray(x, BFLOAT16), jnp.asarray(w if axis == 0 else w.T, jnp.float32)
  out, back = jax.vjp(lambda x, w: linear.product(x, w, axis), *given)
  dx, dw = back(jnp.asarray(g, jnp.float32))
  assert (out.dtype, dx.dtype, dw.dtype) == ('float32', BFLOAT16, 'float32')
  x, w, g = map(rounded, (x, w, g))
  np.testing.assert_allclose(out, x @ w, rtol=1e-5, atol=1e-5)
  expected = x.reshape(-1, 64).T @ g.reshape(-1, 48)
  np.testing.assert_allclose(dw if axis == 0 else dw.T, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(rounded(dx), g @ w.T, rtol=2**-8, atol=1e-5)


def test_a_gradient_has_the_type_of_its_weights():
  x, w = jnp.ones((2, 8), BFLOAT16), jnp.ones((8, 4), BFLOAT16)
  dw = jax.grad(lambda w: linear.product(x, w).sum())(w)
  assert dw.dtype == BFLOAT16
  np.testing.assert_array_equal(np.asarray(dw, np.float32), 2)


def factors(program):
  """The types of the factors of each matrix product in a compiled program."""
  found = []
  for body in re.findall(r'\{\n(.*?)\n\}', program, re.DOTALL):
    types = dict(re.findall(r'%(\S+) = (\w+)\[', body))
    for one, other in re.findall(r' dot\(%([^,]+), %([^)]+)\)', body):
      found.append((types[one], types[other]))
  return found


CONFIG = ModelConfig(
  d_model=256, layers=2, heads=4, kv_heads=2, head_dim=64, d_ff=512, dtype='bfloat16'
)


@units
def test_a_cpu_decodes_with_products_of_bfloat16_factors():
  params = unbox(decoder.init(CONFIG, 512, jax.random.key(0)))

  def decoded(params, token_B):
    step = decode.make_decode(CONFIG, params)
    shape = (len(token_B), 2, 64, 64)
    block = decode.KV(jnp.zeros(shape), jnp.zeros(shape))
    seen = jnp.ones((1, 64), bool)
    position_B = jnp.zeros(len(token_B), jnp.int32)

    def once(_, token_B):
      context = [([block] * CONFIG.layers, seen)]
      hidden_BD, _ = step(token_B, position_B, context, jnp.int32(0))
      return jnp.argmax(hidden_BD, -1).astype(jnp.int32)

    return jax.lax.fori_loop(0, 3, once, token_B)

  program = jax.jit(decoded).lower(params, jnp.zeros(16, jnp.int32)).compile()
  products = factors(program.as_text())
  weights = CONFIG.layers * 7
  assert products.count(('bf16', 'bf16')) >= weights
  # Attention to the block that is written, which is float32 on a CPU.
  assert len(products) - products.count(('bf16', 'bf16')) <= CONFIG.layers * 2


@units
@pytest.mark.parametrize('batch', [(4, 32), (1, 128)])
def test_a_cpu_learns_with_products_of_bfloat16_factors(batch):
  config = dataclasses.replace(CONFIG, remat='dots')
  params = unbox(decoder.init(config, 512, jax.random.key(0)))
  forward, logits, *_ = decoder.functions(config, 512)
  ids = jnp.ones(batch, jnp.int32)

  def loss(params):
    hidden, _ = forward(params, ids, ids, ids)
    return jnp.square(logits(params, hidden)).sum()

  program = jax.jit(jax.grad(loss)).lower(params).compile()
  products = factors(program.as_text())
  # 7 matrices of a layer and the head: forward, and twice in the gradient.
  assert products.count(('bf16', 'bf16')) >= 8 * 3


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_one_column_is_multiplied_as_by_numpy(kind):
  rng = np.random.default_rng(0)
  w = jnp.asarray(rng.integers(-127, 128, size=(5, 192))).astype(kind)
  x = rng.standard_normal((192, 1)).astype(np.float32)
  stored = linear.bits(w) if kind == 'bfloat16' else w
  found = np.asarray(one_row.product(stored, jnp.asarray(x)))
  expected: np.ndarray = np.asarray(w, np.float64) @ x
  # float32 sums of 192 terms below 400
  np.testing.assert_allclose(found, expected, atol=1e-2)


def test_the_head_of_one_row_gives_the_logits_of_the_model():
  config = ModelConfig(
    d_model=64, layers=1, heads=2, kv_heads=1, head_dim=32, d_ff=64, dtype='bfloat16'
  )
  params = unbox(decoder.init(config, 9, jax.random.key(0)))
  hidden = jax.random.normal(jax.random.key(1), (1, 64))
  _, logits, *_ = decoder.functions(config, 9)
  single = decode_params(config, params, single=True)
  assert single.head is not None
  # The model too rounds a tied embedding of float32 for its products.
  np.testing.assert_allclose(
    logits(single, hidden), logits(params, hidden), rtol=1e-5, atol=1e-5
  )
