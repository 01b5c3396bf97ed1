#!/usr/bin/env bash
# Collect the packages that a GPU machine without a network lacks, as wheels.
#
#   benchmarks/gpu/wheels.sh FOLDER [PACKAGE...]
#
# Without PACKAGE: what lt_jax needs besides the numerical packages that images for JAX
# have (jax, flax, optax, orbax-checkpoint, scipy, matplotlib, opencv-python-headless,
# pyarrow, jinja2, requests, psutil, tqdm, attrs, six, wrapt, flatbuffers and what these
# need). On the other machine, whose Python is 3.12 on x86-64 (set PYTHON_VERSION here for
# another):
#
#   python3 -m pip install --no-index --no-deps --target /tmp/site FOLDER/*.whl
#   PYTHONPATH=/tmp/site:. python3 benchmarks/gpu/kit.py check --out OUT
set -euo pipefail
folder=$1
shift
if [[ $# -eq 0 ]]; then
  set -- tensorflow-datasets array-record ml-collections simplejpeg importlib-resources \
    immutabledict simple-parsing docstring-parser promise dm-tree toml \
    tensorflow-metadata googleapis-common-protos termcolor safetensors
fi
platforms=()
for version in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${version}_x86_64")
done
for package in "$@"; do
  # A package without a wheel is pure Python: build it here.
  python3 -m pip download --quiet --no-deps --only-binary=:all: \
    --python-version "${PYTHON_VERSION:-3.12}" --implementation cp "${platforms[@]}" \
    --dest "$folder" "$package" ||
    python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$package"
done
du -sh "$folder"
