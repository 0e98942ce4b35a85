"""Which code each position takes, how probable it was, and its gradient.

A softmax over codes, in the manner of attention: the logits of a position are
products of its query with the keys of the codes, and what it gets is a value.
GM-VQ, SQ-VAE and Gumbel-VQVAE differ in their queries and keys.

Shapes: `N` rows (positions), `C` codes, `K` the dimension of queries and keys,
`L` that of values.
"""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gmvq_jax.ops import blockwise
from gmvq_jax.ops import categorical
from gmvq_jax.ops import chunked_map
from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import kept_assignment
from gmvq_jax.ops import numerics
from gmvq_jax.ops import placement

METHODS = ('auto', 'plain', 'kept', 'tiled')

# From so many logits on, probabilities are kept or computed in tiles; up to so
# many on each device they are kept.
_LARGE = 2**20
_KEPT = 2**25
# Logits in a tile, for the caches of a CPU and to fill an accelerator; where
# that would leave too few rows, and where it would be too many codes.
_CPU_TILE = 2**17
_ACCELERATOR_TILE = 2**22
_MIN_ROWS = 64
_MAX_TILE = 2**22
_MAX_CODES = 2**12


class Plan(NamedTuple):
  """How rows are assigned; static.

  Attributes:
    rows: in a tile. None: all N, in arrays of `[N, C]`.
    codes: at a time.
    shards: parts of the rows, each computed by itself.
    kept: whether the backward pass reads `[N, C]` that the forward pass keeps.
  """

  rows: chunked_map.Rows | None
  codes: int
  shards: int
  kept: bool = False

  @property
  def plain(self) -> bool:
    """Whether derivatives are left to JAX."""
    return self.rows is None and not self.kept


class Assignment(NamedTuple):
  """Codes of rows.

  Attributes:
    z: `[N, L]`, the value of the code, or the relaxed mixture of values. Its
      gradient to queries and keys is that of the relaxed mixture.
    codes: `[N]` int32.
    codewords: `[N, L]`, the values of the codes.
    posterior: `[C]`, the sum over rows of weight times probability.
    entropy: `[N]`, of the probabilities of each row, in nats.
  """

  z: jax.Array
  codes: jax.Array
  codewords: jax.Array
  posterior: jax.Array
  entropy: jax.Array


