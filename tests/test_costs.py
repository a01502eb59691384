"""Costs of programs, counted from their text, against counts by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from r1jax.planner import costs
from r1jax.runtime import compilation
from r1jax.sharding.constrain import constrain, on_mesh
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.rules import named_sharding

PLACE = make_mesh(config=MeshConfig(fsdp=8))


def text_of(function, folder, *args):
  """The program after it has been cut over the devices."""
  options: dict[str, str | bool] = {
    'xla_dump_to': str(folder),
    'xla_dump_hlo_as_text': True,
    'xla_dump_hlo_pass_re': '.*spmd-partitioning',
  }
  with compilation.nothing_from_disk():
    jax.jit(function).lower(*args).compile(compiler_options=options)
  (found,) = Path(folder).glob('*after_*spmd-partitioning.before*')
  return found.read_text()


def shape(*sizes, names=(), dtype=jnp.float32):
  place = named_sharding(PLACE, *names)
  return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)


def test_a_loop_costs_as_often_as_it_runs(tmp_path):
  def function(x, w):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

  args = shape(64, 32, names=('prompt', None)), shape(5, 32, 32)
  found = costs.program_costs(text_of(function, tmp_path, *args))
  assert found.flops == 5 * 2 * 8 * 32 * 32  # 8 rows a device
  assert found.bytes == 5 * 4 * (2 * 8 * 32 + 32 * 32)
  assert not sum(found.sent.values())


def test_a_loop_with_a_dynamic_end_runs_unknown_trips_times(tmp_path):
  def function(x, w, count):
    return jax.lax.fori_loop(0, count, lambda _, x: x @ w, x)

  args = shape(64, 32, names=('prompt', None)), shape(32, 32), shape(dtype=jnp.int32)
  text = text_of(function, tmp_path, *args)
  assert costs.program_costs(text, unknown_trips=7).flops == 7 * 2 * 8 * 32 * 32


def test_a_sum_over_devices_is_scattered_and_gathered(tmp_path):
  def function(x, w):
    return constrain(x.T @ w)

  args = shape(64, 32, names=('prompt', None)), shape(64, 16, names=('prompt', None))
  found = costs.program_costs(text_of(on_mesh(PLACE, function), tmp_path, *args))
  assert found.flops == 2 * 32 * 8 * 16
  assert found.sent == {
    ('all-reduce', 8, 'links'): pytest.approx(2 * 7 / 8 * 32 * 16 * 4)
  }


def test_an_all_gather_receives_the_parts_of_the_others(tmp_path):
  def function(x):
    return constrain(x * 2)

  args = shape(64, 32, names=('prompt', None))
  found = costs.program_costs(text_of(on_mesh(PLACE, function), tmp_path, args))
  assert found.sent == {('all-gather', 8, 'links'): pytest.approx(7 / 8 * 64 * 32 * 4)}


RAGGED = """HloModule m

ENTRY %main (x: f32[40,8], w: f32[5,8,6], n: s32[5]) -> f32[40,6] {
  %x = f32[40,8]{1,0} parameter(0)
  %w = f32[5,8,6]{2,1,0} parameter(1)
  %n = s32[5]{0} parameter(2)
  %out = f32[40,6]{1,0} ragged-dot(%x, %w, %n), lhs_contracting_dims={1}, rhs_contracting_dims={1}, lhs_ragged_dims={0}, rhs_group_dims={0}
  ROOT %slope = f32[5,8,6]{2,1,0} ragged-dot(%x, %out, %n), lhs_contracting_dims={0}, rhs_contracting_dims={0}, lhs_ragged_dims={0}
}
"""  # noqa: E501


@pytest.mark.parametrize('share', [1.0, 0.25])
def test_a_row_of_a_grouped_product_uses_one_matrix(share):
  found = costs.program_costs(RAGGED, ragged_share=share)
  assert found.flops == share * 2 * (2 * 40 * 8 * 6)


GPU_GROUPED = """HloModule m

ENTRY %main (x: bf16[40,8], w: bf16[5,8,6], n: s32[5]) -> bf16[40,6] {
  %x = bf16[40,8]{1,0} parameter(0)
  %w = bf16[5,8,6]{2,1,0} parameter(1)
  %n = s32[5]{0} parameter(2)
  %out = bf16[40,6]{1,0} custom-call(%n, %n, %n, %x, %w), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/jvp()/grouped_rows/pallas_call"}
  ROOT %slope = bf16[5,8,6]{2,1,0} custom-call(%n, %n, %x, %out), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/transpose(jvp())/grouped_sums/pallas_call"}
}
"""  # noqa: E501


@pytest.mark.parametrize('share', [1.0, 0.25])
def test_kernels_of_gpus_compute_the_rows_of_groups(share):
  found = costs.program_costs(GPU_GROUPED, ragged_share=share)
  assert found.flops == share * 2 * (2 * 40 * 8 * 6)
  assert found.bytes == 2 * 2 * (share * 40 * (8 + 6) + 5 * 8 * 6)


# Six heads of 16 channels, values of 8; the 256 queries are the last of 384 keys of two
# heads, and blocks are of 128. Attributes of kernels are written over several lines.
KERNEL = """HloModule m

