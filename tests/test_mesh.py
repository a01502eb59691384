from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from r1jax.model import decoder
from r1jax.model.config import Experts, Latent, ModelConfig
from r1jax.sharding.constrain import current_mesh, on_mesh, platform
from r1jax.sharding.mesh import (
  MeshConfig,
  check_lengths,
  fit_mesh,
  make_mesh,
  sampler_mesh,
)
from r1jax.sharding.place import (
  like_params,
  param_shardings,
  put_batch,
  put_boxed,
  unbox,
  without_gathers,
)
from r1jax.sharding.rules import MeshError, named_sharding


def test_mesh_takes_all_devices_or_the_given():
  assert make_mesh().shape['data'] == make_mesh().size == len(jax.devices())
  two = make_mesh(jax.devices()[1:3])
  assert list(two.devices.flat) == jax.devices()[1:3]


def test_axes_are_arranged_as_the_config_says():
  found = make_mesh(config=MeshConfig(fsdp=2, tensor=2))
  assert dict(found.shape) == {
    'data': 2,
    'fsdp': 2,
    'expert': 1,
    'context': 1,
    'tensor': 2,
  }


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'fsdp': 3}, r'the 8 devices, got fsdp 3; set mesh.fsdp to 4'),
    ({'fsdp': 16}, r'the 8 devices, got fsdp 16; set mesh.fsdp to 8'),
    ({'data': 2, 'tensor': 2}, r'got data 2 x tensor 2; set mesh.data to 4'),
    ({'fsdp': 4, 'tensor': 3}, r'got fsdp 4 x tensor 3; set mesh.tensor to 2'),
  ],
)
def test_axes_whose_product_is_not_the_devices_are_refused(fields, message):
  with pytest.raises(MeshError, match=message):
    make_mesh(config=MeshConfig(**fields))


def test_a_size_below_the_minimum_is_refused():
  with pytest.raises(MeshError, match=r'mesh.tensor: expected 1 or more, got 0'):
    MeshConfig(tensor=0)


def test_logical_axes_are_looked_up():
  four = make_mesh(jax.devices()[:4])
  placed = named_sharding(four, 'embed', 'prompt', None)
  assert placed.spec == PartitionSpec(None, 'data', None)
  assert placed.mesh == four


def test_a_mesh_axis_shards_only_the_first_axis_that_names_it():
  place = make_mesh(config=MeshConfig(fsdp=2, expert=2, tensor=2))
  expert = named_sharding(place, 'expert', 'embed', 'mlp').spec
  assert expert == PartitionSpec('expert', 'fsdp', 'tensor')
  dense = named_sharding(place, 'embed', 'mlp').spec
  assert dense == PartitionSpec(('fsdp', 'expert'), 'tensor')


def test_samplers_shard_experts_and_gather_nothing():
  place = sampler_mesh(make_mesh(), MeshConfig(sampler_expert=4, sampler_tensor=2))
  experts = Experts(count=4, active=2, d_ff=8)
  config = ModelConfig(
    d_model=8, layers=1, heads=2, kv_heads=2, head_dim=4, d_ff=16, experts=experts
  )
  names = decoder.names(config, 8)

  def found(names):
    shardings: Any = param_shardings(place, names)
    blocks = shardings['blocks']
    return [blocks[name].spec[1:] for name in ('query', 'expert_up')]

  separate = ('expert', None, 'tensor')
  assert found(names) == [('expert', 'tensor', None), separate]
  assert found(without_gathers(names)) == [(None, 'tensor', None), separate]


def test_samplers_replicate_the_model_except_along_their_axes():
  place = make_mesh(config=MeshConfig(fsdp=4, tensor=2))
  assert sampler_mesh(place).shape['data'] == 4
  layout = MeshConfig(sampler_tensor=4, sampler_expert=2)
  found = sampler_mesh(place, layout)
  assert (found.shape['tensor'], found.shape['expert'], found.size) == (4, 2, 8)
  with pytest.raises(MeshError, match=r'the 8 devices, got 3; set it to 4'):
    sampler_mesh(place, MeshConfig(sampler_tensor=3))
  with pytest.raises(MeshError, match=r'the 1 devices, got 3; set it to 1'):
    sampler_mesh(make_mesh(jax.devices()[:1]), MeshConfig(sampler_tensor=3))


def test_a_parameter_that_cannot_be_sharded_is_named_with_the_next_size():
  place = make_mesh(config=MeshConfig(tensor=4))
  config = ModelConfig(d_model=8, layers=1, heads=6, kv_heads=2, head_dim=4, d_ff=16)
  with pytest.raises(
    MeshError,
    match=r'mesh.tensor 4: expected a divisor of 2, the axis kv_heads of blocks.key, ',
  ):
    param_shardings(place, decoder.names(config, 8))


def test_prompts_that_cannot_be_sharded_are_named_with_the_next_size():
  with pytest.raises(MeshError, match=r'rl.rows: expected a multiple of 4, .*is 8'):
    fit_mesh({'rl.rows': 6}, MeshConfig(data=2, fsdp=2, tensor=2))


def test_the_number_of_replicas_fits_samplers_too():
  # Eight samplers cannot share four prompts, and four can.
  layout, sizes = MeshConfig(context=2, fsdp=2), {'rl.rows': 8}
  assert fit_mesh(sizes, layout, {'rl.prompts': 4}).size == 4
  assert fit_mesh(sizes, layout, {'rl.prompts': 8}).size == 8
  with pytest.raises(MeshError, match=r'as samplers shard prompts over data 4,'):
    fit_mesh(sizes, layout, {'rl.prompts': 6})
  with pytest.raises(MeshError, match=r'mesh.sampler_tensor: expected'):
    fit_mesh(sizes, MeshConfig(sampler_tensor=3))


