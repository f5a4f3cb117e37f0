"""A replacement of kpartx(8) without device-mapper: its maps are the partitions of the disk.

Image builders call kpartx for nodes of partitions, read their names from its output, and use
/dev/mapper/loopNpM. The script adds the partitions as partx(8) does, and makes links to them there.
As dmsetup(8) it removes these maps; ``mknodes`` has no effect.
"""

from __future__ import annotations

PATHS = ("/sbin/kpartx", "/sbin/dmsetup")
SCRIPT = r"""#!/bin/sh
if [ "${0##*/}" = dmsetup ]; then
    command= status=0
    for word; do
        case $command,$word in
        ,-* | remove,-*) ;;
        ,*) command=$word ;;
        remove,*)
            map=/dev/mapper/${word##*/}
            part=$(readlink "$map") && [ -n "${part##../loop*p*[!0-9]*}" ] || exec REAL "$@"
            part=${part#../}
            partx --delete --nr "${part##*p}" "/dev/${part%p*}" && rm "$map" || status=1
            ;;
        esac
    done
    case $command in
    mknodes | remove) exit $status ;;
    esac
    exec REAL "$@"
fi
what=l delim= verbose= read_only=
while getopts adulrp:fgvsnt: option; do
    case $option in
    a | d | u | l) what=$option ;;
    r) read_only=-r ;;
    p) delim=$OPTARG ;;
    v) verbose=1 ;;
    \?) exit 1 ;;
    esac
done
shift $((OPTIND - 1))
if [ $# != 1 ]; then
    echo "usage : kpartx [-a|-d|-u|-l] [-r] [-p DELIMITER] [-f] [-g] [-s|-n] [-v] wholedisk" >&2
    exit 1
fi
file= disk=$(readlink -f "$1") bound=
if [ ! -e "$disk" ]; then
    echo "failed to stat() $1" >&2
    exit 1
elif [ -f "$disk" ]; then
    file=$disk
    disk=$(losetup -n -O NAME -j "$file" | head -n 1)
    if [ -z "$disk" ]; then
        [ $what != d ] || exit 0
        disk=$(losetup $read_only -f --show "$file") || exit 1
        bound=1
    fi
fi
name=${disk##*/}
case $name in *[0-9]) delim=${delim:-p} ;; esac

say() { [ -z "$verbose" ] || echo "$@"; }

links() { # MAP NUMBER of what was added
    for link in /dev/mapper/*; do
        target=$(readlink "$link") || continue
        case $target in "../${name}p"*) echo "${link##*/} ${target#"../${name}p"}" ;; esac
    done
}

remove() { # MAP NUMBER [is-gone]: what losetup --partscan has made stays
    if [ -n "$3" ] || [ "$(cat "/sys/block/$name/loop/partscan" 2>/dev/null)" != 1 ]; then
        if [ -e "/dev/${name}p$2" ] && ! partx --delete --nr "$2" "$disk" 2>/dev/null; then
            echo "$1 is in use. Not removing" >&2
            return 1
        fi
    fi
    rm -f "/dev/mapper/$1"
    say "del devmap : $1"
}

parts() { partx --show --noheadings --output NR,START,SECTORS "$disk" 2>/dev/null; }

add() {
    parts=$(parts)
    [ -z "$parts" ] || partx --update "$disk" || return 1
    mkdir -p /dev/mapper
    echo "$parts" | while read -r number start sectors; do
        [ -n "$number" ] || continue
        ln -sfn "../${name}p$number" "/dev/mapper/$name$delim$number"
        numbers=$(cat "/sys/class/block/${name}p$number/dev")
        say "add map $name$delim$number ($numbers): 0 $sectors linear" \
            "$(cat "/sys/class/block/$name/dev") $start"
    done
}

status=0
case $what in
l) parts | while read -r number start sectors; do
    echo "$name$delim$number : 0 $sectors $disk $start"
done ;;
a) add || status=1 ;;
u)
    old=$(links)
    add || status=1
    while read -r map number; do
        case " $(parts | awk '{ print $1 }' | xargs) " in
        *" $number "*) ;;
        *) [ -z "$map" ] || remove "$map" "$number" is-gone || status=1 ;;
        esac
    done <<END
$old
END
    ;;
d)
    while read -r map number; do
        [ -z "$map" ] || remove "$map" "$number" || status=1
    done <<END
$(links)
END
    ;;
esac
if [ -n "$file" ] && { [ $what = d ] || { [ $what = l ] && [ -n "$bound" ]; }; }; then
    [ $status = 0 ] && losetup -d "$disk" || exit 1
    echo "loop deleted : $disk"
fi
exit $status
"""