ENTRY %main (q: bf16[6,256,16], k: bf16[2,384,16], v: bf16[2,384,8]) -> bf16[6,256,8] {
  %next = s32[1,2,3]{2,1,0} parameter(0)
  %used = s32[1,2,3]{2,1,0} parameter(1)
  %q = bf16[6,256,16]{2,1,0} parameter(2)
  %k = bf16[2,384,16]{2,1,0} parameter(3)
  %v = bf16[2,384,8]{2,1,0} parameter(4)
  %out = (bf16[6,256,8]{2,1,0}) custom-call(%next, %used, %q, %k, %v), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="jit(f)/splash_mha_KIND_segmented/pallas_call"}, backend_config={"custom_call_config":{"body":""}}
  ROOT %one = bf16[6,256,8]{2,1,0} get-tuple-element(%out), index=0
}
"""  # noqa: E501


@pytest.mark.parametrize(
  ('kind', 'products'),
  # Scores and outputs; scores, weights' gradients and queries'; and both of keys.
  [('fwd', 16 + 8), ('dq', 16 + 8 + 16), ('dkv', 16 + 8 + 8 + 16)],
)
def test_a_kernel_computes_the_blocks_up_to_the_diagonal(kind, products):
  found = costs.program_costs(KERNEL.replace('KIND', kind))
  blocks = 2 + 3  # of keys, for the first and for the second block of queries
  assert found.flops == 2 * 6 * blocks * 128 * 128 * products
  # All once, and the other side's block again for each.
  once = 2 * 4 * 6 + 2 * (6 * 256 * (16 + 8) + 2 * 384 * (16 + 8))
  assert found.bytes == once + 2 * 6 * blocks * 128 * (16 + 8)


# The same queries and keys, with heads after positions. Blocks are of 64 keys and 128
# queries, or 64 where keys' gradients are computed.
GPU_KERNEL = """HloModule m

