# The image of the DaemonSet: weave-kube, weaver and weave on Debian's Python.
#
#     make image                                  with buildah, from debian:bookworm-slim
#     make image BASE_IMAGE=localhost/debian-base    from the base that scripts/base-image.sh makes, without a registry
#
# Everything that compiles or downloads is in the first stage. The second has Python, two C libraries and what was
# built: no compiler, no pip. Nothing here knows an architecture.
#
# Where Debian's and Python's packages come from is the business of the machine that builds: its pip configuration and
# certificates may be lent to the build as the secrets `pip-configuration` and `certificates`, and stay out of the image.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS build
RUN apt-get -q update && \
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
        make gcc libc6-dev clang linux-libc-dev libbpf-dev python3-venv
WORKDIR /src
COPY Makefile ./
COPY shim shim
COPY src/weavenet/dataplane/bpf src/weavenet/dataplane/bpf
RUN make artifacts
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY scripts/install-runtime.sh scripts/
RUN --mount=type=secret,id=pip-configuration,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    scripts/install-runtime.sh packages /opt/weavenet
COPY src src
RUN scripts/install-runtime.sh weavenet /opt/weavenet

FROM ${BASE_IMAGE}
# kmod: the init container loads br_netfilter. nftables: `kubectl exec ... -- nft list ruleset`.
RUN apt-get -q update && \
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
        python3 libbpf1 libnftables1 nftables kmod && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/* \
        /usr/share/doc/* /usr/share/man/* /usr/share/info/* /usr/share/locale/*
COPY --from=build /opt/weavenet /opt/weavenet
ENV PATH=/opt/weavenet/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
CMD ["weave-kube", "launch"]
