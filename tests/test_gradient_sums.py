"""Gradients summed in place against `jax.grad` of the whole batch's loss."""

import dataclasses
import functools
import operator
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import optim
from r1jax.model import decoder
from r1jax.model.config import Experts, ModelConfig
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.score import score_tokens
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.place import param_shardings

VOCAB, PARTS, PROMPTS, GROUP, LENGTH = 32, 3, 4, 2, 6
DENSE = ModelConfig(d_model=16, layers=3, heads=2, kv_heads=1, head_dim=8, d_ff=24)
# Two stacks: a dense layer, then layers of experts with routing biases.
SPARSE = dataclasses.replace(
  DENSE, experts=Experts(4, 2, d_ff=8, scores='sigmoid', dense_layers=1)
)
CONFIGS = {
  'untied': DENSE,
  'tied': dataclasses.replace(DENSE, tied=True),
  'kept activations': dataclasses.replace(DENSE, remat='none'),
  'recomputed activations': dataclasses.replace(DENSE, remat='full'),
  'biases': dataclasses.replace(DENSE, qkv_bias=True, out_bias=True, qk_norm=True),
  'experts': SPARSE,
}


def work(config, dtype='float32'):
  """Returns parameters, micro-batches, and the loss of one."""
  model = DecoderFns(*decoder.functions(config, VOCAB))
  params = nn.meta.unbox(decoder.init(config, VOCAB, jax.random.key(0)))
  kinds = decoder.with_dtype(decoder.shapes(config, VOCAB), dtype)
  params = jax.tree.map(lambda x, kind: x.astype(kind.dtype), params, kinds)
  first, second = jax.random.split(jax.random.key(1))
  prompts = jax.random.randint(first, (PARTS, PROMPTS, 4), 0, VOCAB)
  tokens = jax.random.randint(second, (PARTS, PROMPTS, GROUP, LENGTH), 0, VOCAB)

  def loss(params, part):
    prompts, tokens = part
    mask = jnp.ones(prompts.shape, bool)
    logp, entropy = score_tokens(params, prompts, mask, tokens, model=model)
    count = PROMPTS * GROUP * LENGTH  # of a part, wherever it is cut
    return jnp.sum(logp**2) / count, {'entropy': jnp.sum(entropy) / count}

  return params, (prompts, tokens), loss


def close(found, expected, relative):
  def one(path, found, expected):
    bound = relative * np.abs(expected).max() + 1e-12
    np.testing.assert_allclose(
      found, expected, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path)
    )

  found, expected = jax.device_get((found, expected))
  jax.tree_util.tree_map_with_path(one, found, expected)


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS.keys())
def test_a_sum_in_place_is_the_gradient_of_the_sum(config):
  params, parts, loss = work(config)

  @jax.jit
  def of_all(params):
    def total(params):
      each = [jax.tree.map(operator.itemgetter(n), parts) for n in range(PARTS)]
      losses = [loss(params, part) for part in each]
      return sum(value for value, _ in losses), losses

    return jax.grad(total, has_aux=True)(params)

  expected, losses = of_all(params)
  in_place = jax.jit(functools.partial(optim.gradients, loss=loss, in_place=True))
  found, metrics = in_place(params, parts)
  close(found, expected, 2e-6)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(found))
  np.testing.assert_allclose(metrics['loss'], sum(v for v, _ in losses), rtol=1e-6)
  entropy = sum(values['entropy'] for _, values in losses)
  np.testing.assert_allclose(metrics['entropy'], entropy, rtol=1e-6)


def test_parts_that_are_not_counted_add_nothing():
  params, parts, loss = work(DENSE)
  gradient = jax.jit(functools.partial(optim.gradients, loss=loss, in_place=True))
  first = jax.tree.map(lambda x: x[:1], parts)
  close(gradient(params, parts, count=1), gradient(params, first), 1e-6)
  nothing, metrics = gradient(params, parts, count=0)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing))
  assert metrics['loss'] == 0


def test_the_sum_of_bfloat16_gradients_is_float32():
  params, parts, loss = work(SPARSE, 'bfloat16')
  assert params['embedding'].dtype == jnp.bfloat16
  gradient = jax.jit(
    functools.partial(optim.gradients, loss=loss), static_argnames='in_place'
  )
  found, _ = gradient(params, parts, in_place=True)
  expected, _ = gradient(params, parts, in_place=False)
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype('float32')}
  # The head's gradient is rounded once a chunk of logits, others once a layer.
  close(found, expected, 2**-7)


MESHES = [
  (DENSE, MeshConfig(data=2, fsdp=2)),
  (dataclasses.replace(DENSE, kv_heads=2), MeshConfig(data=1, fsdp=2, tensor=2)),
  (SPARSE, MeshConfig(data=2, expert=2)),
]


@pytest.mark.parametrize(('config', 'layout'), MESHES)
def test_a_sum_in_place_is_the_same_on_a_mesh(config, layout):
  params, parts, loss = work(config)
  gradient = functools.partial(optim.gradients, loss=loss, in_place=True)
  expected, _ = jax.jit(gradient)(params, parts)
  mesh = make_mesh(jax.devices()[:4], layout)
  places = param_shardings(mesh, decoder.names(config, VOCAB))
  placed = jax.device_put(params, places)
  found, _ = jax.jit(on_mesh(mesh, gradient))(placed, parts)
  close(found, expected, 2e-6)


def test_boxed_parameters_are_sharded_by_their_names():
  params, parts, loss = work(DENSE)
  mesh = make_mesh(jax.devices()[:2], MeshConfig(fsdp=2))
  gradient = functools.partial(optim.gradients, loss=loss, in_place=True)
  text = jax.jit(on_mesh(mesh, gradient)).lower(params, parts).as_text()
  # d_ff 24 by d_model 16 in 3 layers: the matrix `down`, cut along d_model.
  assert re.search(r'sharding_constraint.*3x24x16', text)
