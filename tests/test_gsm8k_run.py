"""The demonstration on GSM8K: trained, tested before and after, shown on one page."""

import dataclasses
import json
from pathlib import Path

import pytest
from hub import checkpoint

from experiments import gsm8k
from experiments.gsm8k import GSM8K
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.optim import OptimConfig
from r1jax.stages.from_hub import HubConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.tasks import benchmarks

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture
def config(tmp_path, monkeypatch):
  folder = tmp_path / 'data' / 'gsm8k'
  folder.mkdir(parents=True)
  for split, count in (('train', 40), ('test', 4)):
    rows = [{'question': f'{split} {n}?', 'answer': f'#### {n}'} for n in range(count)]
    text = ''.join(f'{json.dumps(row)}\n' for row in rows)
    (folder / f'{split}.jsonl').write_text(text)
  published = benchmarks.BENCHMARKS['gsm8k']._replace(
    rows=4,
    digest=benchmarks.digest_of(
      [benchmarks.Row(f'test {n}?', f'#### {n}', {}) for n in range(4)]
    ),
  )
  monkeypatch.setitem(benchmarks.BENCHMARKS, 'gsm8k', published)
  checkpoint(tmp_path / 'model', 'llama', {}, chat=CHAT)
  preset = GSM8K()
  return dataclasses.replace(
    preset,
    workdir=str(tmp_path / 'run'),
    data_dir=str(tmp_path / 'data'),
    model=dataclasses.replace(preset.model, path=str(tmp_path / 'model')),
    rl=RLConfig(
      steps=1,
      prompts_per_step=2,
      group_size=2,
      minibatches=1,
      max_prompt_length=128,
      max_length=((0, 8),),
      micro_batch_rows=2,
      optim=OptimConfig(warmup_steps=0),
    ),
    evals=EvalConfig(problems=2, samples=1, prompts_per_batch=2),
    test_max_length=8,
  )


def test_the_model_is_tested_before_and_after_its_training(config, monkeypatch, capsys):
  gsm8k.main(config)
  run = Path(config.workdir)
  settings = {}
  for name in ('before', 'after'):
    results = json.loads((run / name / 'results.json').read_text())
    assert results['benchmarks']['gsm8k']['problems'] == 4
    settings[name] = results['settings']
  # They differ by the training alone.
  differ = {k for k, x in settings['before'].items() if settings['after'][k] != x}
  assert differ == {'model', 'sha256'}
  assert settings['after']['dtype'] in ('float32', 'bfloat16')
  page = (run / 'report.html').read_text()
  assert 'On test problems' in page
  assert f'{run / "before"}, %' in page
  assert 'Accuracy on validation problems' in page
  said = capsys.readouterr().out
  assert '| GSM8K     | 4        | 0.0' in said
  # Finished, the same command trains and samples nothing.
  monkeypatch.setattr('r1jax.rollout.sampler.Sampler.sample', None)
  gsm8k.main(config)
  assert capsys.readouterr().out.endswith(f'{run / "report.html"}\n')


def test_a_model_that_cannot_be_tested_alike_is_refused():
  with pytest.raises(ValueError, match=r"model.system: expected none, .* got 'Hi'"):
    GSM8K(model=HubConfig(template='chat_boxed', system='Hi'))


def test_a_missing_test_set_is_named_before_the_training(config):
  (Path(config.data_dir) / 'gsm8k' / 'test.jsonl').unlink()
  with pytest.raises(ValueError, match=r'data_dir: GSM8K is expected at .*test.jsonl'):
    gsm8k.main(config)
  assert not Path(config.workdir).exists()
