"""Updates of a policy in torch and float64, written from the papers.

It shares no code with r1jax: a decoder as Qwen2 and Qwen3 are, each output a sequence
of its own without padding, the objective token by token, its gradient by autograd,
torch's AdamW. What is updated are tensors by their names on the hub.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch

PROMPTS, LONGEST, GROUP, LENGTH, VOCAB = 4, 5, 4, 7, 31
TEMPERATURE = 0.7
NORM_EPS = 1e-5
ROLLOUTS = 2
MINIBATCHES = [[2, 0], [1, 3], [3, 0], [1, 2]]  # prompts of a rollout's updates
UPDATES = ROLLOUTS * len(MINIBATCHES)


class Outputs(NamedTuple):
  """A rollout as lists: prompts [P][tokens], outputs [P][G][tokens], rewards [P, G]."""

  prompts: list[list[int]]
  outputs: list[list[list[int]]]
  rewards: np.ndarray
  # of log-probs, [P][G][tokens]: by how much what sampled was not the policy
  noise: list[list[torch.Tensor]]


def rollouts() -> list[Outputs]:
  rng = np.random.default_rng(0)

  def tokens(most: int) -> list[int]:
    return rng.integers(VOCAB, size=rng.integers(1, most + 1)).tolist()

  found = []
  for _ in range(ROLLOUTS):
    outputs = [[tokens(LENGTH) for _ in range(GROUP)] for _ in range(PROMPTS)]
    noise = [
      [torch.tensor(rng.normal(0, 0.5, len(output))) for output in group]
      for group in outputs
    ]
    rewards = rng.integers(0, 4, size=(PROMPTS, GROUP)).astype(np.float64)
    rewards[0] = 1.0  # a group that nothing can be learned from
    found.append(
      Outputs([tokens(LONGEST) for _ in range(PROMPTS)], outputs, rewards, noise)
    )
  return found


def normed(x, gain):
  return x / torch.sqrt((x * x).mean(-1, keepdim=True) + NORM_EPS) * gain


def rotated(x_HTC, theta):
  """Channels i and i + C/2 as a complex number, turned by t theta^(-2i/C)."""
  length, channels = x_HTC.shape[1:]
  real, imaginary = x_HTC.split(channels // 2, -1)
  slower = torch.arange(channels // 2, dtype=torch.float64) * (-2 / channels)
  angle = torch.arange(length, dtype=torch.float64)[:, None] * theta**slower
  turned = torch.complex(real, imaginary) * torch.exp(1j * angle)
  return torch.cat([turned.real, turned.imag], -1)


def logits_of(tensors, config, tokens):
  """Logits [T, V] of one sequence, by the tensors' names on the hub."""
  length, heads = len(tokens), config.num_attention_heads
  shared = heads // config.num_key_value_heads
  later = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
  x = tensors['model.embed_tokens.weight'][tokens]
  for layer in range(config.num_hidden_layers):

    def get(name, layer=layer):
      return tensors.get(f'model.layers.{layer}.{name}')

    def linear(x, name, get=get):
      out = x @ get(f'{name}.weight').T
      return out if get(f'{name}.bias') is None else out + get(f'{name}.bias')

    h = normed(x, get('input_layernorm.weight'))
    q, k, v = (linear(h, f'self_attn.{name}_proj') for name in 'qkv')
    channels = q.shape[-1] // heads
    q, k, v = (x.reshape(length, -1, channels).transpose(0, 1) for x in (q, k, v))
    if (gain := get('self_attn.q_norm.weight')) is not None:
      q, k = normed(q, gain), normed(k, get('self_attn.k_norm.weight'))
    theta = config.rope_parameters['rope_theta']
    q, k = rotated(q, theta), rotated(k, theta)
    k, v = (x.repeat_interleave(shared, 0) for x in (k, v))
    scores = (q @ k.mT / math.sqrt(channels)).masked_fill(later, -math.inf)
    attended = (torch.softmax(scores, -1) @ v).transpose(0, 1).reshape(length, -1)
    x = x + linear(attended, 'self_attn.o_proj')
    h = normed(x, get('post_attention_layernorm.weight'))
    gate = linear(h, 'mlp.gate_proj')
    x = x + linear(
      gate * torch.sigmoid(gate) * linear(h, 'mlp.up_proj'), 'mlp.down_proj'
    )
  head = tensors.get('lm_head.weight', tensors['model.embed_tokens.weight'])
  return normed(x, tensors['model.norm.weight']) @ head.T