ENTRY %main (q: bf16[1,256,6,16], k: bf16[1,384,2,16], v: bf16[1,384,2,8]) -> bf16[1,256,6,8] {
  %q = bf16[1,256,6,16]{3,2,1,0} parameter(0)
  %k = bf16[1,384,2,16]{3,2,1,0} parameter(1)
  %v = bf16[1,384,2,8]{3,2,1,0} parameter(2)
  %out = (bf16[1,256,6,8]{3,2,1,0}) custom-call(%q, %k, %v), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/transpose(jvp(flash_KIND))/pallas_call"}, backend_config={grid_x = 1 : i32, ir = "ML\\EFR{"}
  ROOT %one = bf16[1,256,6,8]{3,2,1,0} get-tuple-element(%out), index=0
}
"""  # noqa: E501


@pytest.mark.parametrize(
  ('kind', 'queries', 'blocks', 'products'),
  # Blocks of keys, for each block of queries.
  [
    ('fwd', 128, 4 + 6, 16 + 8),
    ('dq', 128, 4 + 6, 16 + 8 + 16),
    ('dkv', 64, 3 + 4 + 5 + 6, 2 * (16 + 8)),
  ],
)
def test_a_kernel_of_gpus_computes_the_blocks_up_to_the_diagonal(
  kind, queries, blocks, products
):
  found = costs.program_costs(GPU_KERNEL.replace('KIND', kind))
  assert found.flops == 2 * 6 * blocks * queries * 64 * products
  once = 2 * (256 * 6 + 384 * 2) * (16 + 8)
  assert found.bytes == once + 2 * 6 * blocks * 64 * (16 + 8)


TWICE = """HloModule m

%cond (a: (f32[4,4], u32[])) -> pred[] {
  %a = (f32[4,4]{1,0}, u32[]) parameter(0)
  %i = u32[] get-tuple-element(%a), index=1
  %end = u32[] constant(6)
  ROOT %lt = pred[] compare(%i, %end), direction=LT
}

%body (b: (f32[4,4], u32[])) -> (f32[4,4], u32[]) {
  %b = (f32[4,4]{1,0}, u32[]) parameter(0)
  %x = f32[4,4]{1,0} get-tuple-element(%b), index=0
  %j = u32[] get-tuple-element(%b), index=1
  %one = u32[] constant(1)
  %p = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %j1 = u32[] add(%j, %one)
  %q = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %j2 = u32[] add(%j1, %one)
  ROOT %t = (f32[4,4]{1,0}, u32[]) tuple(%q, %j2)
}

ENTRY %main (c: (f32[4,4], u32[])) -> (f32[4,4], u32[]) {
  %c = (f32[4,4]{1,0}, u32[]) parameter(0)
  ROOT %w = (f32[4,4]{1,0}, u32[]) while(%c), condition=%cond, body=%body
}
"""


def test_an_unrolled_body_runs_half_as_often():
  assert costs.program_costs(TWICE).flops == 6 * 2 * 4 * 4 * 4


def collective(kind, shape, groups):
  """A program of one collective over eight devices."""
  line = f'  ROOT %a = {shape} {kind}(%x), channel_id=1, {groups}, dimensions={{0}}'
  return f'ENTRY %main (x: f32[8]) -> {shape} {{\n{line}\n}}\n'


@pytest.mark.parametrize(
  ('groups', 'expected'),
  [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', 'links'),
    ('replica_groups={{0,4},{1,5},{2,6},{3,7}}', 'network'),
    ('replica_groups=[2,4]<=[8]', 'links'),
    # 0 1 2 3 / 4 5 6 7, its columns one after the other
    ('replica_groups=[4,2]<=[2,4]T(1,0)', 'network'),
    # 0 1 / 2 3 / 4 5 / 6 7: 0 2, 4 6, 1 3, 5 7
    ('replica_groups=[4,2]<=[4,2]T(1,0)', 'links'),
    # [i, j, k] is device 4i + 2j + k; i changes fastest, then j
    ('replica_groups=[4,2]<=[2,2,2]T(2,1,0)', 'network'),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 'links'),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", 'network'),
    # The first half of an axis, which is in steps of 4, and the rest of it
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}", 'network'),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", 'links'),
    # 0 1 4 5 / 2 3 6 7: the columns are 0 2, 1 3, 4 6, 5 7
    (
      "replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], "
      "device_ids=([2,2,2]T(1,0,2)) {'axis_1'}",
      'links',
    ),
  ],
)
def test_a_group_of_devices_is_on_one_slice_or_on_several(groups, expected):
  text = collective('all-gather', 'f32[8,3]', groups)
  ((_, size, way),) = costs.program_costs(text, slices=[0, 0, 0, 0, 1, 1, 1, 1]).sent
  assert way == expected
  assert list(costs.program_costs(text).sent) == [('all-gather', size, 'links')]


@pytest.mark.parametrize(
  ('groups', 'size'),
  [
    ('replica_groups=[2,128]<=[128,2]T(1,0)', 128),
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', 4),
    ("replica_groups=mesh['axis_0'=32,'axis_1'=4] {'axis_1'}", 4),
    ("replica_groups=mesh['axis_0'=32,'axis_1'=4] {'axis_0','axis_1'}", 128),
    ("replica_groups=mesh['axis_0'=32] {'axis_0':(4)8}", 8),
    ("replica_groups=mesh['axis_0'=32] {'axis_0':(1)2,'axis_0':(4)8}", 16),
  ],
)
def test_the_devices_of_a_group_are_counted(groups, size):
  sent = costs.program_costs(collective('all-gather', f'f32[{size},3]', groups)).sent
  expected = (size - 1) / size * size * 3 * 4
  assert sent == {('all-gather', size, 'links'): pytest.approx(expected)}


def test_groups_that_cannot_be_read_are_refused():
  with pytest.raises(ValueError, match=r'a: expected replica_groups as lists, .* got'):
    costs.program_costs(collective('all-gather', 'f32[8,3]', 'replica_groups=<all>'))


@pytest.mark.parametrize(
  ('kind', 'shape', 'links', 'network'),
  [
    # Eight devices on two slices of four; 96 numbers are 384 bytes. Of them a device
    # has a quarter after the sum in its slice, sends a half of that to the other slice
    # and receives the other, and that again when both are summed.
    ('all-reduce', 'f32[96]', 2 * 3 / 4 * 384, 2 * 1 / 2 * 384 / 4),
    ('reduce-scatter', 'f32[12]', 3 / 4 * 384, 1 / 2 * 384 / 4),
    # An eighth of the other slice, and then three of such pairs
    ('all-gather', 'f32[96]', 3 / 4 * 384, 384 / 8),
    # All but its own eighth, handed over as a whole
    ('all-to-all', 'f32[96]', 0, 7 / 8 * 384),
  ],
)
def test_the_devices_of_a_slice_share_network_traffic(kind, shape, links, network):
  text = collective(kind, shape, 'replica_groups=[1,8]<=[8]')
  found = costs.program_costs(text, slices=[0, 0, 0, 0, 1, 1, 1, 1])
  assert found.over('links') == pytest.approx(links)
  assert found.over('network') == pytest.approx(network)


@pytest.mark.parametrize(
  ('pairs', 'links', 'network'),
  [
    ('{0,0},{1,2},{2,1},{3,3}', 384, 0),
    ('{0,4},{4,0}', 0, 384),
    # Around all of them, some within a slice and some from one to the other
    ('{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}', 384, 384),
    ('{0,0},{1,1}', 0, 0),
  ],
)
def test_a_permutation_uses_links_or_network_by_its_source(pairs, links, network):
  groups = f'source_target_pairs={{{pairs}}}'
  text = collective('collective-permute', 'f32[96]', groups)
  found = costs.program_costs(text, slices=[0, 0, 0, 0, 1, 1, 1, 1])
  assert (found.over('links'), found.over('network')) == (links, network)
