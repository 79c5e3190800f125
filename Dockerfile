# ExGRPO with its GPU environment: docker build -t exgrpo . && docker run --gpus all --shm-size=16g -it exgrpo
# Not built by this project yet (docs/gpu.md). flash-attn: --build-arg FLASH_ATTN=build (an hour), or the address of a wheel.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04
ARG FLASH_ATTN=none
RUN apt-get update && apt-get install -y --no-install-recommends git make python3.12 python3.12-dev python3.12-venv gcc g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /exgrpo
COPY . .
ENV FLASH_ATTENTION_FORCE_BUILD=TRUE PIP_NO_CACHE_DIR=1
RUN make setup-gpu FLASH_ATTN=${FLASH_ATTN}
ENV PATH=/exgrpo/.venv-gpu/bin:$PATH
CMD ["bash"]
