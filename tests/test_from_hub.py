"""A checkpoint of the hub through a run and back; a model made here on its way out."""

import dataclasses
import datetime
import json
import shlex
import shutil
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from hub import checkpoint

from experiments import grpo
from r1jax import tasks
from r1jax.hub import (
  chat_template,
  checkpoint_files,
  peft,
  peft_config,
  storage,
  tokenizer_files,
)
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.model import lora
from r1jax.model.config import ModelConfig
from r1jax.model.lora import LoraConfig
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.runtime.run import start
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import artifact, chat, from_hub
from r1jax.stages.artifact import ArtifactError
from r1jax.stages.from_hub import HubConfig
from r1jax.stages.supervised import PretrainConfig
from r1jax.tasks import gsm8k
from r1jax.tasks.gsm8k import GSM8KConfig
from r1jax.text import parsing
from r1jax.text.tokenizer import Tokenizer
from scripts import convert

DATED = (
  '{{ strftime_now("%d %b %Y") }}: {{ messages[0].content }}'
  '{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}'
)
WITHOUT = '{"enable_thinking": false}'
EXTRA = 'model.layers.3.eh_proj.weight'  # of the module for multi-token prediction


def run(*words):
  done = subprocess.run(
    [sys.executable, '-m', *words],
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  return done.returncode, done.stdout + done.stderr


def named(folder):
  found: dict[str, np.ndarray] = {}
  for file in folder.glob('*.safetensors'):
    found |= safetensors.numpy.load_file(file)
  return found


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder of the hub, a run of GRPO on it, and what the run was written back as."""
  folder = tmp_path_factory.mktemp('grpo')
  checkpoint(folder / 'model', 'deepseek_v3')
  extra = {**named(folder / 'model'), EXTRA: np.full((2, 3), 7, np.float32)}
  safetensors.numpy.save_file(extra, folder / 'model' / storage.SINGLE)
  command = (
    *('experiments.grpo', '--model.path', str(folder / 'model')),
    *('--model.dtype', 'float32'),
    *('--model.template', 'plain', '--workdir', str(folder / 'run')),
    *('--data-dir', str(folder / 'data'), '--task', 'arithmetic'),
    *('--rl.steps', '1', '--rl.max-length', '0', '8', '--rl.max-prompt-length', '32'),
    *('--evals.problems', '8', '--rl.optim.learning-rate', '1e-3'),
    *('--rl.grpo.kl-coef', '1', '--rl.minibatches', '2'),
  )
  code, output = run(*command)
  assert code == 0, output
  code, output = run('scripts.convert', str(folder / 'run'), str(folder / 'out'))
  assert code == 0, output
  return folder


def test_a_run_gives_back_a_checkpoint_that_transformers_opens(trained):
  before, after = named(trained / 'model'), named(trained / 'out')
  assert before.keys() == after.keys()
  assert {x.dtype for x in after.values()} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(after[EXTRA], before[EXTRA])  # read and kept
  config = json.loads((trained / 'model/config.json').read_text())
  # At the top as well, so that `rope_scaling` added by hand does not hide it.
  theta = {'rope_theta': config['rope_parameters']['rope_theta']}
  assert json.loads((trained / 'out/config.json').read_text()) == config | theta
  for name in ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json'):
    assert (trained / 'out' / name).read_bytes() == (
      (trained / 'model' / name).read_bytes()
    )
  opened = transformers.AutoModelForCausalLM.from_pretrained(
    trained / 'out', attn_implementation='eager'
  ).eval()
  stage = artifact.load(trained / 'run')
  params = stage.params(make_mesh())
  tokens = np.random.default_rng(0).integers(2, 290, size=(1, 20))
  zeros = np.zeros_like(tokens)
  model = stage.policy.functions
  hidden, _ = model.forward(params, tokens, np.arange(20)[None], zeros)
  with torch.no_grad():
    expected = opened(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(model.logits(params, hidden), expected, atol=2e-5)


def test_a_finished_run_is_not_run_again(trained):
  command = json.loads((trained / 'run/config.json').read_text())['command']
  code, output = run(*shlex.split(command)[2:])
  assert code == 0
  assert 'is finished' in output


def test_without_its_source_a_run_is_written_but_for_what_it_did_not_use(
  trained, tmp_path
):
  shutil.copytree(trained / 'run', tmp_path / 'run')
  source = tmp_path / 'run' / artifact.HUB / artifact.SOURCE
  kept = json.loads(source.read_text())
  source.write_text(json.dumps({**kept, 'path': str(tmp_path / 'gone')}))
  convert.convert(convert.Convert(str(tmp_path / 'run'), str(tmp_path / 'out')))
  assert named(tmp_path / 'out').keys() == named(trained / 'out').keys() - {EXTRA}


@dataclasses.dataclass(frozen=True)
class Zero:
  workdir: str
  base: PretrainConfig = PretrainConfig()


def test_a_model_that_was_made_here_opens_in_transformers(tmp_path):
  config = ModelConfig(d_model=16, layers=2, heads=4, kv_heads=1, head_dim=8, d_ff=32)
  tokenizer = Tokenizer.train(['User: 3+5\nAssistant: <think>'] * 9, 280)
  policy = Policy(config, tokenizer, 'plain')
  params = policy.init(make_mesh(), 0)
  zero = Zero(str(tmp_path / 'zero'))
  with start(zero, phases=()) as run:
    artifact.finish(run, 'r1_zero', zero, policy, {'final': params})
  convert.convert(convert.Convert(str(tmp_path / 'zero'), str(tmp_path / 'out')))

  opened = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'out', attn_implementation='eager'
  )
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  messages = [{'role': 'user', 'content': 'make 16 from 3 5 2'}]
  ids = theirs.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=False
  )
  assert ids == tokenizer.prompt_ids('plain', 'make 16 from 3 5 2')
  assert (theirs.eos_token_id, theirs.pad_token_id) == (1, 0)
  assert opened.generation_config.eos_token_id == 1
  tokens = np.array([ids])
  zeros = np.zeros_like(tokens)
  model = policy.functions
  hidden, _ = model.forward(params, tokens, np.arange(len(ids))[None], zeros)
  with torch.no_grad():
    expected = opened.eval()(torch.tensor(tokens)).logits.numpy()
  found = model.logits(params, hidden)
  np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hub') / 'model'
  checkpoint(folder, 'llama')
  return folder


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({}, 'model.path: expected the folder of a checkpoint or a GGUF file, got none'),
    ({'path': '/nowhere'}, 'model.path: expected a folder .*, which does not exist'),
    ({'template': 'r1_chat'}, "expected a tokenizer with the tokens of 'r1_chat'"),
    ({'template': 'r2'}, "template: .* chat, chat_tags, chat_boxed, .*, got 'r2'"),
    (
      {'adapter': 'a', 'lora': LoraConfig(rank=2)},
      "model.adapter: expected none with model.lora.rank, .*; got 'a'",
    ),
    ({'chat_template_kwargs': '{'}, 'chat_template_kwargs: expected an object in JSON'),
    (
      {'chat_template_kwargs': WITHOUT, 'template': 'plain'},
      "chat_template_kwargs: expected none with the template 'plain', .*; choose",
    ),
    (
      {'chat_template_kwargs': WITHOUT},
      r'expected variables that the chat template of .* \(eos_token\), got enabl',
    ),
    (
      {'dtype': 'int4'},
      "model.dtype: expected one of float32, bfloat16, auto, got 'int4'",
    ),
  ],
)
def test_an_unusable_start_is_named_before_anything_is_read(folder, settings, message):
  path = {} if settings == {} else {'path': str(folder)}
  with pytest.raises(ValueError, match=message):
    from_hub.look_up(HubConfig(**{**path, **settings}))


def test_an_adapter_is_added_before_training_and_the_run_depends_on_it(
  folder, tmp_path
):
  like = open_checkpoint(folder)
  config = LoraConfig(rank=2, alpha=4.0, targets='query')
  adapters = lora.init(like.config, config, jax.random.key(0))
  adapters = jax.tree.map(lambda x: x + 0.1, adapters)
  peft.write(tmp_path / 'a', adapters, config, like)
  plain = from_hub.look_up(HubConfig(path=str(folder)))
  settings = HubConfig(path=str(folder), adapter=str(tmp_path / 'a'))
  found = from_hub.look_up(settings)
  mesh = make_mesh()
  before, after = plain.params(mesh), found.params(mesh)
  pair = adapters['blocks']['query']
  added = 2.0 * np.einsum('ldr,lrhc->ldhc', pair['a'], pair['b'])
  np.testing.assert_allclose(
    after['blocks']['query'], before['blocks']['query'] + added, atol=1e-5
  )
  np.testing.assert_array_equal(after['blocks']['key'], before['blocks']['key'])
  assert set(found.digests) - set(plain.digests) == {
    str(tmp_path / 'a' / name) for name in (peft_config.CONFIG, peft_config.FILE)
  }


def test_more_tokens_than_rows_are_refused(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'model')
  words = [f'{a}{b}{c}' for a in 'brst' for b in 'aeiou' for c in 'klmnp']
  tokenizer = Tokenizer.train([' '.join(words)] * 9, 360)
  tokenizer.save(tmp_path / 'model' / checkpoint_files.TOKENIZER)
  with pytest.raises(ValueError, match=r'at most 300 tokens, the rows .*, got a'):
    from_hub.look_up(HubConfig(path=str(tmp_path / 'model')))


def test_parameters_may_be_bfloat16(folder):
  config = HubConfig(path=str(folder), param_dtype='bfloat16')
  found = from_hub.look_up(config)
  params = found.params(make_mesh())
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {'bfloat16'}


def test_prompts_are_padded_to_the_longest_one_of_the_task(folder, tmp_path):
  config = grpo.GRPO(
    workdir=str(tmp_path / 'run'),
    model=HubConfig(str(folder), template='plain'),
    data_dir=str(tmp_path / 'data'),
  )
  origin = from_hub.origin(config)
  policy, problems = origin.policy, origin.problems
  sources = [*problems.train, *problems.validation, *problems.test]
  lengths = [
    len(policy.tokenizer.prompt_ids('plain', p.question)) for s in sources for p in s
  ]
  assert config.rl.max_prompt_length == 384
  assert problems.max_prompt_length - 32 < max(lengths) <= problems.max_prompt_length


def test_a_name_on_the_hub_is_fetched_without_pickles_or_code(folder, monkeypatch):
  asked = []

  def fetch(name, allow_patterns):
    asked.append((name, allow_patterns))
    return str(folder)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fetch)
  found = from_hub.look_up(HubConfig(path='hf://owner/name'))
  assert found.checkpoint.folder == folder
  ((name, patterns),) = asked
  assert name == 'owner/name'
  assert not any(pattern.endswith(('bin', 'py', '*')) for pattern in patterns)


def test_a_name_that_cannot_be_fetched_says_so(monkeypatch):
  def fail(*args, **settings):
    raise ConnectionError('no route\nand more')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  message = r'hf://owner/name is not .* .ConnectionError: no route.; give the folder'
  with pytest.raises(chat_template.HubError, match=message):
    from_hub.look_up(HubConfig(path='hf://owner/name'))


def test_thoughts_that_the_prompt_has_opened_belong_to_the_output(tmp_path):
  checkpoint(
    tmp_path / 'm', 'llama', {}, chat="{{ messages[0]['content'] }}<think>\n\n"
  )
  policy = from_hub.look_up(HubConfig(path=str(tmp_path / 'm'))).policy
  prompt = policy.prompt('3+5')
  assert prompt == '3+5<think>\n'
  mesh = make_mesh(jax.devices()[:1])
  problem = tasks.Problem('1', 'arithmetic', '3+5', {'result': 8})
  rollout = Sampler(policy, 32, mesh).sample(
    policy.init(mesh, 0),
    jax.random.key(0),
    [problem],
    group_size=2,
    max_length=4,
    draw=SamplingConfig(),
  )
  assert all(text.startswith('<think>\n') for text in rollout.texts[0])
  # What a model learns from goes on where the prompt ends.
  ids, output = policy.example_ids('3+5', '<think>\nso</think><answer>8</answer>')
  assert ids == policy.tokenizer.chat_ids(prompt)
  assert policy.tokenizer.decode(output) == 'so</think><answer>8</answer>'
  assert output[-1] == policy.tokenizer.eos_id


@dataclasses.dataclass(frozen=True)
class Hub:
  workdir: str
  model: HubConfig


def test_a_run_keeps_its_date_and_the_variables_of_its_prompts(tmp_path, monkeypatch):
  checkpoint(tmp_path / 'm', 'llama', {}, chat=DATED)
  config = HubConfig(str(tmp_path / 'm'), chat_template_kwargs=WITHOUT)
  workdir = tmp_path / 'run'
  began = datetime.datetime(2024, 7, 26, 23, 59)
  monkeypatch.setattr(tokenizer_files, 'now', lambda: began)
  found = from_hub.look_up(config, from_hub.began(workdir, 'float32').time)
  prompt = found.policy.prompt('3+5')
  assert prompt == '26 Jul 2024: 3+5<think>\n\n</think>\n\n'
  run_of = Hub(str(workdir), config)
  with start(run_of, phases=(), digests=found.digests) as job:
    found.keep(workdir)
    params = found.params(make_mesh(jax.devices()[:1]))
    artifact.finish(job, 'grpo', run_of, found.policy, {'final': params})

  # The same command goes on with the same prompts a day later; another run has others.
  monkeypatch.setattr(
    tokenizer_files, 'now', lambda: began + datetime.timedelta(minutes=1)
  )
  again = from_hub.look_up(config, from_hub.began(workdir, 'float32').time)
  assert again.digests == found.digests
  assert again.policy.prompt('3+5') == prompt
  other = from_hub.look_up(config, from_hub.began(tmp_path / 'other', 'float32').time)
  assert other.policy.prompt('3+5').startswith('27 Jul 2024: ')
  differing = {name for name, x in other.digests.items() if found.digests[name] != x}
  assert differing == {'hub/source.json'}
  # So has a child, which begins with the finished stage; a chat has today's date.
  stage = artifact.load(workdir)
  assert stage.policy.prompt('3+5') == prompt
  session = chat.open_session(str(workdir), None, SamplingConfig())
  today, _ = session.prompt([{'role': 'user', 'content': '3+5'}])
  assert today.endswith(': 3+5<think>\n\n</think>\n\n')
  assert '2024' not in today
  session = chat.open_session(str(workdir), None, SamplingConfig(), '')
  today, _ = session.prompt([{'role': 'user', 'content': '3+5'}])
  assert today.endswith(': 3+5')
  (workdir / artifact.HUB / artifact.SOURCE).write_text('{"path": 3')
  for read in (lambda path: from_hub.began(path, 'auto'), artifact.load):
    with pytest.raises(ArtifactError, match=r'source.json is damaged'):
      read(workdir)


def test_a_run_of_a_version_with_other_fields_is_named(tmp_path):
  source = tmp_path / artifact.HUB / artifact.SOURCE
  source.parent.mkdir()
  source.write_text('{"path": "m", "digest": "0", "time": "2024-07-26T00:00:00"}')
  with pytest.raises(ArtifactError, match=r"no field 'chat_.*another version of r1jax"):
    from_hub.began(tmp_path, 'auto')


def test_a_run_does_not_depend_on_its_date_without_one_in_the_template(folder):
  found = from_hub.look_up(HubConfig(path=str(folder)))
  assert 'hub/source.json' not in found.digests


def test_an_output_after_thoughts_that_are_skipped_is_whole(tmp_path):
  checkpoint(tmp_path / 'm', 'llama', {}, chat=DATED)
  config = HubConfig(str(tmp_path / 'm'), chat_template_kwargs=WITHOUT)
  policy = from_hub.look_up(config).policy
  _, output = policy.example_ids('3+5', '<think>so</think>\n<answer>8</answer>')
  answer = policy.tokenizer.decode(output)
  assert answer == '<answer>8</answer>'
  opened = parsing.opened(policy.prompt('3+5'))
  assert parsing.parse(opened + answer) == ('', '', '8')


def test_nothing_is_written_over_what_ollama_reads(trained, tmp_path):
  checkpoint(tmp_path / 'm', 'llama', {})
  (tmp_path / 'x.Modelfile').write_text('mine')
  for name in ('x.gguf', 'y.Modelfile'):
    words = convert.Convert(str(trained / 'run'), str(tmp_path / name), to='gguf')
    with pytest.raises(
      ValueError, match=r'out: expected a name other than .*Modelfile'
    ):
      convert.convert(words)
  assert (tmp_path / 'x.Modelfile').read_text() == 'mine'


def test_an_unknown_task_is_named():
  with pytest.raises(ValueError, match=r"task: expected one of .*'gsm8k'.*, got 'x'"):
    grpo.GRPO(task='x')


@pytest.mark.parametrize(
  ('answer', 'right'),
  [
    ('72', True),
    ('72.0', True),
    ('$72', True),
    ('72 apples', True),
    ('0072', True),
    ('-72', False),
    ('7 2', False),
    ('71+1', False),
    ('', False),
    ('9' * 5000, False),
    ('7' * 39 + '.' + '1' * 500, False),
  ],
)
def test_an_answer_to_gsm8k_is_one_number(answer, right):
  row = {'question': ' How many? ', 'short_answer': '72'}
  problem = gsm8k.problem('test-0', row)
  assert problem.question == 'How many?'
  assert tasks.verify(problem, answer) is right


def test_thousands_are_read_with_and_without_a_comma():
  row = {'question': 'How much?', 'short_answer': '1,234'}
  problem = gsm8k.problem('test-0', row)
  assert tasks.verify(problem, '$1234.00')
  assert not tasks.verify(problem, '12,34')
  assert tasks.answer_key(problem, '1,234') == tasks.answer_key(problem, '1234')


def test_a_set_that_cannot_be_fetched_says_what_to_do(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  def fail(*args, **settings):
    raise ConnectionError('no route\nand more')

  monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', fail)
  with pytest.raises(
    OSError, match=r'could not be downloaded .no route.; run the same'
  ):
    gsm8k.load(GSM8KConfig(), 'test', str(tmp_path))
