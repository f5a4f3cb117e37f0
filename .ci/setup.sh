# shellcheck shell=bash disable=SC2034
# What ./try and ./check have in common: sourced by both, not run.
#
# Everything says what it is about to change on this machine, and does only what is missing.

PYTHON=${PYTHON:-/usr/bin/python3} # an interpreter that every user of the machine can run
TEST_USER=${LOOPFS_TEST_USER:-loopfs-test} # whose processes the leak checks of tests count
SEARCH_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH="$SEARCH_PATH:$PATH" # a user's path can lack the sbin directories
umask 022 # what root makes here is for an ordinary user to run

say() { printf '%s\n' "$*"; }

fail() {
    say "$*" >&2
    exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }

# Can we become root? Asks for a password only where somebody can type one.
can_be_root() {
    is_root && return
    [ -n "$(command -v sudo)" ] || return 1
    sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }
}

as_root() {
    if is_root; then "$@"; else sudo "$@"; fi
}

# as_user USER COMMAND...: with a fresh environment; USER may be who we are.
as_user() {
    local user=$1
    shift
    if [ "$user" = "$(id -un)" ]; then
        "$@"
    else
        as_root setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups --reset-env \
            env PATH="$PATH" "$@"
    fi
}

# install_packages NAME...: those that are missing.
install_packages() {
    local missing=() name
    for name in "$@"; do
        case $(dpkg-query -W -f '${Status}' "$name" 2>/dev/null) in
        *' installed') ;;
        *) missing+=("$name") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        say "This is no Debian: if something fails, see that it has what these packages hold:" \
            "${missing[*]}."
        return 0
    fi
    can_be_root || {
        say "Not installed, as that needs root or sudo: ${missing[*]}."
        return 0
    }
    say "Installing the packages ${missing[*]}."
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
        install "${missing[@]}" >/dev/null
}

# A FUSE device that every user may open, as the udev rule of the fuse packages makes it.
prepare_fuse() {
    if [ ! -c /dev/fuse ]; then
        say "There is no /dev/fuse: loading the kernel module fuse."
        can_be_root && as_root modprobe fuse || true
        [ -c /dev/fuse ] || fail "The module cannot be loaded (in a container, start it with" \
            "--device /dev/fuse), and nothing of loopfs works without it."
    fi
    if [ "$(stat -c %a /dev/fuse)" != 666 ] && can_be_root; then
        say "Letting every user open /dev/fuse (chmod 0666), as the udev rule does."
        as_root chmod 0666 /dev/fuse
    fi
}

# make_user NAME: an ordinary account with subordinate ids.
make_user() {
    if ! id "$1" >/dev/null 2>&1; then
        say "Making the ordinary user $1; it stays for the next time."
        as_root useradd --create-home --shell /bin/sh "$1"
    fi
    give_ids "$1" /etc/subuid --add-subuids
    give_ids "$1" /etc/subgid --add-subgids
}

# give_ids USER FILE OPTION: a range of 65536 ids behind all that FILE has given away.
give_ids() {
    grep -qs "^$1:" "$2" && return
    local first
    first=$(awk -F: '{ end = $2 + $3; if (end > max) max = end }
        END { print max > 100000 ? max : 100000 }' "$2" 2>/dev/null || echo 100000)
    say "Giving $1 the subordinate ids from $first on ($2)."
    as_root touch "$2"
    as_root usermod "$3" "$first-$((first + 65535))" "$1"
}

check_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$PYTHON is no Python 3.11 or newer; name one with PYTHON=..."
}
