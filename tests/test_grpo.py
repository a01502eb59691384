"""Every function of `grpo` against numbers worked out by hand, then the objective.

`test_grpo_oracle` has TRL's numbers, `test_grpo_step` the update.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import algorithms, grpo
from r1jax.grpo import GRPOConfig, Totals, objective

objective = jax.jit(objective, static_argnames='config')
gradient = jax.jit(
  jax.value_and_grad(objective, has_aux=True), static_argnames='config'
)
# float32 rounds at 6e-8; a dozen roundings of numbers near 1
TOLERANCE = 1e-6
LN2 = math.log(2)


def test_group_zscore_divides_by_the_unbiased_std_of_the_group():
  # [1,0,0,1]: mean 1/2, squared deviations 4/4, variance 1/3
  # [0,0,0,3]: mean 3/4, 3 * 9/16 + 81/16 = 27/4, variance 9/4
  first, second = math.sqrt(1 / 3) + 1e-4, 1.5 + 1e-4
  expected = np.array(
    [
      [0.5 / first, -0.5 / first, -0.5 / first, 0.5 / first],
      [-0.75 / second, -0.75 / second, -0.75 / second, 2.25 / second],
    ]
  )
  got = grpo.group_zscore(jnp.array([[1.0, 0, 0, 1], [0, 0, 0, 3]]))
  np.testing.assert_allclose(got, expected, atol=TOLERANCE)


def test_group_centred_subtracts_the_mean_of_the_group():
  got = grpo.group_centred(jnp.array([[1.0, 0, 0, 1], [0, 0, 0, 3]]))
  expected = [[0.5, -0.5, -0.5, 0.5], [-0.75, -0.75, -0.75, 2.25]]
  np.testing.assert_allclose(got, expected, atol=TOLERANCE)


def test_leave_one_out_subtracts_the_mean_of_the_others():
  # [1,0,0,1]: the others' mean is 1/3 for a 1, 2/3 for a 0; [0,0,0,3]: 1 or 0
  got = grpo.leave_one_out(jnp.array([[1.0, 0, 0, 1], [0, 0, 0, 3]]))
  expected = np.array([[2 / 3, -2 / 3, -2 / 3, 2 / 3], [-1, -1, -1, 3]])
  np.testing.assert_allclose(got, expected, atol=TOLERANCE)


def test_batch_whitened_takes_mean_and_std_of_all_outputs():
  # mean 2, deviations -2 -1 0 3, squares 14, variance 14/3
  std = math.sqrt(14 / 3) + 1e-4
  got = grpo.batch_whitened(jnp.array([[0.0, 1], [2, 5]]))
  np.testing.assert_allclose(got, [[-2 / std, -1 / std], [0, 3 / std]], atol=TOLERANCE)


@pytest.mark.parametrize('name', grpo.ADVANTAGES)
@pytest.mark.parametrize('reward', [0.0, 1.0, 0.1])
def test_equal_rewards_give_zero_advantage(name, reward):
  config = GRPOConfig(advantage=name)
  # 3 and 16: the mean of 16 times 1.1 is off by rounding.
  for group_size in (3, 16):
    got = grpo.group_advantage(jnp.full((2, group_size), reward), config=config)
    np.testing.assert_array_equal(got, np.zeros((2, group_size)))


def test_group_advantage_uses_the_configured_function():
  reward = jnp.array([[0.0, 1], [2, 5]])
  for name, function in grpo.ADVANTAGES.items():
    got = grpo.group_advantage(reward, config=GRPOConfig(advantage=name))
    np.testing.assert_array_equal(got, function(reward))


def ratios(name):
  """Of one prompt's two outputs, lengths 2 and 0; position 2 must not count."""
  log_ratio = jnp.log(jnp.array([[[2.0, 8, 5], [3, 3, 3]]]))
  mask = jnp.array([[[True, True, False], [False, False, False]]])
  return grpo.RATIOS[name](log_ratio, mask)


def test_token_ratio_is_each_tokens_own():
  np.testing.assert_allclose(ratios('token')[0, 0, :2], [2, 8], rtol=TOLERANCE)


