# Servers, the CPU worker and CPU runs. Build it from the project's folder:
#   docker build --file infra/containers/cpu.Dockerfile --build-arg TORCH_INDEX=<PyTorch's CPU index> --tag thaw:cpu .
FROM python:3.11.14-slim-bookworm
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# gcc and g++: torch and DeepSpeed compile at run time. git: lineage. tini: reaps what ends.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl g++ gcc git make tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 thaw \
    && install --directory --owner thaw /thaw

WORKDIR /thaw
ENV PATH=/opt/thaw/bin:$PATH PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
COPY requirements requirements
ARG TORCH_INDEX
RUN pip install --no-cache-dir "uv==$(cat requirements/uv-version.txt)" \
    && uv venv /opt/thaw \
    && UV_INDEX="${TORCH_INDEX:-}" uv pip install --python /opt/thaw --no-cache --no-deps --compile-bytecode \
        --index-strategy unsafe-best-match --requirement requirements/cpu.txt --requirement requirements/server.txt
COPY --chown=thaw . .
RUN uv pip install --python /opt/thaw --no-cache --no-deps --editable .

USER 1000
ENTRYPOINT ["tini", "-g", "--"]
CMD ["thaw", "--help"]