def scored(tensors, config, prompt, output):
  """Log-probs of an output's tokens and entropies of their distributions."""
  logits = logits_of(tensors, config, torch.tensor(prompt + output[:-1]))
  logp = torch.log_softmax(logits[len(prompt) - 1 :] / TEMPERATURE, -1)
  return logp[range(len(output)), output], -(logp.exp() * logp).sum(-1)


def stale(name):
  """The part of a rollout's noise that lies between the policy and pi_old.

  So there are ratios beyond either bound, with advantages of either sign. The bounds of
  GSPO are a thousandth as far from 1.
  """
  return 1e-3 if name == 'gspo' else 0.4


def advantages_of(name, rewards):
  """Advantages [P, G] of the preset's paper."""
  if name in ('dr_grpo', 'rloo'):
    # Dr. GRPO, section 3.2; RLOO, eq. 8: the mean is of the others alone
    others = (rewards.sum(1, keepdims=True) - rewards) / (GROUP - 1)
    mean = rewards.mean(1, keepdims=True)
    return rewards - (others if name == 'rloo' else mean)
  if name == 'reinforce_pp':
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
  spread = rewards.std(1, ddof=1, keepdims=True)
  return (rewards - rewards.mean(1, keepdims=True)) / (spread + 1e-4)


BOUNDS = {
  **dict.fromkeys(('grpo', 'dr_grpo', 'reinforce_pp'), (0.8, 1.2)),
  'dapo': (0.8, 1.28),
  'gspo': (1 - 3e-4, 1 + 4e-4),
}


def gains_of(name, logp, old_logp, advantage):
  """What the preset's paper maximises at each token of one output; the ratios."""
  log_ratio = logp - old_logp
  if name == 'gspo':
    ratio = log_ratio.mean().exp().expand(len(logp))
  elif name == 'rloo':
    ratio = log_ratio.sum().exp().expand(len(logp))
  else:
    ratio = log_ratio.exp()
  if name in BOUNDS:
    low, high = BOUNDS[name]
    # min(r A, clip(r) A) by cases: only one bound counts, which the sign decides.
    if advantage >= 0:
      gain = torch.where(ratio > high, high, ratio) * advantage
    else:
      gain = torch.where(ratio < low, low, ratio) * advantage
  elif name == 'cispo':
    gain = ratio.detach().clamp(max=1.28) * advantage * logp
  else:
    gain = ratio * advantage
  return gain, ratio


PENALISED = ('grpo', 'reinforce_pp')


def penalties_of(name, logp, ref_logp):
  """beta times the estimate of KL at each token."""
  if name == 'grpo':  # DeepSeekMath, eq. 4
    return 0.001 * (torch.exp(ref_logp - logp) - (ref_logp - logp) - 1)
  if name == 'reinforce_pp':
    return 0.001 * (logp - ref_logp) ** 2 / 2
  return torch.zeros_like(logp)


def objective_of(name, tensors, config, chosen, rollout, advantages, passes):
  """The loss and metrics of the outputs of these prompts, one after the other."""
  places = list(itertools.product(chosen, range(GROUP)))
  tokens = sum(len(rollout.outputs[p][g]) for p, g in places)
  loss, seen = torch.zeros((), dtype=torch.float64), []
  for p, g in places:
    output, advantage = rollout.outputs[p][g], float(advantages[p, g])
    logp, entropy = scored(tensors, config, rollout.prompts[p], output)
    given = [x and x[p, g] for x in passes]
    old_logp, ref_logp, sampler_logp = given
    gain, ratio = gains_of(name, logp, old_logp, advantage)
    if sampler_logp is not None:
      gain = gain * torch.exp(old_logp - sampler_logp).clamp(max=2.0)
    gain = gain - penalties_of(name, logp, ref_logp)
    if name == 'dr_grpo':  # a constant in place of the length; 1024 by default
      weight = 1 / (1024 * len(places))
    elif name in ('dapo', 'cispo', 'reinforce_pp'):
      weight = 1 / tokens
    else:
      weight = 1 / (len(output) * len(places))
    loss = loss - weight * gain.sum()
    with torch.no_grad():
      found = metrics_of(name, logp, ratio, advantage, *given)
      seen.append({**found, 'entropy': float(entropy.sum())})
  return loss, {key: sum(one[key] for one in seen) / tokens for key in seen[0]}