def test_sequence_ratio_is_the_product_of_the_tokens():
  # 2 * 8 = 16; the empty product is 1
  expected = [[[16, 16, 16], [1, 1, 1]]]
  np.testing.assert_allclose(ratios('sequence'), expected, rtol=TOLERANCE)


def test_geometric_ratio_is_the_geometric_mean_of_the_tokens():
  # sqrt(2 * 8) = 4; the empty mean is 1
  expected = [[[4, 4, 4], [1, 1, 1]]]
  np.testing.assert_allclose(ratios('geometric'), expected, rtol=TOLERANCE)


@pytest.mark.parametrize(
  ('ratio', 'advantage', 'gain', 'slope'),
  [  # bounds 0.8 and 1.3; slope is d gain / d ratio
    (1.1, 2.0, 2.2, 2.0),
    (1.5, 1.0, 1.3, 0.0),  # a good token is not raised further
    (1.5, -1.0, -1.5, -1.0),  # a bad one is always lowered
    (0.5, 1.0, 0.5, 1.0),  # a good one is always raised
    (0.5, -1.0, -0.8, 0.0),  # a bad one is not lowered further
  ],
)
def test_clipped_is_the_pessimistic_bound(ratio, advantage, gain, slope):
  config = GRPOConfig(clip_low=0.2, clip_high=0.3)
  got = jax.value_and_grad(grpo.clipped)(ratio, advantage, -7.0, config)
  np.testing.assert_allclose(got, (gain, slope), rtol=TOLERANCE)


def test_unclipped_is_the_product():
  got = jax.value_and_grad(grpo.unclipped)(1.5, -2.0, -7.0, GRPOConfig())
  np.testing.assert_allclose(got, (-3.0, -2.0))


@pytest.mark.parametrize(
  ('ratio', 'advantage', 'gain', 'slope'),
  [  # the cap is 1.3, and there is no floor; slope is d gain / d logp
    (1.5, 2.0, 1.3 * 2 * -3, 1.3 * 2),
    (1.5, -2.0, 1.3 * -2 * -3, 1.3 * -2),
    (0.1, -1.0, 0.1 * -1 * -3, -0.1),
  ],
)
def test_clipped_weight_keeps_every_tokens_gradient(ratio, advantage, gain, slope):
  config = GRPOConfig(clip_high=0.3)
  value, (to_ratio, to_logp) = jax.value_and_grad(grpo.clipped_weight, (0, 2))(
    ratio, advantage, -3.0, config
  )
  np.testing.assert_allclose((value, to_logp), (gain, slope), rtol=TOLERANCE)
  assert to_ratio == 0


def test_kl_estimates_of_one_token():
  # policy 1/2, reference 1/4 and back: log-ratios ln 1/2 and ln 2
  logp, ref_logp = jnp.log(jnp.array([0.5, 0.25])), jnp.log(jnp.array([0.25, 0.5]))
  np.testing.assert_array_equal(grpo.kl_none(logp, ref_logp), [0, 0])
  np.testing.assert_allclose(
    grpo.kl_k2(logp, ref_logp), [LN2**2 / 2, LN2**2 / 2], rtol=TOLERANCE
  )
  # ref/pi - ln(ref/pi) - 1: 1/2 + ln 2 - 1 and 2 - ln 2 - 1
  np.testing.assert_allclose(
    grpo.kl_k3(logp, ref_logp), [LN2 - 0.5, 1 - LN2], rtol=TOLERANCE
  )


def test_kl_k3_is_unbiased_and_the_gradient_of_k2_is_the_kls():
  policy = np.array([0.5, 0.3, 0.2])
  reference = np.array([0.2, 0.2, 0.6])
  kl = np.sum(policy * np.log(policy / reference))
  k3 = grpo.kl_k3(jnp.log(policy), jnp.log(reference))
  np.testing.assert_allclose(np.sum(policy * k3), kl, atol=TOLERANCE)

  def expected_k2(logits):
    return jnp.sum(policy * grpo.kl_k2(jax.nn.log_softmax(logits), jnp.log(reference)))

  # d KL / d logits = pi * (log(pi / ref) - KL)
  np.testing.assert_allclose(
    jax.grad(expected_k2)(jnp.log(policy)),
    policy * (np.log(policy / reference) - kl),
    atol=TOLERANCE,
  )


