"""The flash attention kernels, interpreted on a CPU, against plain attention."""

import jax
import jax.numpy as jnp
import machines
import numpy as np
import pytest

from r1jax.model import attention
from r1jax.model.attention import KV, Window
from r1jax.model.kernels import flash_gpu, flash_tpu
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import MeshConfig, make_mesh

LENGTH = 300  # no multiple of a block


@pytest.fixture(params=['tpu', 'gpu'])
def kernel(monkeypatch, request):
  monkeypatch.setattr(flash_tpu, 'BLOCK', 128)
  monkeypatch.setattr(flash_tpu, 'KERNELS', {'cpu': flash_tpu.KERNELS[request.param]})


def random_kv(rng, rows, length):
  k, v = (rng.normal(size=(rows, 2, c, length)) for c in (16, 8))
  return KV(k.astype(np.float32), np.swapaxes(v, 2, 3).astype(np.float32))


def example():
  """Queries of 4 heads, keys of 2, values of other width; documents; two contexts.

  A whole row, three outputs, a prompt padded on the left, and an output with padding
  behind it. Each row of the first segment serves two rows, of which one sees no more
  than some of its keys.
  """
  rng = np.random.default_rng(0)
  q_BTHC = rng.normal(size=(4, LENGTH, 4, 16)).astype(np.float32)
  place = np.arange(LENGTH)
  document_BT = np.stack([place * 0, place // 80, place // 60 > 0, place < 150])
  prompts = random_kv(rng, 2, 30), np.arange(30)[None] >= np.array([[3], [30]])
  each = random_kv(rng, 4, 7), rng.random((1, 7)) > 0.5
  return q_BTHC, random_kv(rng, 4, LENGTH), document_BT, [prompts, each]


def plain(*args):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flash_tpu, 'KERNELS', {})
    return attention.attend(*args)


def values_and_gradients(attend, q, own, document, context, where=None):
  weight = np.random.default_rng(1).normal(size=(4, LENGTH, 4, 8))
  kvs, masks = zip(*context, strict=True) if context else ((), ())

  def weighted(q, own, kvs):
    out = attend(q, own, document, list(zip(kvs, masks, strict=True)), 0.3)
    return jnp.sum(out * weight.astype(np.float32)), out

  function = jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True)
  quickly = {'xla_backend_optimization_level': 0}  # most of the time is compilation
  return jax.jit(on_mesh(where, function), compiler_options=quickly)(q, own, kvs)


def assert_close(found, expected):
  (_, out), gradients = found
  (_, plain_out), plain_gradients = expected
  # Of order 1, and sums of at most a few hundred products of order 1.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
    (out, gradients),
    (plain_out, plain_gradients),
  )


@pytest.mark.usefixtures('kernel')
@pytest.mark.parametrize('segments', [0, 2])
def test_the_kernel_equals_plain_attention_in_values_and_gradients(segments):
  q, own, document, context = example()
  args = q, own, document, context[:segments]
  found = values_and_gradients(flash_tpu.attend, *args)
  assert_close(found, values_and_gradients(plain, *args))


@pytest.mark.usefixtures('kernel')
def test_the_kernel_attends_on_sharded_rows(monkeypatch):
  q, own, document, context = example()
  args = q, own, document, context
  expected = values_and_gradients(plain, *args)
  monkeypatch.setattr(attention, '_attend_sharded', None)
  # Queries of 150 positions a device, padded to two blocks; one kv head each.
  where = make_mesh(config=MeshConfig(data=2, context=2, tensor=2))
  found = values_and_gradients(attention.attend, *args, where=where)
  assert_close(found, expected)


@pytest.mark.usefixtures('kernel')
def test_layers_with_a_window_do_without_the_kernel(monkeypatch):
  q, own, _, _ = example()
  document = jnp.zeros((4, LENGTH), int)
  positions = jnp.broadcast_to(jnp.arange(LENGTH), (4, LENGTH))
  monkeypatch.setattr(flash_tpu, 'attend', None)
  window = Window(jnp.int32(1), positions)  # each query sees its own key alone
  found = attention.attend(q, own, document, [], 0.3, window)
  expected = np.repeat(np.swapaxes(np.asarray(own.v), 1, 2), 2, axis=2)
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures('kernel')
def test_cases_without_a_kernel():
  q, own, _, context = example()
  assert flash_tpu.serves(q, own, context)
  assert not flash_tpu.serves(q[:, :100], own, context)  # less than a block
  assert not flash_tpu.serves(q, KV(own.k, None), context)
  # Two prompts over four devices.
  where = make_mesh(config=MeshConfig(data=4, tensor=2))
  assert on_mesh(where, flash_tpu.serves)(q, own, context[1:])
  assert not on_mesh(where, flash_tpu.serves)(q, own, context)


@pytest.mark.parametrize(
  ('channels', 'value_channels', 'dtype', 'served'),
  [
    (128, 128, jnp.bfloat16, True),
    (192, 128, jnp.bfloat16, True),  # DeepSeek-V3's: 256 and 128 for Triton
    (64, 64, jnp.float32, True),
    (128, 128, jnp.float32, False),
    (256, 256, jnp.bfloat16, False),
  ],
)
def test_head_sizes_that_fit_on_a_gpu(
  monkeypatch, channels, value_channels, dtype, served
):
  monkeypatch.setattr(flash_tpu, 'KERNELS', {'cpu': flash_gpu.attend})
  q = jnp.zeros((1, 128, 2, channels), dtype)
  own = KV(jnp.zeros((1, 2, channels, 128)), jnp.zeros((1, 2, 128, value_channels)))
  assert flash_tpu.serves(q, own, []) == served


COMPILES = """
import jax, jax.numpy as jnp
from r1jax.model import attention
from r1jax.planner import topology
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.rules import named_sharding

where = make_mesh(topology.find('a100:1')[0])
place = named_sharding(where)

def shape(*sizes, dtype):
  return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

def total(q, k, v, document, before, mask):
  out = attention.attend(q, attention.KV(k, v), document, [(before, mask)])
  return jnp.sum(out, dtype=jnp.float32)

for wide, value, dtype in ((128, 128, jnp.bfloat16), (192, 128, jnp.bfloat16),
                           (64, 64, jnp.float32)):
  kv = [shape(2, 2, wide, n, dtype=dtype) for n in (1024, 128)]
  v = [shape(2, 2, n, value, dtype=dtype) for n in (1024, 128)]
  args = (shape(2, 1024, 14, wide, dtype=dtype), kv[0], v[0],
          shape(2, 1024, dtype=jnp.int32), attention.KV(kv[1], v[1]),
          shape(2, 128, dtype=bool))
  gradients = jax.grad(total, argnums=(0, 1, 2))
  compiled = jax.jit(on_mesh(where, gradients)).lower(*args).compile()
  print(compiled.as_text().count('xla.gpu.triton"'))
"""


def test_the_widest_heads_fit_on_an_a100():
  done = machines.with_gpu_compiler('-c', COMPILES)
  assert done.returncode == 0, done.stderr
  # Forward, and for the gradients of queries and of keys.
  assert done.stdout.split() == ['3', '3', '3']


def test_equal_blocks_hold_a_length(monkeypatch):
  monkeypatch.setattr(flash_tpu, 'BLOCK', 512)
  found = {
    length: flash_tpu._blocks(length) for length in (1, 511, 513, 900, 1100, 4479)
  }
  assert found == {
    1: (1, 128),
    511: (1, 512),
    513: (2, 384),
    900: (2, 512),
    1100: (3, 384),
    4479: (9, 512),
  }
