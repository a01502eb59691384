"""What is compiled is kept and counted."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from r1jax.stages import compilation


def test_programs_compiled_meanwhile_are_counted():
  double = jax.jit(lambda x: 2 * x)
  one, two = jnp.ones(1), jnp.ones(2)
  with compilation.Compilations() as compiled:
    double(one)
    assert compiled.programs == 1
    double(one)
    assert compiled.programs == 1
    double(two)  # another shape
  assert compiled.programs == 2
  assert compiled.seconds > 0
  jax.jit(lambda x: 3 * x)(one)
  assert compiled.programs == 2


@pytest.mark.parametrize(
  ('given', 'expected'), [(None, '/cache/r1jax'), ('/elsewhere', '/elsewhere')]
)
def test_a_place_that_the_user_chose_is_kept(monkeypatch, given, expected):
  monkeypatch.setenv('XDG_CACHE_HOME', '/cache')
  config: Any = jax.config
  before = config.jax_compilation_cache_dir
  config.update('jax_compilation_cache_dir', given)
  compilation.keep_on_disk()
  found = config.jax_compilation_cache_dir
  config.update('jax_compilation_cache_dir', before)
  assert found == expected