# Two prompts, two outputs each, of lengths 3, 1, 0 and 2.
MASK = jnp.array([[[1, 1, 1], [1, 0, 0]], [[0, 0, 0], [1, 1, 0]]], bool)


def test_totals_count_outputs_and_tokens():
  assert [float(x) for x in grpo.totals(MASK)] == [4, 6]


def test_totals_of_nothing_do_not_divide_by_zero():
  assert [float(x) for x in grpo.totals(jnp.zeros((1, 2, 3), bool))] == [2, 1]


@pytest.mark.parametrize(
  ('name', 'shares'),
  [  # the weight of one token in outputs of length 3, 1 and 2
    ('outputs', (1 / 12, 1 / 4, 1 / 8)),  # 1 / length / 4 outputs
    ('tokens', (1 / 6, 1 / 6, 1 / 6)),
    ('constant', (1 / 20, 1 / 20, 1 / 20)),  # 1 / 5 / 4 outputs
  ],
)
def test_weights_of_the_means(name, shares):
  a, b, c = shares
  config = GRPOConfig(constant_length=5)
  got = grpo.MEANS[name](MASK, grpo.totals(MASK), config)
  expected = [[[a, a, a], [b, 0, 0]], [[0, 0, 0], [c, c, 0]]]
  np.testing.assert_allclose(got, expected, rtol=TOLERANCE)


def hand_case(**changes):
  """One prompt, outputs of length 2 and 1: ratios 3/2, 3/2 (A 1) and 1/2 (A -1)."""
  config = GRPOConfig(clip_low=0.2, clip_high=0.3, kl_coef=0.6)
  old_logp = jnp.full((1, 2, 2), -1.0)
  case = {
    'logp': old_logp + jnp.log(jnp.array([[[1.5, 1.5], [0.5, 9]]])),
    'advantage': jnp.array([[1.0, -1]]),
    'mask': jnp.array([[[True, True], [True, False]]]),
    'old_logp': old_logp,
    'ref_logp': None,
    'config': config,
  }
  return objective(**{**case, **changes})


def test_objective_without_reference():
  loss, metrics = hand_case()
  # gains 1.3, 1.3 and -0.8; means of outputs 1.3 and -0.8, of the two 0.25
  np.testing.assert_allclose(loss, -0.25, rtol=TOLERANCE)
  expected = {
    'ratio': 3.5 / 3,
    'clip_up': 2 / 3,
    'clip_down': 1 / 3,
    'drift': (2 * math.log(1.5) + LN2) / 3,
  }
  assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-6)


def test_bounds_stop_no_token_that_moves_back():
  # the same ratios 3/2, 3/2 and 1/2 with a bad and a good output
  loss, metrics = hand_case(advantage=jnp.array([[-1.0, 1]]))
  # gains -3/2, -3/2 and 1/2; means of outputs -3/2 and 1/2
  np.testing.assert_allclose(loss, 0.5, rtol=TOLERANCE)
  assert metrics['clip_up'] == metrics['clip_down'] == 0


def test_objective_subtracts_beta_kl():
  logp = jnp.full((1, 2, 2), -1.0)
  # ref/pi is 2 at the first token and 1 elsewhere: k3 = 1 - ln 2, once
  loss, metrics = hand_case(logp=logp, ref_logp=logp + jnp.array([[[LN2, 0], [0, 5]]]))
  # gains 1, 1 and -1 average to 0; beta k3 / 2 tokens / 2 outputs
  np.testing.assert_allclose(loss, 0.6 * (1 - LN2) / 4, rtol=TOLERANCE)
  np.testing.assert_allclose(metrics['kl'], (1 - LN2) / 3, rtol=TOLERANCE)


def test_kl_metric_is_k3_whatever_the_penalty():
  logp = jnp.full((1, 2, 2), -1.0)
  ref_logp = logp + LN2
  for name in grpo.KLS:
    config = GRPOConfig(kl=name, kl_coef=0.0)
    _, metrics = hand_case(logp=logp, ref_logp=ref_logp, config=config)
    np.testing.assert_allclose(metrics['kl'], 1 - LN2, rtol=TOLERANCE)


