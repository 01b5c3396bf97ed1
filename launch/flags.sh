#!/usr/bin/env bash
# Settings of XLA, NCCL and JAX, in one place; every launcher here sources it. What is
# not here was left out on purpose: nothing is set that nobody measured on this code.
#
# Source it, do not run it:  source launch/flags.sh

# CPUs: JAX sizes the pool that runs virtual devices by NPROC, else by the cores there
# are. With fewer threads than devices a collective waits for a partner that has no
# thread to run on, for ever (seen on 2 cores with jax 0.10.2 and 0.11.2).
if (($(nproc) < 16)); then
  export NPROC=${NPROC:-16}
fi

# Compiled programs are kept between starts, by default in ~/.cache/lt_jax/compiled. Set
# it to a folder that all hosts see and that is yours alone (JAX executes what it finds
# there); set it empty to turn it off.
# https://docs.jax.dev/en/latest/persistent_compilation_cache.html
#export JAX_COMPILATION_CACHE_DIR=/shared/me/compiled

# DETERMINISTIC=1 asks for the same bits from every run on the same GPUs. Without it some
# sums (scatters, convolution gradients) add in the order in which threads come. It costs
# speed; how much was not measured.
# https://github.com/openxla/xla, xla/debug_options_flags.cc: xla_gpu_deterministic_ops
if [[ ${DETERMINISTIC:-0} == 1 ]]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
fi

# NCCL finds NVLink, InfiniBand and Ethernet by itself, and 161 MB of gradients a step are
# nothing to tune for (docs/benchmarks/scaling.md). One thing it cannot know is which of
# several networks joins the hosts; if it hangs at the first step or takes the slow one:
# https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
#export NCCL_SOCKET_IFNAME=eth0
# and what it found, when it does not start:
#export NCCL_DEBUG=INFO

# Left out, though often seen in launch scripts:
#   --xla_gpu_enable_latency_hiding_scheduler, --xla_gpu_all_reduce_combine_threshold_bytes
#     are for models whose weights or activations travel during the step; here only
#     gradients do, once.
#   XLA_PYTHON_CLIENT_MEM_FRACTION, XLA_PYTHON_CLIENT_PREALLOCATE
#     share a GPU between programs; a training job has its GPUs alone.
#   NCCL_IB_*, NCCL_NET_*, NCCL_PROTO, NCCL_ALGO
#     belong to one cluster's network, and its operators know them.