def metrics_of(name, logp, ratio, advantage, old_logp, ref_logp, sampler_logp):
  """Sums over the tokens of an output of what is reported as a mean."""
  found = {'ratio': ratio}
  if sampler_logp is None:
    found['drift'] = (logp - old_logp).abs()
  else:
    found['drift'] = (logp - sampler_logp).abs()
    importance = torch.exp(old_logp - sampler_logp)
    found['importance'] = importance.clamp(max=2.0)
    found['importance_capped'] = importance > 2.0
  if ref_logp is not None:
    found['kl'] = torch.exp(ref_logp - logp) - (ref_logp - logp) - 1
  if name in BOUNDS:
    low, high = BOUNDS[name]
    found['clip_up'] = (ratio > high) & (advantage > 0)
    found['clip_down'] = (ratio < low) & (advantage < 0)
    # beyond a bound, but not clipped
    found['back'] = ((ratio > high) | (ratio < low)) & ~found['clip_up']
    found['back'] &= ~found['clip_down']
  return {key: float(value.sum()) for key, value in found.items()}


def rate(peak, step):
  """Linear from 0, which is never used, then a cosine down to a tenth."""
  if step < 2:
    return peak * (step + 1) / 3
  share = (1 + math.cos(math.pi * (step - 2) / (UPDATES - 2))) / 2
  return peak * (0.1 + 0.9 * share)


def run(name, config, start, reference, settings, sampled_by_another):
  """Tensors after the updates, by name, and each update's metrics.

  Args:
    name: of a preset of `algorithms.PRESETS`.
    config: of transformers, with the sizes of the decoder.
    start: the policy's tensors by name.
    reference: those of the reference.
    settings: `OptimConfig`, of which numbers are read.
    sampled_by_another: whether pi_old is not what sampled.
  """
  tensors = {key: x.clone().requires_grad_() for key, x in start.items()}
  chain = torch.optim.AdamW(
    tensors.values(),
    betas=(settings.b1, settings.b2),
    eps=settings.eps,
    weight_decay=0.0,
  )
  seen: list[dict[str, float]] = []
  for rollout in rollouts():
    now = passed(tensors, config, rollout)
    noise = {(p, g): rollout.noise[p][g] for p, g in now}
    old = {key: x + stale(name) * noise[key] for key, x in now.items()}
    ref, sampler = None, None
    if name in PENALISED:
      ref = passed(reference, config, rollout)
    if sampled_by_another:
      sampler = {key: x - noise[key] for key, x in old.items()}
    advantages = advantages_of(name, rollout.rewards)
    for chosen in MINIBATCHES:
      chain.zero_grad()
      loss, metrics = objective_of(
        name,
        *(tensors, config, chosen, rollout, advantages),
        (old, ref, sampler),
      )
      loss.backward()
      slopes = [x.grad for x in tensors.values()]
      norm = math.sqrt(sum(float((slope**2).sum()) for slope in slopes))
      for slope in slopes:  # torch's own clip adds 1e-6 to the norm
        slope *= min(1, settings.max_grad_norm / norm)
      for group in chain.param_groups:
        group['lr'] = rate(settings.learning_rate, len(seen))
      chain.step()
      seen.append({**metrics, 'loss': float(loss.detach()), 'grad_norm': norm})
  return {key: x.detach().numpy() for key, x in tensors.items()}, seen


def passed(tensors, config, rollout):
  """Log-probs of each output, without a gradient."""
  with torch.no_grad():
    return {
      (p, g): scored(tensors, config, rollout.prompts[p], rollout.outputs[p][g])[0]
      for p, g in itertools.product(range(PROMPTS), range(GROUP))
    }