def test_full_outputs_make_the_three_means_one():
  mask = jnp.ones((1, 2, 2), bool)
  losses = [
    hand_case(mask=mask, config=GRPOConfig(mean=mean, constant_length=2))[0]
    for mean in grpo.MEANS
  ]
  # gains 1.2, 1.2 and -0.8, -9
  np.testing.assert_allclose(losses, 3 * [-(1.2 + 1.2 - 0.8 - 9) / 4], rtol=TOLERANCE)


# Rewards [[1, 0], [3, 0]]: group stds 1/sqrt(2) and 3/sqrt(2); batch mean 1, deviations
# 0 -1 2 -1, squares 6, std sqrt(2).
ZSCORE = np.array(
  [
    [0.5 / (math.sqrt(0.5) + 1e-4), -0.5 / (math.sqrt(0.5) + 1e-4)],
    [1.5 / (math.sqrt(4.5) + 1e-4), -1.5 / (math.sqrt(4.5) + 1e-4)],
  ]
)
WHITENED = np.array([[0, -1], [2, -1]]) / (math.sqrt(2) + 1e-4)
CENTRED = np.array([[0.5, -0.5], [1.5, -1.5]])
# Lengths 2, 1, 1, 1: 4 outputs, 5 tokens.
LENGTHS = np.array([[2, 1], [1, 1]])


@pytest.mark.parametrize(
  ('name', 'slope'),
  [  # d loss / d logp of every token of an output, [P, G]
    # R1's penalty: d k3 / d logp = 1 - ref/pi = 1/2
    ('grpo', (-ZSCORE + 0.001 / 2) / LENGTHS / 4),
    ('dr_grpo', -CENTRED / 1024 / 4),
    ('dapo', -ZSCORE / 5),
    # all |o| tokens of an output hold the ratio, whose slope is 1/|o| to each
    ('gspo', -ZSCORE / LENGTHS / 4),
    ('cispo', -ZSCORE / 5),
    # all |o| tokens hold the ratio, whose slope is 1 to each; others' mean: 0 1, 0 3
    ('rloo', -np.array([[1, -1], [3, -3]]) / 4),
    # d k2 / d logp = ln(pi/ref) = ln 2
    ('reinforce_pp', (-WHITENED + 0.001 * LN2) / 5),
  ],
)
def test_slopes_of_the_presets(name, slope):
  config = algorithms.PRESETS[name]
  mask = np.arange(3) < LENGTHS[..., None]
  logp = np.full((2, 2, 3), -1.5, np.float32)
  advantage = grpo.group_advantage(jnp.array([[1.0, 0], [3, 0]]), config=config)
  _, got = gradient(
    logp,
    advantage,
    mask,
    old_logp=logp,
    ref_logp=logp - np.float32(LN2),
    config=config,
  )
  np.testing.assert_allclose(got, slope[..., None] * mask, atol=TOLERANCE)


@pytest.mark.parametrize(
  ('name', 'low', 'high'),
  [
    ('grpo', 0.2, 0.2),  # PPO's
    ('dr_grpo', 0.2, 0.2),
    ('dapo', 0.2, 0.28),  # section 4.1
    ('gspo', 3e-4, 4e-4),  # section 5.1
  ],
)
def test_bounds_of_the_presets(name, low, high):
  # within and beyond the upper bound, then the lower; all tokens of an output alike
  ratio = [[1 + 0.98 * high, 1 + 1.02 * high], [1 - 0.98 * low, 1 - 1.02 * low]]
  advantage = np.array([[1, 1], [-1, -1]], np.float32)
  log_ratio = np.repeat(np.log(ratio)[..., None], 3, -1).astype(np.float32)
  # About 0: float32 holds log-ratios of 4e-4 to 2 % there.
  (_, metrics), got = gradient(
    log_ratio,
    advantage,
    np.ones((2, 2, 3), bool),
    old_logp=np.zeros_like(log_ratio),
    ref_logp=log_ratio,
    config=algorithms.PRESETS[name],
  )
  assert np.sign(got[..., 0]).tolist() == [[-1, 0], [1, 0]]
  assert (metrics['clip_up'], metrics['clip_down']) == (0.25, 0.25)


