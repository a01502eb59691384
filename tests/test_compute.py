"""What methods of distillation compute, by hand."""

import pytest

from r1jax.stages import compute
from r1jax.stages.compute import Tokens


def test_operations_by_hand():
  # 6 a parameter and token that is learned, 2 of all others.
  assert compute.operations(Tokens(learned=10), student=100, teacher=1000) == 6000
  assert compute.operations(Tokens(sampled=10), student=100, teacher=1000) == 2000
  assert compute.operations(Tokens(scored=10), student=100, teacher=1000) == 2000
  assert compute.operations(Tokens(judged=10), student=100, teacher=1000) == 20_000
  assert compute.operations(Tokens(1, 2, 3, 4), 100, 1000) == 600 + 400 + 600 + 8000


def test_the_tokens_of_rl_are_those_of_its_outputs_and_prompts():
  lines = [
    {'phase': 'base', 'step': 1, 'loss': 1.0},
    {'phase': 'eval', 'step': 1, 'length': {'mean': 999.0}},
    {'phase': 'rl', 'step': 1, 'length': 5.0},
    {'phase': 'rl', 'step': 2, 'length': 7.5},
  ]
  # 8 outputs of 5 tokens and 8 of 7.5 are 100; with prompts 130.
  found = compute.of_rl(lines, prompts=30, outputs=8, epochs=2, passes=1)
  assert found == Tokens(learned=260, sampled=130, scored=130, judged=0)


def test_own_outputs_are_sampled_judged_and_learned():
  lines = [
    {'phase': 'on_policy', 'step': 10, 'tokens': 100},
    {'phase': 'on_policy', 'step': 20, 'tokens': 140},
    {'phase': 'sft', 'step': 10, 'tokens': 999},
  ]
  # 25 steps, of which two were logged, of 120 tokens on average.
  found = compute.of_own_outputs(lines, phase='on_policy', steps=25)
  assert found == Tokens(learned=3000, sampled=3000, scored=0, judged=3000)


def test_methods_are_compared_with_the_first():
  spent = {'sft': Tokens(learned=50), 'rl': Tokens(50, 50, 50)}
  found = compute.compared(spent, student=10, teacher=70, first='sft')
  assert found['sft']['times_sft'] == 1
  assert found['rl']['operations'] == 10 * (6 + 2 + 2) * 50
  assert found['rl']['times_sft'] == pytest.approx(10 / 6)
  alone = compute.compared({'rl': Tokens(1)}, student=10, teacher=70, first='sft')
  assert alone['rl']['times_sft'] is None
