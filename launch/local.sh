#!/usr/bin/env bash
# Several processes on one machine: one per GPU, or to try a cluster setup.
#
#   launch/local.sh N -- lt-jax COMMAND ...
#
# The script adds --coordinator, --num-processes and --process-id, and divides the GPUs
# evenly. On CPUs:
#
#   export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2
#   launch/local.sh 2 -- lt-jax run --config configs/digits_lt.py --workdir runs/two
#
# CIFAR100-LT on two GPUs, stage 1, stage 2, sweep:
#
#   c="--config configs/cifar100_lt.py:ir=100 --workdir runs/c100"
#   launch/local.sh 2 -- lt-jax train $c
#   launch/local.sh 2 -- lt-jax retrain $c
#   launch/local.sh 2 -- lt-jax sweep $c
#
# iNaturalist2018 on eight GPUs. One process prepares the data first
# (docs/howto/prepare_data.md). Each process decodes with data.workers threads; this is for
# 96 cores:
#
#   lt-jax data prepare i_naturalist2018 --from=/archives --dir=/data/tfds
#   export TFDS_DATA_DIR=/data/tfds
#   c="--config configs/inat2018.py --config.data.workers=12 --workdir runs/inat"
#   launch/local.sh 8 -- lt-jax train $c
#   launch/local.sh 8 -- lt-jax retrain $c
#   launch/local.sh 8 -- lt-jax sweep $c
#
# SIGTERM and SIGINT go to all processes. If one fails, the others are killed after GRACE
# seconds (default 90, longer than lt-jax needs to notice). The exit code is that of the
# first process that failed. After 75 (checkpoint saved), rerun the same command.
set -uo pipefail

if (($# < 3)) || [[ ! $1 =~ ^[1-9][0-9]*$ || $2 != -- ]]; then
  echo "usage: launch/local.sh N -- lt-jax COMMAND ..." >&2
  exit 2
fi
num=$1
shift 2
# shellcheck source-path=SCRIPTDIR source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

# A free port. The kernel does not reuse it soon.
port=$(python3 -c 'import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])') || exit 2

# The GPUs, by number or name.
gpus=()
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
fi
each=$((${#gpus[@]} / num))
if ((${#gpus[@]} % num)); then
  echo "local.sh: $num processes cannot share ${#gpus[@]} GPUs evenly" >&2
  exit 2
fi

# Each process has its own group. Otherwise it would receive Ctrl-C twice, from the
# terminal and from here, and quit at once.
set -m
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM
trap 'kill -INT "${pids[@]}" 2>/dev/null' INT
for ((i = 0; i < num; i++)); do
  (
    if ((each)); then
      mine=("${gpus[@]:i*each:each}")
      CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${mine[*]}")
      export CUDA_VISIBLE_DEVICES
    fi
    exec "$@" --coordinator "127.0.0.1:$port" --num-processes "$num" --process-id "$i"
  ) &
  pids+=($!)
done

code=0
left=("${pids[@]}")
deadline=
while ((${#left[@]})); do
  still=()
  for pid in "${left[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      still+=("$pid")
      continue
    fi
    wait "$pid"
    ended=$?
    if ((ended && !code)); then
      code=$ended
      deadline=$((SECONDS + ${GRACE:-90}))
    fi
  done
  left=("${still[@]}")
  if [[ -n $deadline ]] && ((${#left[@]} && SECONDS >= deadline)); then
    echo "local.sh: killed ${#left[@]} processes that did not end after one failed" >&2
    kill -KILL "${left[@]}" 2>/dev/null
  fi
  sleep 0.2 &
  wait $! # a signal interrupts it, so that its trap runs at once
done
exit "$code"
