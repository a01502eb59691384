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
    programs, seconds = compiled.since()
    assert programs == 1
    assert seconds > 0
    double(one)
    assert compiled.since() == (0, 0.0)
    double(two)  # another shape
  jax.jit(lambda x: 3 * x)(one)
  assert compiled.since()[0] == 1


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


@pytest.mark.parametrize(('given', 'expected'), [(None, 0.1), ('0.5', 2.0)])
def test_small_programs_are_kept_unless_the_user_says_otherwise(
  monkeypatch, given, expected
):
  name = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
  monkeypatch.delenv(name, raising=False)
  if given:
    monkeypatch.setenv(name, given)
  config: Any = jax.config
  before = config.jax_persistent_cache_min_compile_time_secs
  config.update(name.lower(), 2.0)  # jax read the variable when it was imported
  compilation.keep_on_disk()
  found = config.jax_persistent_cache_min_compile_time_secs
  config.update(name.lower(), before)
  assert found == expected
