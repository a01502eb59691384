"""A host of `test_hosts`: python tests/host.py INDEX HOSTS PORT FOLDER.

One step of GRPO on eight devices, which the hosts share.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import machines

index, count, port = map(int, sys.argv[1:4])
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = machines.cpus(8 // count)

import numpy as np  # noqa: E402

from r1jax import grpo  # noqa: E402
from r1jax.model.config import ModelConfig  # noqa: E402
from r1jax.optim import OptimConfig  # noqa: E402
from r1jax.rollout.policy import Policy  # noqa: E402
from r1jax.rollout.sampler import Sampler  # noqa: E402
from r1jax.runtime import checkpoint, hosts  # noqa: E402
from r1jax.runtime.digest import digest_of  # noqa: E402
from r1jax.sampling.sampler import SamplingConfig  # noqa: E402
from r1jax.sharding.mesh import MeshConfig, make_mesh  # noqa: E402
from r1jax.sharding.place import to_device  # noqa: E402
from r1jax.stages import rl_state  # noqa: E402
from r1jax.stages.learner import Learner  # noqa: E402
from r1jax.stages.rl_config import RLConfig  # noqa: E402
from r1jax.tasks import Problem  # noqa: E402
from r1jax.text.tokenizer import Tokenizer  # noqa: E402


@dataclasses.dataclass
class Experiment:
  """What hosts compare."""

  mesh: MeshConfig


QWEN = ModelConfig(
  d_model=32, layers=1, heads=4, kv_heads=2, head_dim=8, d_ff=48, qk_norm=True
)
CONFIG = RLConfig(
  prompts_per_step=8,
  group_size=4,
  max_prompt_length=32,
  max_length=((0, 24),),
  minibatches=1,
  micro_batch_rows=16,
  offload=count == 4,
  optim=OptimConfig(learning_rate=1e-3, warmup_steps=0, eps=1e-3),
)


def main(folder: Path) -> None:
  import jax

  # Of four hosts, two have parts of the same rows.
  layout = MeshConfig(fsdp=2, context=2, tensor=2)
  mesh = make_mesh(config=layout)
  tokenizer = Tokenizer.train([f'make {n} from 3 5 2' for n in range(40)], 288)
  policy = Policy(QWEN, tokenizer, 'plain', 272)
  sampler = Sampler(policy, CONFIG.max_prompt_length, mesh, layout)
  learner = Learner(policy.functions, mesh, CONFIG)
  state, reference = rl_state.start(learner, policy.init(mesh, 0)).values()
  state, reference = learner.offload_state(state), learner.offload_reference(reference)
  problems = [Problem(str(n), '', f'make {n} from 3 5 2', {}) for n in range(8)]
  key = jax.random.key(1)
  rollout = sampler.sample(
    learner.for_sampling(state.params),
    key,
    problems,
    group_size=CONFIG.group_size,
    max_length=24,
    draw=SamplingConfig(1.0),
  )
  # Each host rewards its own outputs and gathers the others' rewards.
  mine = {
    int(row): (rollout.tokens[n].sum(-1) % 7).astype(np.float32)
    for n, row in enumerate(rollout.rows)
    if rollout.own[n]
  }
  pairs = [pair for part in hosts.all_gather('rewards', mine) for pair in part.items()]
  assert len(pairs) == len(problems)  # no output is rewarded by two hosts
  reward_PG = np.stack([reward for _, reward in sorted(pairs)])
  scores = learner.score(state.params, reference, rollout, 1.0)
  advantage_PG = learner.advantage(grpo.outcomes(jax.numpy.asarray(reward_PG)))[
    rollout.rows
  ]
  updated = learner.update(state, rollout, advantage_PG, scores, key, 1.0)
  state, metrics = updated.state, updated.metrics
  kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state)}
  assert kinds == {'pinned_host' if count == 4 else 'device'}
  state = to_device(state)
  saved = checkpoint.Checkpoints(folder / 'state')
  saved.save(1, state, {})
  saved.wait()
  again, _ = checkpoint.Checkpoints(folder / 'state').resume(state)
  assert digest_of(again) == digest_of(state)
  everything = hosts.all_gather('tokens', (rollout.rows, rollout.tokens, rollout.logp))
  if hosts.is_primary():
    tokens: dict[int, list[int]] = {}
    logp: dict[int, list[float]] = {}
    for rows, their_tokens, their_logp in everything:
      tokens |= dict(zip(rows.tolist(), their_tokens.tolist(), strict=True))
      logp |= dict(zip(rows.tolist(), their_logp.tolist(), strict=True))
    held = [len(rows) for rows, _, _ in everything]
    found = {'held': held, 'metrics': metrics, 'tokens': tokens, 'logp': logp}
    (folder / 'found.json').write_text(json.dumps(found))


if __name__ == '__main__':
  address = f'127.0.0.1:{port}' if count > 1 else ''
  config = MeshConfig(coordinator=address, hosts=count, host=index)
  with hosts.connect(Experiment(config)):
    main(Path(sys.argv[4]))
