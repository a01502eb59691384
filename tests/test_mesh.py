import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from r1jax import mesh
from r1jax.model import decoder
from r1jax.model.config import ModelConfig


def test_mesh_takes_all_devices_or_the_given():
  assert dict(mesh.make().shape) == {'data': len(jax.devices())}
  two = mesh.make(jax.devices()[1:3])
  assert list(two.devices) == jax.devices()[1:3]


def test_logical_axes_are_looked_up():
  four = mesh.make(jax.devices()[:4])
  placed = mesh.sharding(four, 'embed', 'prompt', None)
  assert placed.spec == PartitionSpec(None, 'data', None)
  assert placed.mesh == four


def test_an_unknown_axis_is_refused():
  with pytest.raises(ValueError, match=r"^logical axis: .*'vocab'.*, got \['batch'\]$"):
    mesh.sharding(mesh.make(), 'batch', 'embed')


def test_a_fitting_mesh_has_as_many_devices_as_divide_every_size():
  assert len(jax.devices()) >= 4
  for sizes, most in (((12, 8), 4), ((6, 4), 2), ((6, 9), 3), ((5, 16), 1)):
    fitting = [n for n in range(1, len(jax.devices()) + 1) if n in (1, 2, 3, 4, most)]
    assert mesh.fitting(sizes).size in fitting
    assert mesh.fitting(sizes).size == most


def test_batches_are_cut_along_their_first_axis():
  four = mesh.make(jax.devices()[:4])
  rows = np.arange(24).reshape(8, 3)
  placed = mesh.put_batch(four, {'a': rows, 'b': rows[:, 0], 'none': None})
  assert placed['none'] is None
  for name, whole in (('a', rows), ('b', rows[:, 0])):
    shards = placed[name].addressable_shards
    assert [shard.device for shard in shards] == jax.devices()[:4]
    for i, shard in enumerate(shards):
      np.testing.assert_array_equal(shard.data, whole[2 * i : 2 * i + 2])


def test_boxes_are_opened_and_placed_by_their_names():
  four = mesh.make(jax.devices()[:4])
  value = jnp.arange(16.0).reshape(2, 8)
  boxed = {
    'cut': nn.LogicallyPartitioned(value, names=('embed', 'prompt')),
    'whole': nn.LogicallyPartitioned(value, names=('embed', 'mlp')),
  }
  placed = mesh.put_boxed(four, boxed)
  assert {s.data.shape for s in placed['cut'].addressable_shards} == {(2, 2)}
  assert {s.data.shape for s in placed['whole'].addressable_shards} == {(2, 8)}
  for name in boxed:
    assert placed[name].sharding.device_set == set(jax.devices()[:4])
    np.testing.assert_array_equal(placed[name], value)


def test_shapes_are_taken_out_of_their_boxes():
  boxed = jax.eval_shape(
    lambda: {
      'w': nn.LogicallyPartitioned(jnp.ones((2, 8)), names=('embed', 'mlp')),
      'plain': nn.LogicallyPartitioned(jnp.ones(3), names=(None,)),
    }
  )
  shapes = mesh.unbox(boxed)
  assert {name: shape.shape for name, shape in shapes.items()} == {
    'w': (2, 8),
    'plain': (3,),
  }


@pytest.mark.parametrize('tied', [True, False])
def test_the_table_knows_every_axis_of_the_decoder(tied):
  config = ModelConfig(
    d_model=8, layers=1, heads=2, kv_heads=1, head_dim=4, d_ff=16, tied=tied
  )
  boxed = jax.eval_shape(lambda key: decoder.init(config, 5, key), jax.random.key(0))
  leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: hasattr(leaf, 'names'))
  # matrices: embedding (and head), query key value out, gate up down; three gains
  assert len(leaves) == (11 if tied else 12)
  for leaf in leaves:
    assert len(leaf.names) == leaf.value.ndim
    assert mesh.sharding(mesh.make(), *leaf.names).is_fully_replicated
