# shellcheck shell=bash
# need.sh: installs what a script needs and the machine lacks, by apt, in one call, or not at all.
# It knows only Debian and its children; elsewhere it names what is missing and stops.
#
#   . scripts/lib/need.sh
#   need fuse cc python        # names of the table in `lacks`
#   need_fuse_device

# The Debian packages that one name stands for; prints nothing when the machine has them.
lacks() {
    case $1 in
        fuse) have fusermount3 || echo fuse3 ;;
        cc) { links_c && have make; } || echo gcc libc6-dev make ;;
        rsync) have rsync || echo rsync ;;
        attr) have setfattr getfattr || echo attr ;;
        acl) have setfacl getfacl || echo acl ;;
        python) have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3 python3-venv python3-pip ;;
        diff) have diff cmp || echo diffutils ;;
        mount) have mount umount mountpoint unshare || echo mount util-linux ;;
        systemd) have systemd-analyze || echo systemd ;;
        desktop) have Xvfb openbox pcmanfm xdotool dbus-run-session import convert gdk-pixbuf-thumbnailer && [ -d /usr/share/icons/Adwaita ] || echo xvfb openbox pcmanfm xdotool dbus imagemagick adwaita-icon-theme libgdk-pixbuf2.0-bin ;;
        certificates) [ -s /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates ;;
        *) die "need: no such name: $1" ;;
    esac
}

# Makes sure of each name; asks apt only if something is missing.
need() {
    have cargo || die 'cargo is missing: install Rust from https://rustup.rs and start again'
    local name packages=()
    for name in "$@"; do
        # shellcheck disable=SC2207 # package names hold no spaces
        packages+=($(lacks "$name"))
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    have apt-get || die "missing, and this is no Debian: install what it calls ${packages[*]}"
    printf '== installing: %s\n' "${packages[*]}" >&2
    as_root apt-get update -q >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}" >&2
}

# A mount needs the kernel's FUSE device; no package brings it.
need_fuse_device() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || die '/dev/fuse is missing: mounting needs it. Load the module (modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN'
}

have() {
    local tool
    for tool in "$@"; do command -v "$tool" >/dev/null || return 1; done
}

# A compiler without the C library's headers is no compiler to the crates that bring C along.
links_c() {
    have cc && printf '#include <stdlib.h>\nint main(void){return EXIT_SUCCESS;}\n' | cc -x c -o /dev/null - 2>/dev/null
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif have sudo; then sudo "$@"
    else die "this needs root, and there is no sudo: $*"
    fi
}

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}