def test_bound_of_cispo_is_dapos_upper_one():
  logp = np.log([[[1.27], [1.29]]]).astype(np.float32)
  advantage = np.ones((1, 2), np.float32)
  mask = np.ones((1, 2, 1), bool)
  _, got = gradient(
    logp,
    advantage,
    mask,
    old_logp=np.zeros_like(logp),
    ref_logp=None,
    config=algorithms.PRESETS['cispo'],
  )
  np.testing.assert_allclose(got[0, :, 0], [-1.27 / 2, -1.28 / 2], rtol=TOLERANCE)


@pytest.mark.parametrize(
  ('ratio', 'surrogate', 'mean'),
  [
    ('token', 'clip', 'constant'),
    ('token', 'none', 'constant'),
    ('token', 'clipped_weight', 'constant'),
    # An output's ratio stands at each of its |o| tokens: the mean over them undoes it.
    ('sequence', 'clip', 'outputs'),
    ('sequence', 'none', 'outputs'),
    # So does the power 1 / |o|.
    ('geometric', 'clip', 'constant'),
    ('geometric', 'clipped_weight', 'constant'),
  ],
)
def test_on_policy_gradient_is_reinforce(ratio, surrogate, mean):
  rng = np.random.default_rng(1)
  logits_TV = rng.normal(size=(3, 5))  # a softmax over 5 tokens at each position
  tokens_PGT = rng.integers(5, size=(2, 4, 3))
  mask_PGT = np.arange(3) < rng.integers(1, 4, size=(2, 4, 1))
  advantage_PG = rng.normal(size=(2, 4))

  policy_TV = np.exp(logits_TV) / np.exp(logits_TV).sum(-1, keepdims=True)
  # d log pi(token) / d logits = one-hot(token) - pi
  score_PGTV = np.eye(5)[tokens_PGT] - policy_TV
  reinforce_TV = np.einsum('pg,pgt,pgtv->tv', advantage_PG, mask_PGT, score_PGTV) / 8

  config = GRPOConfig(
    ratio=ratio, surrogate=surrogate, mean=mean, constant_length=1, kl_coef=0
  )

  @jax.jit
  @jax.grad
  def slope(logits_TV):
    logp_PGT = jax.nn.log_softmax(logits_TV)[np.arange(3), tokens_PGT]
    return objective(
      logp_PGT,
      jnp.asarray(advantage_PG, jnp.float32),
      jnp.asarray(mask_PGT),
      old_logp=jax.lax.stop_gradient(logp_PGT),
      ref_logp=None,
      config=config,
    )[0]

  got = slope(jnp.asarray(logits_TV, jnp.float32))
  np.testing.assert_allclose(got, -reinforce_TV, atol=TOLERANCE)


