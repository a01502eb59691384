"""What holds for every test; set before anything imports jax, which reads it once."""

import os
import signal
from collections.abc import Iterator

import hypothesis
import machines
import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Eight devices, so that sharding is tested on a laptop.
flags = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = f'{machines.cpus(8)} {flags}'.strip()
# [B] + [B, T] is a mistake more often than it is meant.
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'

import jax  # noqa: E402

jax.devices()  # reads XLA_FLAGS
# The TPU's compiler, which some tests load, ends a process with flags of CPUs.
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count=8 {flags}'.strip()

# A job in the background ignores Ctrl-C, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on each run, however busy the machine is.
hypothesis.settings.register_profile('r1jax', deadline=None, derandomize=True)
hypothesis.settings.load_profile('r1jax')

# Files whose tests run for minutes; the first ones first.
LONG = ('test_sharding', 'test_hosts', 'test_smoke', 'test_r1', 'test_stage_meshes')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts long files at the beginning, or one core would be left with one at the end."""
  place = {name: number for number, name in enumerate(LONG)}
  items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


# Files with the code that draws. The check makes every call of a program slower.
DRAWS = (
  *('test_sampling', 'test_rollout', 'test_continuous', 'test_rl', 'test_grpo_step'),
  *('test_compile_ahead', 'test_evaluation', 'test_sft', 'test_stage'),
)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """The prompts that an evaluation asks, filled while it runs."""
  from experiments import evaluate

  seen: list[str] = []
  original = evaluate.Sampler.sample

  def sample(self, params, key, chosen, **settings):
    seen.extend(self.policy.prompt(problem.question) for problem in chosen)
    return original(self, params, key, chosen, **settings)

  monkeypatch.setattr(evaluate.Sampler, 'sample', sample)
  return seen


@pytest.fixture(autouse=True, scope='module')
def no_random_key_is_used_twice(request: pytest.FixtureRequest) -> Iterator[None]:
  """JAX raises an error for it, in some files."""
  if request.path.stem not in DRAWS:
    yield
    return
  with jax.debug_key_reuse(True):
    yield
