"""The grouped matmul kernels, interpreted on a CPU, against one product per group."""

import functools

import jax
import jax.numpy as jnp
import machines
import numpy as np
import pytest

from r1jax.model.kernels import grouped_matmul


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
  monkeypatch.setattr(grouped_matmul, 'KERNELS', ('cpu',))


def one_by_one(x_MD, w_EDF, sizes):
  out, end = np.zeros((len(x_MD), w_EDF.shape[2]), np.float32), 0
  for w_DF, size in zip(w_EDF, sizes, strict=True):
    out[end : end + size] = x_MD[end : end + size] @ w_DF
    end += size
  return out


# More rows than a block and fewer, none, and rows that are of no group.
@pytest.mark.parametrize('sizes', [(70, 0, 3, 200), (273, 0, 0, 0), (0, 1, 64, 128)])
def test_rows_are_multiplied_with_the_matrices_of_their_groups(sizes):
  rng = np.random.default_rng(0)
  x_MD, slope_MF = (rng.normal(size=(273, n)).astype(np.float32) for n in (48, 160))
  w_EDF = rng.normal(size=(4, 48, 160)).astype(np.float32)
  assert grouped_matmul._served(jnp.array(x_MD), 48, 160)
  out, back = jax.vjp(grouped_matmul.product, x_MD, w_EDF, jnp.array(sizes))
  # Sums of at most 273 products of order 1.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
  close(out, one_by_one(x_MD, w_EDF, sizes))
  slope_MD, slope_EDF, _ = back(slope_MF)
  expected = one_by_one(slope_MF, np.swapaxes(w_EDF, 1, 2), sizes)
  close(slope_MD, expected)
  for found, size, end in zip(slope_EDF, sizes, np.cumsum(sizes), strict=True):
    close(found, x_MD[end - size : end].T @ slope_MF[end - size : end])


def test_replicas_compute_one_after_the_other():
  rng = np.random.default_rng(0)
  x_CMD, w_EDF = rng.normal(size=(2, 130, 16)), rng.normal(size=(3, 16, 32))
  sizes_CE = np.array([(100, 10, 20), (0, 129, 1)])

  def total(w_EDF, x_MD, sizes_E):
    return jnp.sum(jnp.sin(grouped_matmul.product(x_MD, w_EDF, sizes_E)))

  function = jax.value_and_grad(total)
  args = jnp.float32(w_EDF), jnp.float32(x_CMD), sizes_CE
  found = jax.vmap(function, (None, 0, 0))(*args)
  for n in range(2):
    expected = function(args[0], args[1][n], sizes_CE[n])
    for x, y in zip(found, expected, strict=True):
      np.testing.assert_allclose(x[n], y, rtol=1e-5, atol=1e-4)


COMPILES = """
import jax, jax.numpy as jnp
from r1jax.model import moe
from r1jax.model.config import Experts
from r1jax.planner import topology
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.rules import named_sharding

config = Experts(count=32, active=4, d_ff=768)
where = make_mesh(topology.find('a100:8')[0], MeshConfig(data=2, expert=2, tensor=2))

def shape(*sizes, names=()):
  place = named_sharding(where, *names)
  return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=place)

weights = {
  'router': shape(2048, 32),
  'expert_gate': shape(32, 2048, 768, names=('expert', None, 'mlp')),
  'expert_up': shape(32, 2048, 768, names=('expert', None, 'mlp')),
  'expert_down': shape(32, 768, 2048, names=('expert', 'mlp', None)),
}

def total(weights, x):
  out = moe.mixture_of_experts(x, weights, config, 'bfloat16')
  return out.astype(jnp.float32).sum()

program = jax.jit(on_mesh(where, jax.grad(total, argnums=(0, 1))))
compiled = program.lower(weights, shape(8, 512, 2048, names=('prompt',))).compile()
print(compiled.as_text().count('xla.gpu.triton"'), end=' ')
print(compiled.memory_analysis().temp_size_in_bytes)
"""


def test_the_kernels_run_on_sharded_experts():
  done = machines.with_gpu_compiler('-c', COMPILES)
  assert done.returncode == 0, done.stderr
  kernels, temporaries = map(int, done.stdout.split())
  # Of three matrices the products, and both of their gradients.
  assert kernels == 9
  # Each device has 4 x 512 tokens, and with the other half of experts' 8,192 rows.
  rows = 2 * 4 * 512 * 4
  assert temporaries < 8 * 2 * rows * (2048 + 768)
