#!/usr/bin/env bash
# Makes an image to build with from this machine's own Rust, C linker and fetched crates, where none can be pulled:
#   docker/build-base.sh NAME && docker build -f docker/Dockerfile --build-arg BUILD_IMAGE=NAME -t ringserve .
# For Debian and its kin. It needs no network but for crates that were never fetched; the build then needs none.
set -euo pipefail
name="${1:?the name of the image to make}"
cd "$(dirname "$0")/.."

target="$(rustc -vV | sed -n 's/^host: //p')"
cargo fetch --locked --quiet --target "$target"
sysroot="$(rustc --print sysroot)"
registry="${CARGO_HOME:-$HOME/.cargo}/registry"

# The linker and a shell, with all that they depend on.
list_packages() {
    apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances gcc libc6-dev dash coreutils findutils sed | grep '^[a-z0-9]' | sort -u
}

list_files() {
    # Packages name /lib and /bin where these are links into /usr.
    list_packages | xargs dpkg-query -L | sed -E '/^\/usr\/share\//d; s,^/(bin|sbin|lib[0-9]*)/,/usr/\1/,'
    ls -d /bin /sbin /lib /lib64 /usr/bin/cc /etc/alternatives/cc /etc/ld.so.cache /etc/ld.so.conf* /etc/passwd
    find "$sysroot/bin/cargo" "$sysroot/bin/rustc" "$sysroot/lib" "$registry/index" "$registry/cache"
}

{
    echo /tmp
    list_files | sort -u | while read -r file; do
        # Other directories come into being with what lies in them.
        if [ -L "$file" ] || [ -f "$file" ]; then echo "$file"; fi
    done
} | tar --create --no-recursion --absolute-names --files-from - --owner 0 --group 0 \
    --transform "flags=rSh;s,^$sysroot/,/usr/local/rust/," \
    --transform "flags=rSh;s,^$registry/,/usr/local/cargo/registry/," \
    --transform 'flags=rSh;s,^/,,' |
    docker import --change 'ENV PATH=/usr/local/rust/bin:/usr/bin:/bin CARGO_HOME=/usr/local/cargo' \
        --change 'ENV CARGO_NET_OFFLINE=true' --change "LABEL ringserve-base=$name" - "$name"
