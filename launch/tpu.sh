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
#   c="--config configs/cifar100_lt.py:ir=100 --config.data.dir=/shared/tfds"
#   c="$c --workdir /shared/runs/c100"
#   launch/tpu.sh lt us-west4-a lt-jax train $c
#   launch/tpu.sh lt us-west4-a lt-jax retrain $c
#   launch/tpu.sh lt us-west4-a lt-jax sweep $c
#
# To edit: OWNER, the slice's name and zone, the folders /shared/... A variable exported
# here does not travel, so the folder of the data is a flag.
#
# iNaturalist2018, the data first, on one host (--worker=0 in place of this script):
#
#   gcloud compute tpus tpu-vm ssh lt --zone=us-west4-a --worker=0 --command='
#     cd lt_jax && .venv/bin/lt-jax data prepare i_naturalist2018 \
#       --from=/shared/archives --dir=/shared/tfds'
#   c="--config configs/inat2018.py --config.data.dir=/shared/tfds"
#   c="$c --workdir /shared/runs/inat"
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
