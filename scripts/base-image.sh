#!/bin/sh
# Make the base of the image without any image registry: Debian's own files, by debootstrap, as a local image.
#
#     scripts/base-image.sh [NAME]      default: localhost/debian-base
#     make image BASE_IMAGE=localhost/debian-base
#
# Needs root, debootstrap and buildah (apt-get install debootstrap buildah). The mirror is the one that this machine's
# apt uses, or $DEBIAN_MIRROR.
set -eu

name=${1:-localhost/debian-base}
suite=${DEBIAN_SUITE:-bookworm}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

debootstrap --variant=minbase "$suite" "$work/root" ${DEBIAN_MIRROR:-} >"$work/log" 2>&1 ||
    { tail -n 20 "$work/log" >&2; exit 1; }

# What a container has no use for: documentation and translations (as in Debian's own slim images), and apt's caches.
for directory in doc man info locale lintian; do rm -rf "$work/root/usr/share/$directory"/*; done
rm -rf "$work/root/var/lib/apt/lists"/* "$work/root/var/cache/apt"/* "$work/root/var/log"/*
# Packages installed later leave the same out.
cat >"$work/root/etc/dpkg/dpkg.cfg.d/slim" <<'EOF'
path-exclude /usr/share/doc/*
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/lintian/*
EOF

container=$(buildah from scratch)
buildah add --quiet "$container" "$work/root" / >/dev/null
buildah config --cmd /bin/sh "$container"
buildah commit --quiet "$container" "$name" >/dev/null
buildah rm "$container" >/dev/null
echo "$name"
