# shellcheck shell=sh
# XLA flags for training on several chips. Source it, in sh or bash, before the command:
#
#     . launch/xla_flags.sh
#     imagen train …
#
# They overlap communication (gradients, and parameters that are sharded over fsdp) with computation. MaxText and
# MaxDiffusion set the same flags; none has been timed here, so measure with and without. Flags that the environment has
# set already are kept after these, and the last value of a flag counts. libtpu 0.0.42 and jaxlib 0.10.2, the versions of
# the lock, know all of them: an older or newer version ends at its start and names a flag that it does not know.

flag() { flags="$flags $1"; }

# TPU: read by libtpu. The string has no backslashes or line breaks: libtpu would stop reading there.
flags=
# Start all-gathers of sharded parameters early and wait for them late, with other work between.
flag --xla_enable_async_all_gather=true
# The same for all-reduces of gradients.
flag --xla_enable_async_all_reduce=true
# Schedule instructions so that asynchronous operations have time to finish.
flag --xla_tpu_enable_latency_hiding_scheduler=true
# Fuse a collective with an independent computation, so that both run at the same time.
flag --xla_tpu_enable_async_collective_fusion=true
# Spread a collective over several computations: one is often too short.
flag --xla_tpu_enable_async_collective_fusion_multiple_steps=true
# Let these computations be matrix products and convolutions.
flag --xla_tpu_overlap_compute_collective_tc=true
# All-reduce gradients between slices, over the slow network, during the backward pass.
flag --xla_tpu_enable_data_parallel_all_reduce_opt=true
# Also for arrays of different sizes, such as those of a U-Net's levels.
flag --xla_tpu_data_parallel_opt_different_sized_ops=true
export LIBTPU_INIT_ARGS="${flags# }${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"

# GPU: read by jaxlib, and set only where there is a GPU.
if command -v nvidia-smi >/dev/null; then
	flags=
	# As on a TPU: start collectives early and wait for them late.
	flag --xla_gpu_enable_latency_hiding_scheduler=true
	# Use Triton for every matrix product that it supports, fused with its epilogue.
	flag --xla_gpu_triton_gemm_any=true
	export XLA_FLAGS="${flags# }${XLA_FLAGS:+ $XLA_FLAGS}"
fi

unset flags
unset -f flag