def test_lengths_that_cannot_be_sharded_are_named_with_the_next_one():
  place = make_mesh(config=MeshConfig(context=4))
  check_lengths(place, {'rl.max_length': 32})
  with pytest.raises(MeshError, match=r'rl.max_length: .* got 33; the next is 36'):
    check_lengths(place, {'rl.max_length': 33})


def test_optimizer_states_are_sharded_like_their_parameters():
  place = make_mesh(config=MeshConfig(fsdp=4))
  w = jax.device_put(jnp.ones((8, 4)), named_sharding(place, 'embed', None))
  state = {'mu': {'w': jnp.zeros((8, 4))}, 'nu': {'w': jnp.zeros((1, 4))}, 'n': 0}
  placed = like_params(place, jax.tree.map(jnp.asarray, state), {'w': w})
  assert placed['mu']['w'].sharding == w.sharding
  assert placed['nu']['w'].sharding.is_fully_replicated
  assert placed['n'].sharding.is_fully_replicated


def test_an_unknown_axis_is_refused():
  with pytest.raises(ValueError, match=r"^logical axis: .*'vocab'.*, got \['batch'\]$"):
    named_sharding(make_mesh(), 'batch', 'embed')


def test_a_fitting_mesh_has_as_many_devices_as_divide_every_size():
  assert len(jax.devices()) >= 4
  for sizes, most in (((12, 8), 4), ((6, 4), 2), ((6, 9), 3), ((5, 16), 1)):
    named = {str(n): size for n, size in enumerate(sizes)}
    assert fit_mesh(named).size == most
  # Two devices each: of 8 devices 3 x 2 are used.
  found = fit_mesh({'a': 6}, MeshConfig(tensor=2))
  assert (found.size, found.shape['data']) == (6, 3)


@pytest.mark.parametrize('chips', [1, 4])
def test_the_platform_is_that_of_the_mesh(chips):
  devices = np.array([SimpleNamespace(platform='tpu')] * chips)
  there: Any = SimpleNamespace(size=chips, devices=devices)
  assert on_mesh(there, platform)() == 'tpu'
  assert on_mesh(there, current_mesh)() is (None if chips == 1 else there)
  assert platform() == on_mesh(None, platform)() == 'cpu'


def test_batches_are_sharded_along_their_first_axis():
  four = make_mesh(jax.devices()[:4])
  rows = np.arange(24).reshape(8, 3)
  placed: Any = put_batch(four, {'a': rows, 'b': rows[:, 0], 'none': None})
  assert placed['none'] is None
  for name, whole in (('a', rows), ('b', rows[:, 0])):
    shards = placed[name].addressable_shards
    assert [shard.device for shard in shards] == jax.devices()[:4]
    for i, shard in enumerate(shards):
      np.testing.assert_array_equal(shard.data, whole[2 * i : 2 * i + 2])


def test_boxed_parameters_are_placed_by_their_names():
  four = make_mesh(jax.devices()[:4])
  value = jnp.arange(16.0).reshape(2, 8)
  boxed = {
    'cut': nn.LogicallyPartitioned(value, names=('embed', 'prompt')),
    'whole': nn.LogicallyPartitioned(value, names=('embed', 'mlp')),
  }
  placed = put_boxed(four, boxed)
  assert {s.data.shape for s in placed['cut'].addressable_shards} == {(2, 2)}
  assert {s.data.shape for s in placed['whole'].addressable_shards} == {(2, 8)}
  for name in boxed:
    assert placed[name].sharding.device_set == set(jax.devices()[:4])
    np.testing.assert_array_equal(placed[name], value)


def test_boxed_shapes_are_unboxed():
  boxed = jax.eval_shape(
    lambda: {
      'w': nn.LogicallyPartitioned(jnp.ones((2, 8)), names=('embed', 'mlp')),
      'plain': nn.LogicallyPartitioned(jnp.ones(3), names=(None,)),
    }
  )
  shapes = unbox(boxed)
  assert {name: shape.shape for name, shape in shapes.items()} == {
    'w': (2, 8),
    'plain': (3,),
  }


@pytest.mark.parametrize('tied', [True, False])
def test_the_table_has_every_axis_of_the_decoder(tied):
  config = ModelConfig(
    d_model=8, layers=1, heads=2, kv_heads=1, head_dim=4, d_ff=16, tied=tied
  )
  boxed = jax.eval_shape(lambda key: decoder.init(config, 5, key), jax.random.key(0))
  leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: hasattr(leaf, 'names'))
  # matrices: embedding (and head), query key value out, gate up down; three gains
  assert len(leaves) == (11 if tied else 12)
  for leaf in leaves:
    assert len(leaf.names) == leaf.value.ndim
    assert named_sharding(make_mesh(), *leaf.names).is_fully_replicated


def test_fsdp_shards_every_matrix_and_no_gain():
  config = ModelConfig(
    d_model=16,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=8,
    d_ff=16,
    latent=Latent(kv_rank=8, q_rank=24, rope_dim=4, value_dim=4),
    experts=Experts(count=4, active=2, d_ff=8, shared=1, dense_layers=1),
  )
  names = decoder.names(config, 8)
  placed = param_shardings(make_mesh(config=MeshConfig(fsdp=8)), names)
  for path, place in jax.tree_util.tree_leaves_with_path(placed):
    whole = 'norm' in jax.tree_util.keystr(path)
    assert place.is_fully_replicated == whole, path
