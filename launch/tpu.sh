#!/usr/bin/env bash
# Cloud TPU: run the same command on every host of a slice. JAX connects the hosts.
#
#   launch/tpu.sh NAME ZONE lt-jax COMMAND ...
#   launch/tpu.sh NAME ZONE --stop             save and stop, on all hosts
#
# Create a v5e slice of 64 chips and install the package on its hosts:
#
#   gcloud compute tpus tpu-vm create lt --zone=us-west4-a --accelerator-type=v5litepod-64 \
#     --version=v2-alpha-tpuv5-lite --spot
#   gcloud compute tpus tpu-vm ssh lt --zone=us-west4-a --worker=all --command='
#     git clone https://github.com/OWNER/lt_jax && cd lt_jax && python3 -m venv .venv &&
#     .venv/bin/pip install -c constraints.txt -e ".[all,tpu]"'
#
# CIFAR100-LT, stage 1, stage 2, sweep. One host with 4 or 8 chips is enough. All hosts
# must share the workdir and the data, for example on a mounted Filestore:
#
#   c="--config configs/cifar100_lt.py:ir=100 --config.data.dir=/shared/tfds"
#   c="$c --workdir /shared/runs/c100"
#   launch/tpu.sh lt us-west4-a lt-jax train $c
#   launch/tpu.sh lt us-west4-a lt-jax retrain $c
#   launch/tpu.sh lt us-west4-a lt-jax sweep $c
#
# Edit OWNER, the slice's name and zone, and the folders /shared/... The hosts do not see
# variables exported here, so the data folder is a flag.
#
# iNaturalist2018; prepare the data on one host first (--worker=0 instead of this script):
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
# Preemption deletes the slice and its disks. Create it again and rerun the same command,
# which resumes from the last checkpoint. Closing this terminal does not stop the hosts;
# --stop does.
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
  # Quoted again for the shell on the host.
  remote="cd lt_jax && source .venv/bin/activate && launch/machine.sh$(printf ' %q' "$@")"
fi
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$remote"
