"""What is read from the text of compiled programs."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from gmvq_jax.planning import hlo
from gmvq_jax.runtime import distributed

# The forms that TPU and GPU compilers use, which CPUs do not.
PROGRAM = """HloModule jit_step, is_scheduled=true

%add.1 (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %sum.1 = f32[] add(%a.1, %b.1)
}

%body.1 (x.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %x.1 = (s32[], f32[8,4]{1,0:T(8,128)}) parameter(0)
  %y.1 = f32[8,4]{1,0} get-tuple-element(%x.1), index=1
  %z.1 = f32[8,4]{1,0} all-reduce(%y.1), replica_groups={{0,1}}, to_apply=%add.1, metadata={op_name="jit(step)/loop/psum"}
  %f.1 = f32[8,4]{1,0} fusion(%z.1), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"100"}
  ROOT %t.1 = (s32[], f32[8,4]{1,0}) tuple(%y.1, %f.1)
}

%fused.1 (p.1: f32[8,4]) -> f32[8,4] {
  ROOT %p.1 = f32[8,4]{1,0} parameter(0)
  %hidden.1 = f32[8,4]{1,0} all-reduce(%p.1), to_apply=%add.1, backend_config={"estimated_cycles":"9"}
}

%condition.1 (x.2: (s32[], f32[8,4])) -> pred[] {
  %x.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  %limit.1 = s32[] constant(5)
  ROOT %less.1 = pred[] compare(%x.2, %limit.1), direction=LT
}

ENTRY %main.1 (arg.1: f32[8,4], arg.2: bf16[3]) -> f32[8,4] {
  %arg.1 = f32[8,4]{1,0} parameter(0)
  %w.1 = (s32[], f32[8,4]{1,0}) while(%arg.1), condition=%condition.1, body=%body.1, backend_config={"known_trip_count":{"n":"7"}}
  %w.2 = (s32[], f32[8,4]{1,0}) while(%arg.1), condition=%condition.1, body=%body.1
  %g.1 = (bf16[3]{0}, bf16[6]{0}) all-gather-start(%arg.2), replica_groups={{0,1}}, dimensions={0}
  %g.2 = bf16[6]{0} all-gather-done(%g.1)
  %r.1 = f32[4]{0} reduce-scatter(%arg.1), replica_groups=[1,2]<=[2], to_apply=%add.1
  %c.1 = (f32[2]{0}, f32[3]{0}) all-reduce(%arg.1, %arg.1), to_apply=%add.1, backend_config={"estimated_cycles":"11"}
  ROOT %out.1 = f32[8,4]{1,0} get-tuple-element(%w.1), index=1
}
"""  # noqa: E501


def test_each_form_of_collective_is_counted():
  found = [tuple(x) for x in hlo.collectives(PROGRAM)]
  assert found == [
      ('all-reduce', 7 * 128, 7, 'jit(step)/loop/psum'),
      ('all-reduce', 5 * 128, 5, 'jit(step)/loop/psum'),
      ('reduce-scatter', 32, 1, ''),
      ('all-reduce', 20, 1, ''),
      ('all-gather', 12, 1, ''),
  ]


def test_cycles_of_loops_are_counted_each_time():
  assert hlo.cycles(PROGRAM) == 12 * 100 + 11
  assert hlo.cycles(PROGRAM.replace('estimated_cycles', 'other')) is None
  unknown = PROGRAM.replace('"11"', f'"{2**63 - 1}"')
  assert hlo.cycles(unknown) is None


def test_a_real_program():
  mesh = distributed.data_mesh(2)

  def step(x, w):
    def body(_, total):
      return total + jax.lax.psum(total, distributed.AXIS)

    looped = jax.lax.fori_loop(0, 3, body, x)
    return jax.lax.psum(jnp.sum(looped @ w, axis=0), distributed.AXIS)

  batched, whole = PartitionSpec(distributed.AXIS), PartitionSpec()
  program = jax.jit(
      jax.shard_map(
          step,
          mesh=mesh,
          in_specs=(batched, whole),
          out_specs=whole,
          check_vma=False,
      )
  )
  x, w = np.ones((4, 8), np.float32), np.ones((8, 5), np.float32)
  found = hlo.collectives(program.lower(x, w).compile().as_text())
  assert {(c.kind, c.bytes, c.times) for c in found} == {
      ('all-reduce', 3 * 2 * 8 * 4, 3),
      ('all-reduce', 5 * 4, 1),
  }
  assert all('psum' in c.what for c in found)
