"""Runs and chats that start from a GGUF file."""

import jax
import pytest
from hub import checkpoint
from test_gguf import written

from r1jax.hub import tokenizer_files
from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages import artifact, chat, from_hub
from r1jax.stages.from_hub import HubConfig
from scripts import plan

GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A checkpoint, and files that were written of it, with other templates."""
  folder = tmp_path_factory.mktemp('gguf')
  checkpoint(folder / 'm', 'qwen3')
  written(folder / 'm', None, None, 'f32', folder / 'm.gguf')
  (folder / 'm/chat_template.jinja').write_text('{{ strftime_now("%d") }}')
  written(folder / 'm', None, None, 'f32', folder / 'dated.gguf')
  (folder / 'm/chat_template.jinja').unlink()
  return folder


def test_a_run_keeps_the_files_that_are_made_from_it(folder, tmp_path):
  found = from_hub.look_up(HubConfig(path=str(folder / 'm.gguf')))
  found.keep(tmp_path)
  assert sorted(file.name for file in (tmp_path / artifact.HUB).iterdir()) == [
    *('chat_template.jinja', 'config.json', 'generation_config.json'),
    *('source.json', 'tokenizer.json', 'tokenizer_config.json'),
  ]
  kept = tokenizer_files.open_tokenizer(tmp_path / artifact.HUB, time=found.time)
  assert kept.digest == found.policy.tokenizer.digest
  source = artifact.read_source(tmp_path)
  assert source.path == str(folder / 'm.gguf')
  assert source.digest == found.checkpoint.digest


def test_the_digests_of_a_run_tell_weights_and_templates_apart(folder):
  first, again, other = (
    from_hub.look_up(HubConfig(path=str(folder / name))).digests
    for name in ('m.gguf', 'm.gguf', 'dated.gguf')
  )
  assert first == again
  for name in ('tokenizer.json', 'config.json'):
    assert other[f'{folder}/dated.gguf/{name}'] == first[f'{folder}/m.gguf/{name}']
  template = 'chat_template.jinja'
  assert (
    other[f'{folder}/dated.gguf/{template}'] != first[f'{folder}/m.gguf/{template}']
  )
  assert f'{artifact.HUB}/{artifact.SOURCE}' in other  # the template reads a clock
  assert other[str(folder / 'dated.gguf')] == first[str(folder / 'm.gguf')]  # weights


def test_a_chat_says_the_same_as_with_the_folder(folder):
  expected, found = (
    chat.open_session(str(folder / name), None, GREEDY, dtype='float32')
    for name in ('m', 'm.gguf')
  )
  ids = found.policy.tokenizer.encode('make 16')
  assert ids == expected.policy.tokenizer.encode('make 16')
  said, same = (
    list(session.tokens(ids, jax.random.key(0), 9)) for session in (found, expected)
  )
  assert said == same


def test_a_plan_reads_the_sizes_of_the_model(folder):
  expected, found = (
    plan.work(plan.Plan(model=str(folder / name)), None) for name in ('m', 'm.gguf')
  )
  assert found.model == expected.model
