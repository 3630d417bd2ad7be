# The images of greentrain: `operator` (no TensorFlow), `agent` (no Kopf) and `trainer` (neither Kopf nor a Kubernetes
# client).
#
#   docker build --target operator -t REGISTRY/greentrain/operator:TAG .
#   docker build --target agent -t REGISTRY/greentrain/agent:TAG .
#   docker build --target trainer --build-arg TENSORFLOW=gpu -t REGISTRY/greentrain/trainer:TAG .
#
# Builds with BuildKit and with buildah (1.28, Debian 12). Packages come by hash from requirements/*.txt and
# stand in a layer of their own below the code, so a code change rebuilds in seconds. The final stages hold no
# compiler, no installer and no package cache, and run as uid 10001, but for the agent.
ARG BASE_IMAGE=debian:bookworm-slim

# Debian 12 with its own Python 3.11. A base that has both packages already is left as it is.
FROM ${BASE_IMAGE} AS python
RUN if ! command -v python3 >/dev/null || [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then \
      apt-get update && \
      DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 ca-certificates && \
      rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb; \
    fi && \
    echo 'greentrain:x:10001:' >>/etc/group && \
    echo 'greentrain:x:10001:10001:greentrain:/tmp:/usr/sbin/nologin' >>/etc/passwd
# HOME is writable under a read-only root file system with an emptyDir on /tmp; Keras writes ~/.keras there.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp PYTHONUNBUFFERED=1

# The installer; the images that run copy from here and never stand on it. (Lending it to them with a bind mount would
# spare a copy, but buildah 1.28 mounts an empty stage there once the stage comes from its cache.) A CA bundle mounted
# over the system's counts for pip and uv alike.
FROM python AS installer
RUN if ! python3 -c 'import ensurepip' 2>/dev/null; then \
      apt-get update && \
      DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv && \
      rm -rf /var/lib/apt/lists/*; \
    fi
COPY requirements/uv.txt /opt/uv.txt
RUN python3 -m venv /opt/uv && \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt /opt/uv/bin/pip install --quiet --no-cache-dir \
      --disable-pip-version-check --require-hashes -r /opt/uv.txt
# $1 the venv to make, $2 its requirements, all of them by hash. The .pth names the place of our code, which the last
# stages put there: it works whatever PYTHONPATH a job sets for its own modules, and Python ignores a missing folder.
RUN printf '%s\n' '#!/bin/sh -e' \
      'export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never' \
      'export UV_SYSTEM_CERTS=1 SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' \
      '/opt/uv/bin/uv venv --quiet --python /usr/bin/python3 "$1"' \
      '/opt/uv/bin/uv pip install --python "$1" --compile-bytecode --require-hashes -r "$2"' \
      'echo /opt/greentrain >"$(echo "$1"/lib/python3.*/site-packages)/greentrain.pth"' \
      >/opt/uv/bin/install && chmod 755 /opt/uv/bin/install

# Our own wheel, unpacked.
FROM installer AS wheel
COPY requirements/build.txt /opt/requirements.txt
RUN --mount=type=cache,id=greentrain-uv,target=/var/cache/uv /opt/uv/bin/install /opt/build /opt/requirements.txt
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY trainer trainer
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist && \
    /opt/uv/bin/uv pip install --python /opt/build --offline --no-cache --no-deps --compile-bytecode \
      --target /opt/greentrain /dist/*.whl

FROM installer AS operator-packages
COPY requirements/operator.txt /opt/requirements.txt
RUN --mount=type=cache,id=greentrain-uv,target=/var/cache/uv /opt/uv/bin/install /opt/venv /opt/requirements.txt

FROM installer AS agent-packages
COPY requirements/agent.txt /opt/requirements.txt
RUN --mount=type=cache,id=greentrain-uv,target=/var/cache/uv /opt/uv/bin/install /opt/venv /opt/requirements.txt

FROM installer AS trainer-packages
ARG TENSORFLOW=cpu
COPY requirements/trainer-${TENSORFLOW}.txt /opt/requirements.txt
RUN --mount=type=cache,id=greentrain-uv,target=/var/cache/uv /opt/uv/bin/install /opt/venv /opt/requirements.txt

# TensorFlow without a line of ours: the base of `trainer`, and of any image that brings its own script.
FROM python AS tensorflow
COPY --from=trainer-packages /opt/venv /opt/venv
USER 10001:10001

FROM tensorflow AS trainer
COPY --from=wheel /opt/greentrain /opt/greentrain
ENTRYPOINT ["python", "-m", "greentrain_trainer"]

FROM python AS operator
COPY --from=operator-packages /opt/venv /opt/venv
COPY --from=wheel /opt/greentrain /opt/greentrain
USER 10001:10001
ENTRYPOINT ["python", "-m", "greentrain.controller"]

# As root, which the others need not be: the kubelet's socket and the journal on the node's disk are root's, and NVML
# lets root alone change a card's power limit. libnvidia-ml.so.1 comes from the node, never from here: it must be of
# the version of the node's driver.
FROM python AS agent
COPY --from=agent-packages /opt/venv /opt/venv
COPY --from=wheel /opt/greentrain /opt/greentrain
USER 0:0
ENTRYPOINT ["python", "-m", "greentrain.agent"]
