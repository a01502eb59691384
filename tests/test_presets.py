"""Published models: as many parameters as their publishers say, nothing allocated."""

import math

import jax
import pytest

from experiments.paper import distill
from r1jax.model import decoder, presets

# Of the hub's pages, which count the numbers in the files; a head that is tied is
# counted once here. DeepSeek-V3: 671B of the main model, without the 14B of the module
# for multi-token prediction.
PUBLISHED = {
  'Qwen2.5-0.5B': 494_032_768,
  'Qwen2.5-1.5B': 1_543_714_304,
  'Qwen2.5-3B': 3_085_938_688,
  'Qwen2.5-7B': 7_615_616_512,
  'Qwen2.5-14B': 14_770_033_664,
  'Qwen2.5-32B': 32_763_876_352,
  'Qwen2.5-72B': 72_706_203_648,
  'Qwen2.5-Math-1.5B': 1_543_714_304,
  'Qwen2.5-Math-7B': 7_615_616_512,
  'Qwen2.5-Math-72B': 72_706_203_648,
  'Qwen3-0.6B': 751_632_384 - 151_936 * 1024,
  'Qwen3-1.7B': 2_031_739_904 - 151_936 * 2048,
  'Qwen3-4B': 4_022_468_096,
  'Qwen3-8B': 8_190_735_360,
  'Qwen3-14B': 14_768_307_200,
  'Qwen3-32B': 32_762_123_264,
  'Qwen3-30B-A3B': 30_532_122_624,
  'Llama-3.2-1B': 1_235_814_400,
  'Llama-3.2-3B': 3_212_749_824,
  'Llama-3.1-8B': 8_030_261_248,
  'Llama-3.1-70B': 70_553_706_496,
  'Llama-3.3-70B-Instruct': 70_553_706_496,
  'DeepSeek-V3-Base': 671_026_419_200,
  'DeepSeek-R1': 671_026_419_200,
}


def test_every_preset_is_counted():
  assert PUBLISHED.keys() == presets.PRESETS.keys()


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_preset_has_as_many_parameters_as_published(name):
  shapes = decoder.shapes(*presets.PRESETS[name])
  counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  assert counted == PUBLISHED[name]


def test_what_the_paper_starts_from_has_a_preset():
  starts = {student.start for student in distill.STUDENTS.values()}
  assert starts | {distill.RL_32B.start} <= presets.PRESETS.keys()
