"""The objective against numbers worked out by hand, and the checks of a config.

`test_terms` has the terms, `test_grpo_oracle` TRL's numbers, `test_grpo_step` the
update.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import algorithms, grpo
from r1jax.grpo import GRPOConfig, objective, outcomes
from r1jax.terms.advantages import group_zscore
from r1jax.terms.inputs import Numbers, Outcomes, Tokens
from r1jax.terms.means import mean_outputs
from r1jax.terms.surrogates import clipped

objective = jax.jit(objective, static_argnames='config')
gradient = jax.jit(
  jax.value_and_grad(objective, has_aux=True), static_argnames='config'
)
# float32 rounds at 6e-8; a dozen roundings of numbers near 1
TOLERANCE = 1e-6
LN2 = math.log(2)


def test_group_advantage_uses_the_configured_function():
  given = outcomes(jnp.array([[0.0, 1, 3, 7], [2, 5, 5, 1]]))
  for name, function in grpo.ADVANTAGES.items():
    config = GRPOConfig(advantage=name)
    got = grpo.group_advantage(given, config=config)
    np.testing.assert_array_equal(got, function(given, config))


# Two prompts, two outputs each, of lengths 3, 1, 0 and 2.
MASK = jnp.array([[[1, 1, 1], [1, 0, 0]], [[0, 0, 0], [1, 1, 0]]], bool)


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


def test_full_outputs_make_means_of_any_kind_one():
  mask = jnp.ones((1, 2, 2), bool)
  losses = [
    hand_case(mask=mask, config=GRPOConfig(mean=mean, constant_length=2))[0]
    for mean in sorted(set(grpo.MEANS) - {'sums'})
  ]
  # gains 1.2, 1.2 and -0.8, -9
  np.testing.assert_allclose(losses, 4 * [-(1.2 + 1.2 - 0.8 - 9) / 4], rtol=TOLERANCE)


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
    # centred, -1/2 1/2 3/2 -3/2 squared: 5, std sqrt(5/3)
    (
      'reinforce_pp_baseline',
      (-CENTRED / (math.sqrt(5 / 3) + 1e-4) + 0.001 * LN2) / 5,
    ),
    ('lite_ppo', -CENTRED / (math.sqrt(2) + 1e-4) / 5),
    # group means 1/2 and 3/2: all successes are one of two
    ('max_rl', -CENTRED / np.array([[0.5001], [1.5001]]) / 5),
    # baselines (2 * 1 + 0) / 3 and 3/2
    ('opo', -np.array([[1 / 3, -2 / 3], [1.5, -1.5]]) / 5),
    # of one reward: the z-scores, whose mean is 0, over their own std
    ('gdpo', (-ZSCORE / (ZSCORE.std(ddof=1) + 1e-4) + 0.001 / 2) / LENGTHS / 4),
    # the best by its lead over the second
    ('pkpo', -np.array([[1, 0], [3, 0]]) / LENGTHS / 4),
    ('dual_clip', (-ZSCORE + 0.001 / 2) / LENGTHS / 4),
    # 4 sigmoid' at 0 is 1, whatever the temperature
    # all tokens, as none is chosen here
    ('top_entropy', -ZSCORE / 5),
    ('clip_cov', -ZSCORE / 5),
    ('kl_cov', -ZSCORE / 5),
    ('sapo', -ZSCORE / LENGTHS / 4),
    ('gmpo', -ZSCORE / LENGTHS / 4),
    ('luspo', -ZSCORE / 4),
    ('vespo', -ZSCORE / 5),
    ('dppo', -ZSCORE / 5),
    ('vaco', -ZSCORE / LENGTHS / 4),
    ('icepop', -ZSCORE / LENGTHS / 4),
    # 3 tokens of one prompt, 2 of the other; the std of advantages as above
    ('scale_rl', -CENTRED / (math.sqrt(5 / 3) + 1e-4) / np.array([[3], [2]]) / 2),
    # k3 weighted: the slope of r k3 is k3 + 1 - ref/pi = 1/2 + ln 2 - 1 + 1/2
    ('deepseek_v32', (-ZSCORE + 0.001 * LN2) / LENGTHS / 4),
  ],
)
def test_slopes_of_the_presets(name, slope):
  config = dataclasses.replace(algorithms.PRESETS[name], pass_k=2)
  mask = np.arange(3) < LENGTHS[..., None]
  logp = np.full((2, 2, 3), -1.5, np.float32)
  given = outcomes(jnp.array([[1.0, 0], [3, 0]]), lengths=jnp.asarray(LENGTHS))
  advantage = grpo.group_advantage(given, config=config)
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
      f'grpo.advantage: expected one of {", ".join(grpo.ADVANTAGES)}, got '
      "'group_zcore'; did you mean 'group_zscore'?",
    ),
    (
      {'ratio': 'word'},
      "grpo.ratio: expected one of token, sequence, geometric, got 'word'",
    ),
    (
      {'surrogate': 'clip_weight'},
      f'grpo.surrogate: expected one of {", ".join(grpo.SURROGATES)}, got '
      "'clip_weight'; did you mean 'clipped_weight'?",
    ),
    (
      {'correction': 'clamp'},
      'grpo.correction: expected one of none, truncate, mask, sequence_truncate, '
      "sequence_mask, geometric_mask, off_policy_mask, got 'clamp'",
    ),
    (
      {'kl': 'k4'},
      "grpo.kl: expected one of none, k1, k2, k3, k3_weighted, got 'k4'",
    ),
    (
      {'mean': 'output'},
      'grpo.mean: expected one of outputs, tokens, prompts, constant, sums, got '
      "'output'; did you mean 'outputs'?",
    ),
    ({'token_share': 0.0}, 'grpo.token_share: expected above 0, at most 1, got 0.0'),
    (
      {'surrogate': 'kl_cov'},
      "grpo.tokens: expected 'top_covariance' with grpo.surrogate 'kl_cov', and with "
      "no other, got 'all' with 'kl_cov'",
    ),
    (
      {'tokens': 'top_covariance'},
      "grpo.tokens: expected 'top_covariance' with grpo.surrogate 'kl_cov', and with "
      "no other, got 'top_covariance' with 'clip'",
    ),
    ({'pass_k': 1}, 'grpo.pass_k: expected 2 or more, got 1'),
    (
      {'importance_floor': 2.0},
      'grpo.importance_floor: expected less than grpo.importance_cap = 2.0, got 2.0',
    ),
    (
      {'kl': 'none', 'kl_coef': 0.0, 'kl_in': 'reward'},
      "grpo.kl_in: expected 'loss' with grpo.kl 'none', got 'reward'; set grpo.kl to "
      "'k1'",
    ),
    (
      {'kl': 'k1', 'kl_coef': 0.0, 'kl_in': 'reward'},
      "grpo.kl_coef: expected above 0 with grpo.kl_in 'reward', got 0",
    ),
    (
      {'advantage': 'group_relative_to_mean', 'kl_in': 'reward'},
      "grpo.kl_in: expected 'loss' with grpo.advantage 'group_relative_to_mean', whose "
      "rewards must not be below 0, got 'reward'",
    ),
    (
      {'advantage': 'reward_decoupled', 'kl_in': 'reward'},
      "grpo.kl_in: expected 'loss' with grpo.advantage 'reward_decoupled', which takes "
      "each reward by itself, got 'reward'",
    ),
    (
      {'surrogate': 'geometric_mean', 'ratio': 'geometric'},
      "grpo.ratio: expected 'token' with grpo.surrogate 'geometric_mean', which takes "
      "the ratio of outputs by itself, got 'geometric'",
    ),
    (
      {'surrogate': 'gamma_kernel'},
      "grpo.correction: expected 'none' with grpo.surrogate 'gamma_kernel', which "
      "corrects by itself, got 'truncate'",
    ),
    (
      {'surrogate': 'dual_clip', 'ratio_cap': 1.1},
      'grpo.ratio_cap: expected at least 1 + grpo.clip_high with grpo.surrogate '
      "'dual_clip', 1.2, got 1.1",
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
  config = GRPOConfig(advantage=name, pass_k=2)
  message = (
    f'rl.group_size: the advantage {name!r} compares the samples of a prompt and needs '
    '2 or more, got 1; raise rl.group_size, or set rl.grpo.advantage to '
    "'batch_whitened'"
  )
  for call in (
    lambda: grpo.check_group_size(config, 1, 4),
    lambda: grpo.group_advantage(outcomes(jnp.zeros((4, 1))), config=config),
  ):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared whole, below
      call()
    assert str(error.value) == message
  grpo.check_group_size(config, 2, 1)


def test_an_advantage_that_compares_no_group_takes_one_output(monkeypatch):
  monkeypatch.setitem(
    grpo.ADVANTAGES, 'own', lambda outcomes, numbers: outcomes.reward - 0.5
  )
  config = GRPOConfig(advantage='own')
  grpo.check_group_size(config, 1, 1)
  got = grpo.group_advantage(outcomes(jnp.array([[0.0], [1.0]])), config=config)
  assert got.tolist() == [[-0.5], [0.5]]
  # One that says that it does is refused.
  monkeypatch.setattr(grpo, 'WITHIN_GROUP', {*grpo.WITHIN_GROUP, 'own'})
  with pytest.raises(ValueError, match="advantage 'own' compares the samples of a"):
    grpo.check_group_size(config, 1, 4)


def test_an_advantage_of_another_shape_is_named(monkeypatch):
  monkeypatch.setitem(
    grpo.ADVANTAGES, 'own', lambda outcomes, numbers: outcomes.reward.mean(1)
  )
  expected = r"expected 'own' to return one .* output, \(4, 2\), got \(4,\); fix"
  with pytest.raises(ValueError, match=expected):
    grpo.group_advantage(
      outcomes(jnp.zeros((4, 2))), config=GRPOConfig(advantage='own')
    )


def signs(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  del numbers
  return jnp.sign(outcomes.reward - outcomes.reward.mean(1, keepdims=True))


def squared_ratio(tokens: Tokens, numbers: Numbers) -> jax.Array:
  del numbers
  return jnp.exp(2 * (tokens.logp - tokens.old_logp))


def gain_per_ratio(tokens: Tokens, numbers: Numbers) -> jax.Array:
  del numbers
  return tokens.advantage / tokens.ratio


def halved(tokens: Tokens, numbers: Numbers) -> jax.Array:
  del numbers
  return jnp.full_like(tokens.logp, 0.5)


def difference(tokens: Tokens, numbers: Numbers) -> jax.Array:
  del numbers
  assert tokens.ref_logp is not None
  return tokens.logp - tokens.ref_logp


def summed(tokens: Tokens, numbers: Numbers) -> jax.Array:
  del numbers
  return tokens.mask


def test_a_choice_may_be_a_function_of_an_experiment():
  config = GRPOConfig(
    advantage=signs,
    ratio=squared_ratio,
    surrogate=gain_per_ratio,
    correction=halved,
    kl=difference,
    mean=summed,
    kl_coef=0.5,
  )
  reward = jnp.array([[0.0, 1.0, 1.0]])
  advantage = grpo.group_advantage(outcomes(reward), config=config)
  assert advantage.tolist() == [[-1.0, 1.0, 1.0]]
  loss, metrics = objective(
    jnp.log(jnp.full((1, 3, 2), 0.5)),
    advantage,
    jnp.array([[[1, 1], [1, 0], [1, 0]]], bool),
    old_logp=jnp.log(jnp.full((1, 3, 2), 0.25)),
    ref_logp=jnp.log(jnp.full((1, 3, 2), 1.0)),
    config=config,
  )
  # Ratios are (0.5 / 0.25)^2 = 4, gains -1/8 twice and 1/8 twice, which cancel. Each of
  # the four tokens has a penalty of 0.5 log(0.5 / 1).
  np.testing.assert_allclose(loss, 4 * 0.5 * math.log(0.5), rtol=1e-6)
  assert 'clip_up' not in metrics


def test_a_function_of_a_table_is_the_choice_of_its_name():
  config = GRPOConfig(advantage=group_zscore, surrogate=clipped, mean=mean_outputs)
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
    GRPOConfig(kl=functools.partial(difference))


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
    'cispo': ('0.28',),
    'rloo': ('without its KL', "'k1' with rl.grpo.kl_in 'reward'"),
    'reinforce_pp': ('k2 in the loss', 'k1 from the reward'),
    'gdpo': ('with one reward',),
    'pkpo': ('pass_k',),
    'clip_cov': ('drawn among all',),
    'dppo': ('0.2 here', 'clip_low'),
    'vaco': ('0.2 here', 'realigned'),
    'icepop': ('int8_rollout',),
    'scale_rl': ('float32 head', 'asynchronous'),
    'deepseek_v32': ('two of the four', 'experts', 'top-p'),
  }
  notes = {name: row.note for name, row in algorithms.ALGORITHMS.items() if row.note}
  assert notes.keys() == expected.keys()
  for name, words in expected.items():
    assert all(word in notes[name] for word in words)


def test_more_outputs_than_a_group_has_cannot_be_chosen_from():
  config = GRPOConfig(advantage='pass_at_k', pass_k=5)
  with pytest.raises(ValueError, match=r'pass_k: expected at most rl.group_size = 4'):
    grpo.check_group_size(config, 4, 1)
  grpo.check_group_size(config, 5, 1)


def test_a_function_with_other_arguments_is_refused():
  def by_ratio(ratio, mask, config):
    del mask, config
    return ratio

  def by_reward(reward):
    return reward

  expected = r'grpo.ratio: expected a function of \(tokens, numbers\), see r1jax/terms/'
  with pytest.raises(
    ValueError, match=expected + r'.*by_ratio\(ratio, mask, config\)$'
  ):
    GRPOConfig(ratio=by_ratio)
  expected = r'grpo.advantage: expected a function of \(outcomes, numbers\), see .*'
  with pytest.raises(ValueError, match=expected + r'by_reward\(reward\)$'):
    GRPOConfig(advantage=by_reward)


def test_one_output_cannot_be_whitened():
  config = GRPOConfig(advantage='batch_whitened')
  expected = 'rl.prompts_per_step: .* needs 2 or more, got 1; raise rl.prompts_per_step'
  with pytest.raises(ValueError, match=expected):
    grpo.check_group_size(config, 1, 1)
  grpo.check_group_size(config, 2, 1)


def test_a_group_of_one_can_be_whitened():
  # mean 1, deviations -1 and 1, variance 2
  config = GRPOConfig(advantage='batch_whitened')
  got = grpo.group_advantage(outcomes(jnp.array([[0.0], [2.0]])), config=config)
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
