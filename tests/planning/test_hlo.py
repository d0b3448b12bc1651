"""The HLO parser and the costs of programs, as XLA prints them for TPUs and CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.planning import hlo, hlo_cost
from imagen_jax.planning.flops import count_flops
from tests.helpers.hlo import compile_module, total_flops

# in the form of XLA's programs for TPUs: layouts with tiles and memory spaces, no trip counts
LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=8

%inside (param_0: bf16[6,128,512], param_1: s32[]) -> bf16[1,128,512] {
  %param_0 = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %cut = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0, %param_1, %zero, /*index=3*/%zero), dynamic_slice_sizes={1,128,512}
}

%body (state: (s32[], bf16[6,128,512])) -> (s32[], bf16[6,128,512]) {
  %state = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %all = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %one = s32[]{:T(128)} constant(1)
  %part = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} fusion(%all, %i), kind=kLoop, calls=%inside, metadata={op_name="jit(f)/cut"}
  %near = bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)} copy(%part)
  %whole = bf16[1,512,512]{2,1,0:T(8,128)(2,1)} all-gather(%near), channel_id=1, replica_groups=GROUPS, dimensions={1}
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) tuple(%next, %all)
}

%until (state.1: (s32[], bf16[6,128,512])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %end = s32[]{:T(128)} constant(6)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %end), direction=LT
}

ENTRY %main (x: bf16[6,128,512]) -> bf16[6,128,512] {
  %x = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %start = s32[]{:T(128)} constant(2)
  %copied = s32[]{:T(128)} copy(%start)
  %pair = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) tuple(%copied, %x)
  %loop = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) while(%pair), condition=%until, body=%body
  ROOT %result = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501  as XLA breaks lines
SLICE_BYTES = 128 * 512 * 2


def loop_module(groups="{{0,1,2,3},{4,5,6,7}}"):
    return hlo.parse_module(LOOP.replace("GROUPS", groups))


def test_trip_count():
    module = loop_module()
    assert module.execution_counts["body"] == module.execution_counts["inside"] == 4
    assert module.execution_counts["main"] == 1
    assert module.unbounded_loops == []


def test_trip_count_with_step():
    module = hlo.parse_module(LOOP.replace("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(3)"))
    assert module.execution_counts["body"] == 2


def test_unbounded_loop_counts_once():
    module = hlo.parse_module(LOOP.replace("%end = s32[]{:T(128)} constant(6)", "%end = s32[]{:T(128)} parameter(1)"))
    assert module.unbounded_loops == ["loop"]
    assert module.execution_counts["body"] == 1


def test_traffic_of_slice_and_vector_memory():
    traffic = {kernel.op_name: (kernel.count, kernel.bytes) for kernel in hlo_cost.find_kernels(loop_module())}
    assert traffic["jit(f)/cut"] == (4, 2 * SLICE_BYTES + 4)  # and its index
    assert traffic["near"] == (4, SLICE_BYTES)


@pytest.mark.parametrize(
    "groups, members",
    [
        ("{{0,1,2,3},{4,5,6,7}}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=8] {'a':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_groups(groups, members):
    (gather,) = hlo_cost.find_collectives(loop_module(groups))
    np.testing.assert_array_equal(gather.groups, members)
    assert (gather.kind, gather.count, gather.operand_bytes) == ("all-gather", 4, SLICE_BYTES)
    assert gather.sent_bytes == SLICE_BYTES * (len(members[0]) - 1)


@pytest.mark.parametrize(
    "kind, sent", [("all-reduce", 2 * 300), ("reduce-scatter", 300), ("all-to-all", 300), ("collective-permute", 400)]
)
def test_sent_bytes(kind, sent):
    """With 400 bytes in a group of 4: three quarters, or all of them; twice for an all-reduce."""
    assert hlo_cost.Collective(kind, 1, 400, np.arange(4)[None]).sent_bytes == sent


@pytest.mark.parametrize(
    "left, right, window, labels, expected",
    [
        ("5,7,3", "5,3,11", "size=5 stride=4 lhs_dilate=5", "0bf_0io->0bf", 2 * 5 * 7 * 3 * 11),
        ("2,7,3,1", "4,6,3,1", "size=1x4 pad=0_0x3_3 rhs_reversal=0x1", "0bf1_1oi0->0b1f", 2 * 2 * 7 * 3 * 4 * 6),
    ],
    ids=["batched, with holes", "several axes, with padding"],
)
def test_matmul_as_convolution(left, right, window, labels, expected):
    sizes = {"0bf": "5,7,11", "0b1f": "2,7,4,6"}[labels.partition("->")[2]]
    text = f"""HloModule jit_f

