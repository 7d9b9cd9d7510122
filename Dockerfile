# One machine without a set-up: the README's commands, with everything in them.
#
#   docker build -t distcifar .                                        a GPU: needs NVIDIA driver 580 or newer on the host
#   docker build -t distcifar:cpu --build-arg BASE=ubuntu:24.04 .      no GPU
#   mkdir -p data runs                                                 writable for user 1000; docker would make them root's
#   docker run --init --gpus all --shm-size 2g -v "$PWD/data:/distcifar/data" -v "$PWD/runs:/distcifar/runs" \
#     distcifar .venv/bin/python jobs/train.py resnet9                  no GPU: without --gpus all, and distcifar:cpu
#
# A W&B key comes in as a file that is mounted
# (-v "$HOME/.netrc:/home/ubuntu/.netrc:ro"), never as a build argument or in the image.

# "base" is CUDA's runtime library and no more: cuBLAS, cuDNN and NCCL come with torch's wheels (3,055 MB), of the version
# that torch was built with; the "runtime" images hold them once more. 13.0 of CUDA's 13.x: later ones ask for a newer
# driver. Ubuntu 24.04 for both variants: their lines are the same, and its own Python 3.12 costs 30 MB, not a second one.
# Without a GPU the image is smaller by CUDA's base only: the lock has one torch, and pins hashes.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

# FFCV is compiled here. Compiler and headers, 597 MB, stay behind. A changed lock compiles it again: a minute.
FROM ubuntu:24.04 AS ffcv
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      ca-certificates g++ pkg-config python3-dev python3-venv libopencv-imgproc-dev libturbojpeg0-dev openssl \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements.lock ./
COPY .ci/opencv opencv/
# As .ci/setup does it: the tools are pinned and hashed as well, and opencv/ stands in for 300 packages of OpenCV's.
RUN pin() { sed -n "/^$1==/,/# via/p" requirements.lock; } \
 && python3 -m venv tools \
 && { pin setuptools; pin uv; } >tools.txt \
 && tools/bin/pip install --no-cache-dir --no-deps --require-hashes -r tools.txt \
 && pin ffcv >ffcv.txt \
 && PKG_CONFIG_PATH=/build/opencv tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --require-hashes \
      --wheel-dir wheels -r ffcv.txt

# What the lock pins, 6,988 MB, without the tools for developing (93 MB). The bytecode, 371 MB of it, is made here: nothing
# can write it later, and without it each start compiles 2,300 modules.
FROM ffcv AS packages
RUN sed -E '/^(ffcv|flask|flask-cors|hypothesis|moto|mypy|pytest|pytest-timeout|ruff|uv)==/,/# via/d' requirements.lock >runtime.txt \
 && python3 -m venv --without-pip /distcifar/.venv \
 && install() { tools/bin/uv pip install --no-cache --python /distcifar/.venv/bin/python --no-deps --no-build-isolation "$@"; } \
 && sed -n '/^setuptools==/,/# via/p' requirements.lock >setuptools.txt \
 && install --require-hashes -r setuptools.txt \
 && install --compile-bytecode --require-hashes -r runtime.txt \
 && install --compile-bytecode wheels/ffcv-*.whl

# This project: a layer of its own, 5 MB, so that a changed line does not cost the layer of packages.
FROM ffcv AS project
COPY pyproject.toml README.md ./
COPY distcifar distcifar/
RUN tools/bin/uv pip install --no-cache --python tools/bin/python --no-deps --no-build-isolation --compile-bytecode \
      --target /site .

FROM ${BASE}
# What torch.compile runs, 310 MB: g++, Python's headers for a GPU's kernels, openssl. What FFCV is linked to: 226 MB.
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      g++ openssl python3-dev libopencv-imgproc406t64 libturbojpeg \
 && rm -rf /var/lib/apt/lists/* \
 && (getent passwd 1000 || useradd --uid 1000 --user-group --create-home ubuntu) \
 && install -d -o 1000 -g 1000 /distcifar /distcifar/data /distcifar/runs
WORKDIR /distcifar
COPY --from=packages /distcifar/.venv .venv/
COPY --from=project /site .venv/lib/python3.12/site-packages/
COPY .ci/health.py .ci/
COPY jobs jobs/
ENV PATH=/distcifar/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
# Signs of life are a second apart; five minutes without is a hang. The first minute is for imports.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=2 CMD [".venv/bin/python", ".ci/health.py"]
# No port: --network host where this machine is to be a node of a Ray cluster. Python takes SIGTERM, from --init's tini too, and
# leaves a checkpoint: `docker stop -t 60`. No ENTRYPOINT: what is typed is what is run.
CMD [".venv/bin/python", "jobs/train.py", "debug"]