def plan(
    method: str,
    num_rows: int,
    num_codes: int,
    devices: int,
    *,
    whole: bool = False,
    keep: bool = False,
) -> Plan:
  """Returns how to assign rows to codes.

  Args:
    method: `plain` holds arrays of `[N, C]`, `kept` two of them until the
      backward pass, `tiled` none. `auto` is `plain` for small ones, `kept` up
      to 2^25 logits a device, else `tiled`. They are the same function of their
      arguments, but only `plain` has forward-mode derivatives.
    num_rows: N.
    num_codes: C.
    devices: D, from `placement.num_devices`. Rows are split into gcd(N, D)
      shards. If the rows lie on fewer than D devices, each device has several
      shards, and `kept` holds that many times as much.
    whole: whether a tile must hold all codes.
    keep: whether `auto` may be `kept`: where there is a gradient.
  """
  shards = math.gcd(num_rows, devices)
  if method == 'auto':
    size = num_rows * num_codes
    method = 'plain' if size < _LARGE else 'tiled'
    if keep and shards == devices and _LARGE <= size <= _KEPT * shards:
      method = 'kept'
  if method == 'plain' or not num_rows or (method == 'kept' and whole):
    return Plan(None, num_codes, 1)
  if method == 'kept':
    return Plan(None, num_codes, shards, kept=True)
  # All shards may lie on one device.
  at_most = max(_MAX_TILE // shards, 1)
  codes, tiles = num_codes, (_CPU_TILE, _ACCELERATOR_TILE)
  if not whole and at_most // codes < _MIN_ROWS:
    codes, tiles = min(_MAX_CODES, num_codes), (at_most, at_most)
  rows = [max(min(tile, at_most) // codes, _MIN_ROWS) for tile in tiles]
  if whole:
    rows = [max(min(x, at_most // codes), 1) for x in rows]
  return Plan(chunked_map.Rows(*rows), codes, shards)


def map_positions(
    function: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    h: jax.Array,
    *,
    num_codes: int,
    mask: jax.Array,
    keys: Any = None,
    axis_name: str | None = None,
    method: str = 'auto',
    keep: bool = False,
) -> tuple[jax.Array, Any]:
  """Computes a function of positions, in tiles where there are many.

  Args:
    function: `(plan, params, h [n, K], weights [n], seeds) -> (posterior [C],
      results)` of any n positions; see `assign`. `results` are of each, `[n,
      ...]`. It closes over no traced value.
    params: a pytree of floating-point arrays.
    h: `[..., K]`.
    num_codes: C.
    mask: `[...]`, positions that count in `q_c` (True or a weight).
    keys: a pytree of random keys. `seeds` is like it, `[n, 2]`.
    axis_name: a mapped axis (of `pmap` or `shard_map`), of which the positions
      are a part.
    method: see `plan`.
    keep: see `plan`.

  Returns:
    `q_c [C]`, eq 12, and the results, `[..., *rest]`.
  """
  num_rows = mask.size
  devices = placement.num_devices(h)
  this_plan = plan(method, num_rows, num_codes, devices, keep=keep)
  weights = mask.reshape(-1).astype(jnp.result_type(jnp.float32, h))
  rows = (h.reshape(num_rows, h.shape[-1]), weights)
  seeds = jax.tree.map(
      lambda key: counter_rng.row_seeds(key, num_rows, axis_name=axis_name),
      keys,
  )

  def of_rows(
      params: Any, rows: tuple[jax.Array, jax.Array], seeds: Any
  ) -> tuple[jax.Array, Any]:
    return function(this_plan, params, *rows, seeds)

  if this_plan.rows is None:
    total, results = _by_shards(of_rows, this_plan.shards, params, rows, seeds)
  else:
    total, results = chunked_map.map_rows(
        of_rows,
        this_plan.rows,
        this_plan.shards,
        *numerics.vary((params, rows, seeds)),
    )
  count = jnp.sum(weights)
  if axis_name is not None:
    total, count = jax.lax.psum((total, count), axis_name)
  q_c = total / jnp.maximum(count, jnp.finfo(total.dtype).tiny)
  return q_c, jax.tree.map(
      lambda x: x.reshape(*mask.shape, *x.shape[1:]), results
  )


def _by_shards(
    function: Callable[..., tuple[jax.Array, Any]],
    shards: int,
    params: Any,
    rows: Any,
    seeds: Any,
) -> tuple[jax.Array, Any]:
  """Returns the function of all rows, of which each shard computes its own.

  Each shard has a copy of the parameters, so that their gradients are added up
  within a shard first: devices send one sum for each parameter.
  """
  if shards == 1:
    return function(params, rows, seeds)

  def split(x: jax.Array) -> jax.Array:
    return x.reshape(shards, -1, *x.shape[1:])

  totals, results = jax.vmap(function)(
      jax.tree.map(lambda x: jnp.broadcast_to(x, (shards, *x.shape)), params),
      jax.tree.map(split, rows),
      jax.tree.map(split, seeds),
  )
  return jnp.sum(totals, axis=0), jax.tree.map(
      lambda x: x.reshape(-1, *x.shape[2:]), results
  )


def assign(
    plan: Plan,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    weights: jax.Array,
    seeds: jax.Array | None = None,
    temperature: jax.Array | None = None,
    hard: bool = True,
) -> Assignment:
  """Draws a code for every row, or takes the most probable.

  Args:
    plan: how; of all rows, of which these may be some.
    queries: `[N, K]`.
    keys: `[C, K]`. Logits are `queries keys^T`.
    values: `[C, L]`.
    weights: `[N]`, of the rows in `posterior`.
    seeds: `[N, 2]`, of `counter_rng.row_seeds`, to sample codes. None takes the
      most probable, the first of equals, without a gradient to the logits.
    temperature: of the relaxed one-hot; positive.
    hard: whether z is one value (True) or the relaxed mixture of them.
  """
  queries, keys, values = numerics.promote(queries, keys, values)
  weights = weights.astype(queries.dtype)
  arguments = (queries, keys, values, weights, seeds, temperature, hard)
  if plan.plain:
    return _plain(*arguments)
  return _by_kernel(plan, *arguments)


def _plain(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    weights: jax.Array,
    seeds: jax.Array | None,
    temperature: jax.Array | None,
    hard: bool,
) -> Assignment:
  logits = jnp.matmul(queries, keys.T, precision=numerics.PRECISION)
  log_probs = jax.nn.log_softmax(logits)
  if seeds is None:
    _, codes = numerics.argmax(log_probs)
    z = values[codes]
  else:
    assert temperature is not None
    gumbel = counter_rng.gumbel(seeds, len(keys), dtype=logits.dtype)
    chosen, codes = categorical.relaxed_one_hot(
        log_probs + gumbel, temperature=temperature, hard=hard
    )
    z = jnp.matmul(chosen, values, precision=numerics.PRECISION)
  return Assignment(
      z=z,
      codes=codes,
      codewords=values[codes],
      posterior=jnp.matmul(
          weights, jnp.exp(log_probs), precision=numerics.PRECISION
      ),
      entropy=categorical.posterior_entropy(log_probs),
  )


def _by_kernel(
    plan: Plan,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    weights: jax.Array,
    seeds: jax.Array | None,
    temperature: jax.Array | None,
    hard: bool,
) -> Assignment:
  num_codes, noisy = len(keys), seeds is not None
  soft = noisy and not hard
  inputs = (
      queries,
      keys,
      values,
      jnp.asarray(temperature if noisy else 1, queries.dtype),
      weights,
      seeds if noisy else jnp.zeros((len(queries), 2), jnp.uint32),
  )
  if plan.kept:
    outputs = kept_assignment.assign(noisy, soft, *numerics.vary(inputs))
  else:
    tiling = blockwise.Tiling(noisy, soft, num_codes, plan.codes)
    padding = ((0, -num_codes % plan.codes), (0, 0))
    padded = (queries, jnp.pad(keys, padding), jnp.pad(values, padding))
    outputs = blockwise.assign(tiling, *padded, *inputs[3:])
  codewords = values[outputs.codes]
  return Assignment(
      z=outputs.relaxed if soft else codewords + outputs.relaxed,
      codes=outputs.codes,
      codewords=codewords,
      posterior=outputs.posterior[:num_codes],
      entropy=outputs.entropy,
  )
