"""A checkpoint without a run is exported in other formats, or refused."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from hub import checkpoint, same
from test_gguf import fields_of

from r1jax.hub import storage
from scripts import convert


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('convert') / 'model'
  checkpoint(folder, 'qwen3')
  return folder


def written(run, out, **settings):
  return convert.convert(convert.Convert(str(run), str(out), **settings))


def test_a_checkpoint_is_written_in_another_type(folder, tmp_path):
  out = written(folder, tmp_path / 'out', dtype='bfloat16')
  before, after = (
    safetensors.numpy.load_file(place / storage.SINGLE) for place in (folder, out)
  )
  assert before.keys() == after.keys()
  for name, array in before.items():
    np.testing.assert_array_equal(after[name], array.astype(after[name].dtype))
    assert after[name].dtype.name == 'bfloat16'
  assert json.loads((out / 'config.json').read_text())['dtype'] == 'bfloat16'
  assert (out / 'tokenizer.json').read_bytes() == (
    (folder / 'tokenizer.json').read_bytes()
  )


@pytest.mark.parametrize('names', [(), ('torch_dtype',), ('torch_dtype', 'dtype')])
def test_all_names_of_the_type_have_the_new_value(folder, names, tmp_path):
  shutil.copytree(folder, tmp_path / 'm')
  file = tmp_path / 'm/config.json'
  raw = json.loads(file.read_text())
  del raw['dtype']
  file.write_text(json.dumps({**raw, **dict.fromkeys(names, 'float32')}))
  out = written(tmp_path / 'm', tmp_path / 'out', dtype='bfloat16')
  found = json.loads((out / 'config.json').read_text())
  expected = dict.fromkeys(names or ('dtype',), 'bfloat16')
  assert {name: x for name, x in found.items() if 'dtype' in name} == expected
  assert transformers.AutoConfig.from_pretrained(out).dtype == torch.bfloat16


def test_a_checkpoint_is_written_as_gguf(folder, tmp_path):
  out = written(folder, tmp_path / 'out.gguf', to='gguf')
  assert out.read_bytes()[:4] == b'GGUF'
  assert (tmp_path / 'out.Modelfile').read_text().startswith('FROM ./out.gguf\n')


def test_a_gguf_file_is_written_as_the_checkpoint_that_it_came_from(folder, tmp_path):
  written(folder, tmp_path / 'm.gguf', to='gguf', type='f32')
  out = written(tmp_path / 'm.gguf', tmp_path / 'out')
  before, after = (
    safetensors.numpy.load_file(place / storage.SINGLE) for place in (folder, out)
  )
  same(before, after)
  again = written(out, tmp_path / 'again.gguf', to='gguf', type='f32')
  found, expected = (fields_of(file) for file in (again, tmp_path / 'm.gguf'))
  names = {name for name in expected[0] if name.startswith(('qwen3.', 'tokenizer.'))}
  assert {name: found[0][name] for name in names} == {
    name: expected[0][name] for name in names
  }
  for name, tensor in expected[1].items():
    np.testing.assert_array_equal(found[1][name].data, tensor.data)
  model = transformers.AutoModelForCausalLM.from_pretrained(out)
  assert model.config.model_type == 'qwen3'
  text = 'make 16 <think>from 3 5 2</think>'
  ids, expected_ids = (
    transformers.AutoTokenizer.from_pretrained(place)(text)['input_ids']
    for place in (out, folder)
  )
  assert ids == expected_ids


def test_a_template_that_llama_cpp_cannot_open_stops_gguf(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'm')
  (tmp_path / 'm/chat_template.jinja').write_text('{{ tools is none }}')
  with pytest.raises(ValueError, match='chat_template: expected one that writes the'):
    written(tmp_path / 'm', tmp_path / 'out.gguf', to='gguf')
  assert [path.name for path in tmp_path.iterdir()] == ['m']


def test_invalid_sources_and_options_are_named(folder, tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text('{"experiment": "GRPO"}')
  (tmp_path / 'there').mkdir()
  for words, settings, message in (
    ((tmp_path / 'run', 'x'), {}, r'run: .* that is not finished.*command in'),
    ((tmp_path, 'x'), {}, r'run: expected the work directory .*no config\.json$'),
    ((tmp_path / 'no', 'x'), {}, r'run: expected the work .* does not exist$'),
    (
      (folder, 'x'),
      {'to': 'peft'},
      r'to: expected .* of a run for peft, got the check',
    ),
    ((folder, 'x'), {'params': 'base'}, r'params: expected .* of a run for base, got'),
    ((folder, tmp_path / 'there'), {}, r'out: .*there already exists'),
    ((folder, 'gs://b/x'), {}, r'out: expected a path on this machine, got gs://b/x'),
  ):
    with pytest.raises(ValueError, match=message):
      written(*words, **settings)


def test_a_mistake_is_one_sentence_from_the_command_line(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'scripts.convert', str(tmp_path), 'out'],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 1
  assert re.fullmatch(r'error: run: expected the work directory .*\n', done.stderr)
