#!/usr/bin/env bash
# Settings of XLA, NCCL and JAX for all launchers. It sets only what was measured on this
# code.
#
# Source this file, do not run it:  source launch/flags.sh

# CPUs: JAX takes the size of its thread pool from NPROC, or from the number of cores. With
# fewer threads than devices, a collective dead-locks (seen on 2 cores with jax 0.10.2 and
# 0.11.2).
if (($(nproc) < 16)); then
  export NPROC=${NPROC:-16}
fi

# JAX keeps compiled programs, by default in ~/.cache/lt_jax/compiled. Use a folder that
# all hosts share and only you can write to: JAX executes the files in it. An empty value
# disables the cache.
# https://docs.jax.dev/en/latest/persistent_compilation_cache.html
#export JAX_COMPILATION_CACHE_DIR=/shared/me/compiled

# DETERMINISTIC=1 makes runs on the same GPUs bitwise equal. By default some sums (scatters,
# convolution gradients) add in the order in which threads finish. It is slower; how much
# was not measured.
# https://github.com/openxla/xla, xla/debug_options_flags.cc: xla_gpu_deterministic_ops
if [[ ${DETERMINISTIC:-0} == 1 ]]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
fi

# NCCL finds NVLink, InfiniBand and Ethernet by itself, and 161 MB of gradients per step
# need no tuning (docs/benchmarks/scaling.md). If it hangs at the first step, or is slow,
# choose the network between the hosts:
# https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
#export NCCL_SOCKET_IFNAME=eth0
# To log what NCCL found:
#export NCCL_DEBUG=INFO

# Often seen in launch scripts, but not needed here:
#   --xla_gpu_enable_latency_hiding_scheduler, --xla_gpu_all_reduce_combine_threshold_bytes
#     are for models that send weights or activations during the step. Here each step sends
#     only gradients, once.
#   XLA_PYTHON_CLIENT_MEM_FRACTION, XLA_PYTHON_CLIENT_PREALLOCATE
#     share a GPU between programs. A training job has its GPUs to itself.
#   NCCL_IB_*, NCCL_NET_*, NCCL_PROTO, NCCL_ALGO
#     depend on the cluster's network; ask its operators.
