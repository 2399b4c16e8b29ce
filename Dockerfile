# The app in a container: docs/container.md says how to build and run it, and `make container-test` tests it.
# BASE is pinned by digest; Debian 12 has the Python 3.11 that constraints.txt was tested with.
ARG BASE=debian:bookworm-slim@sha256:90522eeb7e5923ee2b871c639059537b30521272f10ca86fdbbbb2b75a8c40cd

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
WORKDIR /opt/bids_lesionfill
ENV PIP_NO_CACHE_DIR=1

# TORCH: cpu or cuda. TORCH_INDEX: one more place where pip looks; PyTorch's CPU wheels are not where pip usually looks.
ARG TORCH=cpu
ARG TORCH_INDEX=
COPY container/torch-${TORCH}.lock container/
RUN /opt/venv/bin/pip install --no-deps --require-hashes ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        -r container/torch-${TORCH}.lock \
    || { echo 'No torch: does TORCH_INDEX name the index of its CPU wheels? See docs/container.md' >&2; exit 1; }
COPY container/requirements.lock container/
# What is only needed to compile against, or to test, the libraries is left behind.
RUN /opt/venv/bin/pip install --no-deps --require-hashes --no-build-isolation --use-pep517 \
        -r container/requirements.lock \
    && /opt/venv/bin/pip check \
    && /opt/venv/bin/pip uninstall --yes --quiet pip \
    && find /opt/venv -type d \( -path '*/torch/include' -o -path '*/torch/test' -o -name tests \) -prune -exec rm -rf {} + \
    && find /opt/venv -path '*/torch/bin/*test*' -delete \
    && find /opt/venv -name '*.a' -delete \
    && chmod -R a+rX /opt/venv

COPY LICENSE THIRD_PARTY.md run.py version ./
COPY bids_lesionfill bids_lesionfill
RUN rm -rf container \
    && /opt/venv/bin/python -m compileall -q . \
    && chmod -R a+rX . \
    && chmod a+x run.py

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /data /out /work
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/bids_lesionfill /opt/bids_lesionfill
# Whoever runs it has a home to write to, and nothing is looked up, downloaded or reported.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/bids_lesionfill \
    HOME=/tmp \
    LANG=C.UTF-8 \
    MPLBACKEND=Agg \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DENO_NO_UPDATE_CHECK=1 \
    NO_ET=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="bids_lesionfill" \
      org.opencontainers.image.description="A BIDS App that fills or paints multiple-sclerosis lesions in MR images with a diffusion model" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-NC-4.0 AND CC-BY-4.0 AND MIT AND BSD-2-Clause"
ENV BIDS_LESIONFILL_DOCKER_TAG=bids_lesionfill:${VERSION}

# `docker run --read-only` gives no /tmp; a volume is writable also there.
VOLUME ["/tmp"]
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["/opt/bids_lesionfill/run.py"]
