# The image that launch/jobset.yaml names: the repository in /lt_jax, its environment active.
#
#   docker build -t lt-jax:0.2.0 .                                  CPU
#   docker build -t lt-jax:0.2.0 --build-arg EXTRAS=all,cuda .      NVIDIA GPUs
#   docker run --rm -v "$PWD/runs:/lt_jax/runs" lt-jax:0.2.0 \
#     lt-jax run --config configs/digits_lt.py --workdir runs/digits
#
# CUDA's libraries come from the wheels of jax. The host needs NVIDIA's driver and container
# toolkit (`docker run --gpus all`). The versions are those of constraints.txt.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm

ARG EXTRAS=all
ENV PATH=/opt/lt_jax/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /lt_jax

# A layer of its own for the dependencies: a change of the code does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY lt_jax/__init__.py lt_jax/_version.py lt_jax/
COPY configs configs
RUN python -m venv /opt/lt_jax \
  && pip install --no-cache-dir -c constraints.txt -e ".[${EXTRAS}]"

COPY . .

# A user who owns nothing but a home, for the cache of compiled programs.
RUN useradd --create-home --uid 1000 lt_jax && install -d -o lt_jax runs
USER 1000
CMD ["lt-jax", "--help"]
