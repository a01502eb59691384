"""A host of `test_hosts`: python tests/host.py INDEX HOSTS PORT FOLDER.

One iteration of GRPO on eight devices, of which each host has its share.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

index, count, port = map(int, sys.argv[1:4])
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={8 // count}'

import numpy as np  # noqa: E402

from r1jax import grpo, mesh, optim, text  # noqa: E402
from r1jax.model.config import ModelConfig  # noqa: E402
from r1jax.stages import checkpoint, hosts, lineage, rl  # noqa: E402
from r1jax.tasks import Problem  # noqa: E402


@dataclasses.dataclass
class Experiment:
  """What hosts compare."""

  mesh: mesh.Config


QWEN = ModelConfig(
  d_model=32, layers=1, heads=4, kv_heads=2, head_dim=8, d_ff=48, qk_norm=True
)
SETTINGS = rl.Config(
  prompts_per_step=8,
  group_size=4,
  max_prompt_length=32,
  max_length=((0, 24),),
  minibatches=1,
  micro_batch_rows=16,
)


def main(folder: Path) -> None:
  import jax

  # With four hosts two of them have parts of the same rows.
  layout = mesh.Config(fsdp=2, context=2, tensor=2)
  where = mesh.make(config=layout)
  tokenizer = text.Tokenizer.train([f'make {n} from 3 5 2' for n in range(40)], 288)
  model = lineage.Model(QWEN, tokenizer, 'plain', 272)
  generator = model.generator(SETTINGS.max_prompt_length, where, layout)
  trainer = rl.Trainer(
    generator,
    SimpleNamespace(names=('accuracy',)),  # type: ignore[arg-type]
    dataclasses.replace(SETTINGS, offload=count == 4),
    grpo.PRESETS['grpo'],
    optim.Config(learning_rate=1e-3, warmup_steps=0, eps=1e-3),
  )
  state, reference = trainer.start(model.init(where, 0)).values()
  state, reference = trainer.waiting(state), trainer.reference(reference)
  problems = [Problem(str(n), '', f'make {n} from 3 5 2', {}) for n in range(8)]
  key = jax.random.key(1)
  outputs = trainer.rollout(state.params, key, problems, 24, 1.0)
  # Each host speaks for its outputs, and hears of the others' rewards.
  mine = {
    int(row): (outputs.tokens[n].sum(-1) % 7).astype(np.float32)
    for n, row in enumerate(outputs.rows)
    if outputs.own[n]
  }
  told = [pair for part in hosts.agree('rewards', mine) for pair in part.items()]
  assert len(told) == len(problems)  # nobody has spoken for another's
  reward_PG = np.stack([reward for _, reward in sorted(told)])
  passes = trainer.passes(state.params, reference, outputs, 1.0)
  advantage_PG = trainer.advantages(reward_PG)[outputs.rows]
  state, metrics, _ = trainer.learn(state, outputs, passes, advantage_PG, key, 1.0)
  kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state)}
  assert kinds == {'pinned_host' if count == 4 else 'device'}
  state = mesh.put_back(state)
  saved = checkpoint.Checkpoints(folder / 'state')
  saved.save(1, state, {})
  saved.wait()
  again, _ = checkpoint.Checkpoints(folder / 'state').resume(state)
  assert checkpoint.digest_of(again) == checkpoint.digest_of(state)
  everything = hosts.agree('tokens', (outputs.rows, outputs.tokens, outputs.logp))
  if hosts.first():
    tokens: dict[int, list[int]] = {}
    logp: dict[int, list[float]] = {}
    for rows, said, sure in everything:
      tokens |= dict(zip(rows.tolist(), said.tolist(), strict=True))
      logp |= dict(zip(rows.tolist(), sure.tolist(), strict=True))
    held = [len(rows) for rows, _, _ in everything]
    found = {'held': held, 'metrics': metrics, 'tokens': tokens, 'logp': logp}
    (folder / 'found.json').write_text(json.dumps(found))


if __name__ == '__main__':
  address = f'127.0.0.1:{port}' if count > 1 else ''
  config = mesh.Config(coordinator=address, hosts=count, host=index)
  with hosts.joined(Experiment(config)):
    main(Path(sys.argv[4]))
