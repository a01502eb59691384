"""Whether a sampler fits the memory, compared with what XLA's compiler counts."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from stages import TOKENIZER

from r1jax.model import decoder
from r1jax.model.config import Latent, ModelConfig
from r1jax.rollout import sample_memory
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.runtime import memory
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.place import unbox
from r1jax.sharding.rules import MeshError

MODEL = ModelConfig(d_model=64, layers=2, heads=4, kv_heads=2, head_dim=32, d_ff=128)
# K and V of a position: 2 layers x 2 heads x 32 channels x 2 x 4 bytes.
POSITION = 2 * 2 * 32 * 2 * 4
PROMPTS, GROUP, PROMPT_LENGTH, LENGTH = 4, 8, 64, 256


def sampler(slots, model=MODEL):
  layout = MeshConfig(sampler_slots=slots)
  policy = Policy(model, TOKENIZER, 'plain')
  mesh = make_mesh(jax.devices()[:1], layout)
  return Sampler(policy, PROMPT_LENGTH, mesh, layout)


def compiled_bytes(one, length=LENGTH):
  """What the compiled program has at its peak."""
  program = one.program
  params = decoder.with_dtype(unbox(one.policy.names), 'float32')
  rows = (PROMPTS, PROMPT_LENGTH)
  lowered = program.compiled.lower(
    params,
    jax.ShapeDtypeStruct((PROMPTS, 2), jnp.uint32),
    jax.ShapeDtypeStruct(rows, jnp.int32),
    jax.ShapeDtypeStruct(rows, jnp.bool_),
    slots=program.slots(PROMPTS * GROUP, 1),
    config=SamplingConfig(),
    group_size=GROUP,
    max_length=length,
    temperature=jax.ShapeDtypeStruct((), jnp.float32),
  )
  found = lowered.compile().memory_analysis()
  return found.argument_size_in_bytes + found.temp_size_in_bytes


@pytest.mark.parametrize('slots', [6, 0])
def test_the_compiler_counts_as_much(slots):
  one = sampler(slots, dataclasses.replace(MODEL, layers=1))
  counted = sample_memory.of_sampler(one, PROMPTS, GROUP, 'float32')
  # The rest are activations and logits; what is counted is never more than there is.
  assert 0.75 < counted.total(slots, LENGTH) / compiled_bytes(one) < 1.02


def test_the_compiler_counts_weights_twice():
  # They are most of what there is: as parameters and as decoding reads them.
  one = sampler(0, dataclasses.replace(MODEL, layers=7, d_ff=2048))
  counted = sample_memory.of_sampler(one, PROMPTS, GROUP, 'float32')
  assert 0.75 < counted.total(0, 16) / compiled_bytes(one, 16) < 1.02
  assert counted.weights > 0.8 * counted.total(0, 16)


def test_a_position_has_keys_and_values_of_all_layers():
  def position(**changes):
    one = sampler(0, dataclasses.replace(MODEL, **changes))
    return sample_memory.of_sampler(one, PROMPTS, GROUP, 'float32').position

  assert position() == POSITION
  assert position(dtype='bfloat16') == POSITION / 2
  assert position(kv_heads=1, layers=6) == POSITION * 3 / 2
  # 2 layers x (latent of 16 + RoPE key of 8 channels) x 4 bytes, for all heads.
  latent = Latent(kv_rank=16, rope_dim=8, value_dim=32)
  assert position(latent=latent, kv_heads=4) == 2 * (16 + 8) * 4


def needed(slots):
  counted = sample_memory.of_sampler(sampler(slots), PROMPTS, GROUP, 'float32')
  return counted.total(slots, LENGTH)


def check(one, memory_bytes, length=LENGTH):
  sample_memory.check(
    one,
    prompts=PROMPTS,
    group_size=GROUP,
    max_length=length,
    param_dtype='float32',
    memory=memory_bytes,
  )


def test_what_the_message_says_fits():
  need = sample_memory.of_sampler(sampler(16), PROMPTS, GROUP, 'float32').total(
    16, LENGTH
  )
  check(sampler(16), need)
  with pytest.raises(MeshError, match='got 16 at a time of up to 256 tokens') as error:
    check(sampler(16), 0.6 * need)
  slots = re.search(r'mesh.sampler_slots to (\d+) or less', str(error.value))
  length = re.search(r'max_length to (\d+) or less', str(error.value))
  assert slots
  assert length
  check(sampler(int(slots[1])), 0.6 * need)
  check(sampler(16), 0.6 * need, int(length[1]))
  for one, more in ((sampler(int(slots[1]) + 1), 0), (sampler(16), 1)):
    with pytest.raises(MeshError):
      check(one, 0.6 * need, int(length[1]) + 1 if more else LENGTH)
  assert str(error.value).endswith('or dtype to bfloat16')
  check(sampler(16, dataclasses.replace(MODEL, dtype='bfloat16')), 0.6 * need)


def test_all_outputs_at_once_are_what_no_slots_mean():
  with pytest.raises(MeshError, match=r'got 32 at a time .* mesh.sampler_slots to \d+'):
    check(sampler(0), 0.6 * needed(0))


def test_a_model_that_fits_in_no_way_is_refused():
  with pytest.raises(MeshError, match='of weights; evaluate a smaller model'):
    check(sampler(4), 1e5)


def test_a_container_has_its_limit(tmp_path, monkeypatch):
  machine = memory.of_machine()
  (tmp_path / 'limit').write_text('4096\n')
  (tmp_path / 'none').write_text('max\n')
  files = tmp_path / 'none', tmp_path / 'absent'
  monkeypatch.setattr(memory, '_LIMITS', files)
  assert memory.of_machine() >= machine > 2**28
  monkeypatch.setattr(memory, '_LIMITS', (*files, tmp_path / 'limit'))
  assert memory.of_machine() == 4096
  # The devices of a CPU share it.
  assert memory.of_device(jax.devices('cpu')[0]) == 4096 // jax.local_device_count()
