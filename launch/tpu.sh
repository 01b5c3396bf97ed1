#!/usr/bin/env bash
# A Cloud TPU slice: the same command on every host of it. JAX finds the other hosts.
#
#   launch/tpu.sh NAME ZONE lt-jax COMMAND ...
#   launch/tpu.sh NAME ZONE --stop             saves and stops, on all hosts
#
# Once, a v5e slice of 64 chips and what is needed on its hosts:
#
#   gcloud compute tpus tpu-vm create lt --zone=us-west4-a --accelerator-type=v5litepod-64 \
#     --version=v2-alpha-tpuv5-lite --spot
#   gcloud compute tpus tpu-vm ssh lt --zone=us-west4-a --worker=all --command='
#     git clone https://github.com/OWNER/lt_jax && cd lt_jax && python3 -m venv .venv &&
#     .venv/bin/pip install -c constraints.txt -e ".[demo,tpu]"'
#
# CIFAR100-LT (one host of 4 or 8 chips is plenty), stage 1, stage 2, sweep; the workdir
# and the data must be one folder for all hosts, such as a mounted Filestore:
#
#   c="--config configs/cifar100_lt.py:ir=100 --workdir /shared/runs/c100"
#   launch/tpu.sh lt us-west4-a lt-jax train $c
#   launch/tpu.sh lt us-west4-a lt-jax retrain $c
#   launch/tpu.sh lt us-west4-a lt-jax sweep $c
#
# iNaturalist2018:
#
#   c="--config configs/inat2018.py --workdir /shared/runs/inat"
#   launch/tpu.sh lt us-west4-a lt-jax train $c
#   launch/tpu.sh lt us-west4-a lt-jax retrain $c
#   launch/tpu.sh lt us-west4-a lt-jax sweep $c
#
# A preempted slice is gone, with what stood on its own disks: create it anew and give the
# same command, which goes on from the last checkpoint. Closing this terminal does not
# stop the hosts; --stop does.
set -euo pipefail

if (($# < 3)); then
  echo "usage: launch/tpu.sh NAME ZONE lt-jax COMMAND ... | --stop" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
if [[ $1 == --stop ]]; then
  remote='pkill -TERM -x lt-jax'
else
  # Quoted once more, as a shell over there reads it.
  remote="cd lt_jax && source .venv/bin/activate && launch/machine.sh$(printf ' %q' "$@")"
fi
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$remote"
