# shellcheck shell=sh
# Flags of XLA for training on several chips: to be sourced, in sh or bash, before the command that they are for.
#
#     . launch/xla_flags.sh
#     python -m imagen_jax.train …
#
# They let communication, of gradients and of parameters that are split over fsdp, go on while something is computed.
# MaxText and MaxDiffusion set the same ones; none has been timed here, so measure with and without. What the environment
# has set already is left in place behind them, and the last word on a flag counts. libtpu 0.0.42 and jaxlib 0.10.2, which
# go with the lock, know them all: one that does not stops at its start and names what it does not know.

flag() { flags="$flags $1"; }

# TPU: read by libtpu. A string without backslashes or line breaks, where it would stop reading.
flags=
# Gathering split parameters is begun early and waited for late, with other work between.
flag --xla_enable_async_all_gather=true
# The same for summing gradients.
flag --xla_enable_async_all_reduce=true
# Instructions are ordered so that what was begun early has the time that it takes.
flag --xla_tpu_enable_latency_hiding_scheduler=true
# A collective is fused with a computation that does not need it, and the two run together.
flag --xla_tpu_enable_async_collective_fusion=true
# It may be spread over several computations: one is often too short for it.
flag --xla_tpu_enable_async_collective_fusion_multiple_steps=true
# Those computations may be products of matrices and convolutions.
flag --xla_tpu_overlap_compute_collective_tc=true
# Gradients are summed between slices, over the slow network, while the backward pass goes on.
flag --xla_tpu_enable_data_parallel_all_reduce_opt=true
# Also where their arrays differ in size, as those of a U-Net's levels do.
flag --xla_tpu_data_parallel_opt_different_sized_ops=true
export LIBTPU_INIT_ARGS="${flags# }${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"

# GPU: read by jaxlib, and set only where there is one.
if command -v nvidia-smi >/dev/null; then
	flags=
	# As on a TPU: collectives are begun early and waited for late.
	flag --xla_gpu_enable_latency_hiding_scheduler=true
	# Triton makes every matrix product that it can, with what follows it in the same kernel.
	flag --xla_gpu_triton_gemm_any=true
	export XLA_FLAGS="${flags# }${XLA_FLAGS:+ $XLA_FLAGS}"
fi

unset flags
unset -f flag
