# syntax=docker/dockerfile:1
#
# The server, for the CPU:
#   docker build -t medsight .
# and for NVIDIA GPUs; the driver and nvidia-container-toolkit belong to the host:
#   docker build -t medsight:gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#
# How to run it: docs/deploy.md.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=server
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/medsight
# torch goes first and alone: what follows then finds it present and does not fetch another build.
RUN /opt/medsight/bin/pip install "${TORCH}" --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY medsight_core medsight_core
COPY training training
RUN /opt/medsight/bin/pip install ".[${EXTRAS}]" && /opt/medsight/bin/python -m compileall -q /opt/medsight/lib

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="MedSIGHT" \
      org.opencontainers.image.description="Ask a medical scan in plain words. Research use only. Not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0"
# The only folder that is written to, besides /tmp. Nothing is downloaded when it starts: the model is in the image, or
# in a folder that MEDSIGHT_MODEL names.
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin medsight \
    && install -d -o medsight -g medsight -m 0700 /data
COPY --from=build /opt/medsight /opt/medsight
ENV PATH=/opt/medsight/bin:${PATH} \
    HOME=/data \
    MEDSIGHT_SERVER_STORE=/data/volumes \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8765
# Where the server does TLS itself, say another one with --health-cmd, or none with --no-healthcheck.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/healthz', timeout=4)"]
ENTRYPOINT ["medsight"]
# It does not start without MEDSIGHT_TOKEN: it can be reached by others.
CMD ["serve", "--host", "0.0.0.0", "--behind-proxy"]