@pytest.mark.parametrize('name', algorithms.PRESETS)
def test_loss_ignores_masked_tokens(name):
  rng = np.random.default_rng(2)
  logps = rng.normal(-2, 0.3, (3, 2, 2, 3)).astype(np.float32)
  advantage = np.array([[0.5, -0.5], [1, -1]], np.float32)
  mask = np.asarray(MASK)

  def run(logp, old_logp, ref_logp):
    return gradient(
      logp,
      advantage,
      mask,
      old_logp=old_logp,
      ref_logp=ref_logp,
      config=algorithms.PRESETS[name],
    )

  clean = run(*logps)
  assert not np.any(clean[1][~mask])
  for garbage in (np.nan, np.inf, -np.inf, 1e30, 100.0):
    for dirty in ((0,), (1,), (2,), (0, 1, 2)):
      changed = logps.copy()
      for array in dirty:
        changed[array][~mask] = garbage
      jax.tree.map(np.testing.assert_array_equal, run(*changed), clean)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (
      {'importance_cap': 0.0},
      'grpo.importance_cap: expected a finite number above 0, got 0.0',
    ),
    (
      {'advantage': 'group_zcore'},
      'grpo.advantage: expected one of group_zscore, group_centred, leave_one_out, '
      "batch_whitened, got 'group_zcore'; did you mean 'group_zscore'?",
    ),
    (
      {'ratio': 'word'},
      "grpo.ratio: expected one of token, sequence, geometric, got 'word'",
    ),
    (
      {'surrogate': 'clip_weight'},
      "grpo.surrogate: expected one of clip, none, clipped_weight, got 'clip_weight'; "
      "did you mean 'clipped_weight'?",
    ),
    (
      {'kl': 'k1'},
      "grpo.kl: expected one of none, k2, k3, got 'k1'",
    ),
    (
      {'mean': 'output'},
      "grpo.mean: expected one of outputs, tokens, constant, got 'output'; "
      "did you mean 'outputs'?",
    ),
    ({'clip_low': -0.1}, 'grpo.clip_low: expected 0 to 1, got -0.1'),
    (
      {'clip_high': -0.72},
      'grpo.clip_high: expected a finite number of 0 or more, got -0.72',
    ),
    (
      {'kl_coef': math.nan},
      'grpo.kl_coef: expected a finite number of 0 or more, got nan',
    ),
    ({'constant_length': 0}, 'grpo.constant_length: expected 1 or more, got 0'),
  ],
)
def test_impossible_settings_are_refused(settings, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011 - compared whole, below
    GRPOConfig(**settings)
  assert str(error.value) == message


@pytest.mark.parametrize('name', sorted(set(grpo.ADVANTAGES) - {'batch_whitened'}))
def test_a_group_of_one_is_refused(name):
  config = GRPOConfig(advantage=name)
  message = (
    f'rl.group_size: the advantage {name!r} compares the samples of a prompt and needs '
    '2 or more, got 1; raise rl.group_size, or set rl.grpo.advantage to '
    "'batch_whitened'"
  )
  for call in (
    lambda: grpo.check_group_size(config, 1, 4),
    lambda: grpo.group_advantage(jnp.zeros((4, 1)), config=config),
  ):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared whole, below
      call()
    assert str(error.value) == message
  grpo.check_group_size(config, 2, 1)


def test_an_advantage_that_compares_no_group_takes_one_output(monkeypatch):
  monkeypatch.setitem(grpo.ADVANTAGES, 'own', lambda reward: reward - 0.5)
  config = GRPOConfig(advantage='own')
  grpo.check_group_size(config, 1, 1)
  got = grpo.group_advantage(jnp.array([[0.0], [1.0]]), config=config)
  assert got.tolist() == [[-0.5], [0.5]]
  # One that says that it does is refused.
  monkeypatch.setattr(grpo, 'WITHIN_GROUP', {*grpo.WITHIN_GROUP, 'own'})
  with pytest.raises(ValueError, match="advantage 'own' compares the samples of a"):
    grpo.check_group_size(config, 1, 4)


def test_an_advantage_of_another_shape_is_named(monkeypatch):
  monkeypatch.setitem(grpo.ADVANTAGES, 'own', lambda reward: reward.mean(1))
  expected = r"expected 'own' to return one .* output, \(4, 2\), got \(4,\); fix"
  with pytest.raises(ValueError, match=expected):
    grpo.group_advantage(jnp.zeros((4, 2)), config=GRPOConfig(advantage='own'))


def signs(reward: jax.Array) -> jax.Array:
  return jnp.sign(reward - reward.mean(1, keepdims=True))


def squared_ratio(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
  del mask
  return jnp.exp(2 * log_ratio)


def gain_per_ratio(ratio, advantage, logp, config) -> jax.Array:
  del logp, config
  return advantage / ratio


def kl_k1(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
  return logp - ref_logp


def summed(mask: jax.Array, total: Totals, config: GRPOConfig) -> jax.Array:
  del total, config
  return mask


def test_a_choice_may_be_a_function_of_an_experiment():
  config = GRPOConfig(
    advantage=signs,
    ratio=squared_ratio,
    surrogate=gain_per_ratio,
    kl=kl_k1,
    mean=summed,
    kl_coef=0.5,
  )
  reward = jnp.array([[0.0, 1.0, 1.0]])
  advantage = grpo.group_advantage(reward, config=config)
  assert advantage.tolist() == [[-1.0, 1.0, 1.0]]
  loss, metrics = objective(
    jnp.log(jnp.full((1, 3, 2), 0.5)),
    advantage,
    jnp.array([[[1, 1], [1, 0], [1, 0]]], bool),
    old_logp=jnp.log(jnp.full((1, 3, 2), 0.25)),
    ref_logp=jnp.log(jnp.full((1, 3, 2), 1.0)),
    config=config,
  )
  # Ratios are (0.5 / 0.25)^2 = 4, gains -1/4 twice and 1/4 twice, which cancel. Each of
  # the four tokens has a penalty of 0.5 log(0.5 / 1).
  np.testing.assert_allclose(loss, 4 * 0.5 * math.log(0.5), rtol=1e-6)
  assert 'clip_up' not in metrics


def test_a_function_of_a_table_is_the_choice_of_its_name():
  config = GRPOConfig(
    advantage=grpo.group_zscore, surrogate=grpo.clipped, mean=grpo.mean_outputs
  )
  assert config == GRPOConfig()
  assert algorithms.preset_of(config) == 'grpo'
  with pytest.raises(ValueError, match="advantage 'group_zscore' compares"):
    grpo.check_group_size(config, 1, 4)


def test_a_function_that_compares_a_group_may_say_so(monkeypatch):
  config = GRPOConfig(advantage=signs)
  assert algorithms.preset_of(config) is None
  grpo.check_group_size(config, 1, 1)
  monkeypatch.setattr(grpo, 'WITHIN_GROUP', {*grpo.WITHIN_GROUP, signs})
  with pytest.raises(ValueError, match='the advantage signs compares the samples of a'):
    grpo.check_group_size(config, 1, 4)


def test_a_function_without_a_name_is_refused():
  # A run could not record which one it was.
  with pytest.raises(ValueError, match=r'^grpo.kl: expected a name or a function with'):
    GRPOConfig(kl=functools.partial(kl_k1))


def test_a_preset_is_recognised_with_any_constant():
  for name, preset in algorithms.PRESETS.items():
    longer = dataclasses.replace(preset, constant_length=7)
    assert algorithms.preset_of(preset) == algorithms.preset_of(longer) == name
    other = dataclasses.replace(preset, clip_high=0.123)
    assert algorithms.preset_of(other) is None


def test_presets_say_which_parts_of_an_algorithm_they_leave_out():
  # Parts of the papers that are not in the objective, or are elsewhere in it.
  expected = {
    'dr_grpo': ('constant_length', 'max_length'),
    'dapo': ('two of the four', 'without its dynamic sampling', 'overlong'),
    'cispo': ('without its dynamic sampling', 'length penalty', '0.28'),
    'rloo': ('without its KL', 'from the reward'),
    'reinforce_pp': ('k2 in the loss', 'k1 from the reward'),
  }
  assert algorithms.PUBLISHED.keys() == expected.keys()
  for name, words in expected.items():
    assert all(word in algorithms.PUBLISHED[name] for word in words)


def test_one_output_cannot_be_whitened():
  config = GRPOConfig(advantage='batch_whitened')
  expected = 'rl.prompts_per_step: .* needs 2 or more, got 1; raise rl.prompts_per_step'
  with pytest.raises(ValueError, match=expected):
    grpo.check_group_size(config, 1, 1)
  grpo.check_group_size(config, 2, 1)


def test_a_group_of_one_can_be_whitened():
  # mean 1, deviations -1 and 1, variance 2
  config = GRPOConfig(advantage='batch_whitened')
  got = grpo.group_advantage(jnp.array([[0.0], [2.0]]), config=config)
  std = math.sqrt(2) + 1e-4
  np.testing.assert_allclose(got, [[-1 / std], [1 / std]], rtol=TOLERANCE)


def test_penalty_without_an_estimate_is_refused():
  with pytest.raises(ValueError, match=r"kl_coef: expected 0 with grpo\.kl 'none'"):
    GRPOConfig(kl='none', kl_coef=0.01)


def test_a_ratio_beyond_float32_leaves_a_finite_gradient():
  # exp(100) is infinite in float32; clipped for A > 0, so the gradient is 0.
  mask, advantage = jnp.ones((1, 1, 2), bool), jnp.ones((1, 1))
  old_logp = jnp.full((1, 1, 2), -101.0)

  def loss(logp, name):
    config = GRPOConfig(ratio=name, kl='none', kl_coef=0.0)
    return objective(
      logp, advantage, mask, old_logp=old_logp, ref_logp=None, config=config
    )[0]

  for name in grpo.RATIOS:
    value, gradient = jax.value_and_grad(loss)(jnp.full((1, 1, 2), -1.0), name)
    np.testing.assert_allclose(value, -1.2, rtol=TOLERANCE)
    np.testing.assert_array_equal(gradient, 0.0)


def test_importance_weights_the_gain_of_each_token_up_to_its_cap():
  # pi_old / pi_sampler is 1/2, 1 and 4, capped at 2; the ratio is 1 throughout.
  logp = jnp.log(jnp.array([[[0.2, 0.5, 0.4]]]))
  sampler_logp = jnp.log(jnp.array([[[0.4, 0.5, 0.1]]]))
  ref_logp = logp - LN2  # k3 is 1/2 + ln 2 - 1
  config = GRPOConfig(kl_coef=0.1, mean='tokens', importance_cap=2.0)
  loss, metrics = objective(
    logp,
    jnp.array([[3.0]]),
    jnp.ones((1, 1, 3), bool),
    old_logp=logp,
    ref_logp=ref_logp,
    sampler_logp=sampler_logp,
    config=config,
  )
  gain = 3 * (0.5 + 1 + 2) / 3
  np.testing.assert_allclose(loss, 0.1 * (LN2 - 0.5) - gain, rtol=TOLERANCE)
  np.testing.assert_allclose(metrics['importance'], 3.5 / 3, rtol=TOLERANCE)
  np.testing.assert_allclose(metrics['importance_capped'], 1 / 3, rtol=TOLERANCE)
  # What differs is learner and sampler: 1, 0 and 2 times ln 2.
  np.testing.assert_allclose(metrics['drift'], LN2, rtol=TOLERANCE)


def test_importance_makes_the_samplers_gradient_that_of_the_policy():
  # One token of four, in as many outputs as the sampler's probabilities say.
  policy, sampler = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.1, 0.3, 0.2])
  advantage = np.array([1.0, -2, 0.5, 3])
  config = GRPOConfig(kl_coef=0.0, mean='tokens', importance_cap=10.0)

  def loss(logits):
    logp = jax.nn.log_softmax(logits)
    return objective(
      logp[None, :, None],
      jnp.asarray(4 * sampler * advantage, jnp.float32)[None],
      jnp.ones((1, 4, 1), bool),
      old_logp=jax.lax.stop_gradient(logp)[None, :, None],
      ref_logp=None,
      sampler_logp=jnp.log(jnp.asarray(sampler, jnp.float32))[None, :, None],
      config=config,
    )[0]

  got = jax.grad(loss)(jnp.log(jnp.asarray(policy, jnp.float32)))
  # - sum of pi A (one-hot - pi)
  expected = -(policy * advantage) @ (np.eye(4) - policy)
  np.testing.assert_allclose(got, expected, atol=TOLERANCE)


def test_importance_after_an_outputs_end_is_ignored():
  mask = jnp.array([[[True, False]]])
  strange = jnp.array([[[-1.0, -jnp.inf]]])
  (loss, metrics), slope = gradient(
    strange,
    jnp.array([[1.0]]),
    mask,
    old_logp=strange,
    ref_logp=None,
    sampler_logp=jnp.array([[[-1.0, jnp.nan]]]),
    config=GRPOConfig(kl_coef=0.0),
  )
  assert (loss, metrics['importance'], metrics['drift']) == (-1, 1, 0)
  assert slope.tolist() == [[[-1, 0]]]
