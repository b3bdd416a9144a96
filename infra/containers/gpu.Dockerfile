# Training on NVIDIA GPUs. Build it from the project's folder:
#   docker build --file infra/containers/gpu.Dockerfile --tag thaw:gpu .
# The development image, since DeepSpeed and Triton compile kernels at run time.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl git make python3-dev python3-pip python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && { userdel --remove ubuntu || true; } \
    && useradd --create-home --uid 1000 thaw \
    && install --directory --owner thaw /thaw

WORKDIR /thaw
ENV PATH=/opt/thaw/bin:$PATH PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
COPY requirements requirements
RUN python3 -m venv /opt/thaw \
    && pip install --no-cache-dir "uv==$(cat requirements/uv-version.txt)" \
    && uv pip install --python /opt/thaw --no-cache --no-deps --compile-bytecode \
        --requirement requirements/gpu.txt --requirement requirements/server.txt
COPY --chown=thaw . .
RUN uv pip install --python /opt/thaw --no-cache --no-deps --editable .

USER 1000
ENTRYPOINT ["tini", "-g", "--"]
CMD ["thaw", "--help"]
