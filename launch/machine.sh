#!/usr/bin/env bash
# One process on all GPUs (or CPU cores) of one machine. It sources launch/flags.sh and runs
# the command. Set CUDA_VISIBLE_DEVICES=0,1 to use fewer GPUs.
#
#   launch/machine.sh lt-jax COMMAND ...
#
# CIFAR100-LT, stage 1, stage 2, sweep:
#
#   c="--config configs/cifar100_lt.py:ir=100 --workdir runs/c100"
#   launch/machine.sh lt-jax train $c
#   launch/machine.sh lt-jax retrain $c
#   launch/machine.sh lt-jax sweep $c
#
# iNaturalist2018; prepare the data first (docs/howto/prepare_data.md):
#
#   lt-jax data prepare i_naturalist2018 --from=/archives --dir=/data/tfds
#   export TFDS_DATA_DIR=/data/tfds
#   c="--config configs/inat2018.py --workdir runs/inat"
#   launch/machine.sh lt-jax train $c
#   launch/machine.sh lt-jax retrain $c
#   launch/machine.sh lt-jax sweep $c
#
# Exit code 75: a checkpoint was saved after SIGTERM. Rerun the same command to resume.
set -euo pipefail

if (($# == 0)); then
  echo "usage: launch/machine.sh COMMAND ..." >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"
exec "$@"