ENTRY %main (a: bf16[{left}], b: bf16[{right}]) -> bf16[{sizes}] {{
  %a = bf16[{left}] parameter(0)
  %b = bf16[{right}] parameter(1)
  ROOT %c = bf16[{sizes}] convolution(%a, %b), window={{{window}}}, dim_labels={labels}
}}
"""
    (kernel,) = hlo_cost.find_kernels(hlo.parse_module(text))
    assert kernel.flops == expected


@pytest.mark.parametrize("space, transfers", [("S(3)", 1), ("", 2)], ids=["to vector memory", "within HBM"])
def test_traffic_of_asynchronous_slice(space, transfers):
    text = f"""HloModule jit_f

ENTRY %main (x: bf16[4096,1024]) -> bf16[1024,1024] {{
  %x = bf16[4096,1024]{{1,0:T(8,128)(2,1)}} parameter(0)
  %begun = ((bf16[4096,1024]{{1,0:T(8,128)(2,1)}}), bf16[1024,1024]{{1,0:T(8,128)(2,1){space}}}, s32[]{{:S(2)}}) slice-start(%x), slice={{[0:1024], [0:1024]}}
  ROOT %part = bf16[1024,1024]{{1,0:T(8,128)(2,1){space}}} slice-done(%begun)
}}
"""  # noqa: E501  as XLA breaks lines
    (kernel,) = hlo_cost.find_kernels(hlo.parse_module(text))
    assert kernel.bytes == transfers * 1024 * 1024 * 2


def test_text_without_entry_raises():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse_module("HloModule nothing")


X, W = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))


def convolve(x, w, strides=(1, 1)):
    return jax.lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def strided_convolve(x, w):
    return convolve(x, w, (2, 2))


def scanned(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, jnp.stack([w] * 5))[0]


@pytest.mark.parametrize(
    "function, arguments",
    [
        (convolve, (X, W)),
        (jax.grad(lambda x, w: jnp.sum(jnp.sin(convolve(x, w))), argnums=(0, 1)), (X, W)),
        (strided_convolve, (X, W)),
        (scanned, (jnp.ones((3, 5)), jnp.ones((5, 5)))),
        (lambda q, k: jnp.einsum("bqnk,bsnk->bnqs", q, k), (jnp.ones((2, 3, 4, 5)), jnp.ones((2, 7, 4, 5)))),
    ],
    ids=["convolution", "gradient", "strided", "scan", "attention"],
)
@pytest.mark.xla
def test_compiled_flops_equal_jaxpr_flops(function, arguments):
    module = compile_module(jax.jit(function).lower(*arguments))
    assert total_flops(module) == count_flops(jax.make_jaxpr(function)(*arguments)) > 0


@pytest.mark.xla
def test_holes_of_strided_gradient_do_not_count():
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(strided_convolve(x, w))), argnums=(0, 1))
    executed = total_flops(compile_module(jax.jit(gradient).lower(X, W)))
    forward = count_flops(jax.make_jaxpr(strided_convolve)(X, W))
    # the jaxpr counts four times the operations of the gradient of x
    assert executed < 3.1 * forward < count_flops(jax.make_jaxpr(gradient)(X, W))
