#!/bin/sh
# Give this machine the identity that the host describes: its name, keys, user, files and mounts.
#
#   identity FILE        before systemd starts; the file assigns the variables below, rendered from the seed's user-data
#   identity --fork      in a fork of a running template, which gets its network card and its shares when this has said that it is
#                        apart from the template: standard input has the same variables, and what only the host knows, the time in
#                        seconds since 1970, bytes for the random generator, and whether the disk has grown
#   identity --template  in a template: brings into memory what its forks need at once
#
# The host writes shell, as each program that could read JSON takes an emulated machine a second to start.
# The host's words assign id, machine, host, fqdn, private, public, account, uid, authorized, mounts, now, entropy and grown.
# shellcheck disable=SC2154
set -eu
umask 022
step="read the description"

complain() {
    status=$?
    [ "$status" -ne 0 ] || return 0
    # The console's log is where the host looks when nobody can log in.
    printf '\nvmw-identity: failed to %s\n' "$step" >/dev/console
    exit "$status"
}
trap complain EXIT

# The host follows the console, which costs this machine less than to be asked again and again.
say() {
    printf '\nvmw-identity: %s\n' "$1" >/dev/console
}

write_files() {
    while [ $# -gt 0 ]; do
        printf '%s' "$2" >"$1"
        shift 2
    done
}

# A first boot that was cut off has written them already.
write_mounts() {
    others=
    while IFS= read -r line; do
        case $line in
            vmw:*) ;;
            *) others="$others$line
" ;;
        esac
    done </etc/fstab
    printf '%s%s\n' "$others" "$mounts" >/etc/fstab
}

# Where the shell can do it by itself it does: each program costs an emulated machine a twentieth of a second, and a fork's user waits.
write_identity() {
    # The host gives the machine its UUID, of which systemd would make the same machine-id by itself.
    echo "$machine" >/etc/machine-id
    echo "$host" >/etc/hostname
    printf '127.0.0.1 localhost\n127.0.1.1 %s %s\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n' \
        "$fqdn" "$host" >/etc/hosts
    (umask 077 && printf '%s' "$private" >/etc/ssh/ssh_host_ed25519_key)
    printf '%s\n' "$public" >/etc/ssh/ssh_host_ed25519_key.pub
    # The image has the user already; its uid differs only when the image is another user's.
    while IFS=: read -r name _ number _; do
        [ "$name" != "$account" ] || [ "$number" = "$uid" ] || usermod --uid "$uid" "$account"
    done </etc/passwd
    # An empty file of the user's, made with the image.
    printf '%s\n' "$authorized" >"/home/$account/.ssh/authorized_keys"
    write_mounts
}

# The next boot gives the machine its identity once more, unless this one is on the disk: one that a power cut empties does not count.
keep_identity() {
    sync -f /etc/machine-id
    echo "$id" >/var/lib/vmw/instance-id
}

# What a fork logs under the template's name: when its watchdog or its end comes before it has settled.
forget_other_journals() {
    for place in /var/log/journal/*; do
        [ ! -d "$place" ] || [ "$place" = "/var/log/journal/$machine" ] || rm -rf "$place"
    done
}

# The kernel draws the boot id once, in the template; a fork gets its own in the way of a container's.
mount_shares() {
    read -r boot </proc/sys/kernel/random/uuid
    echo "$boot" >/run/vmw-boot-id
    printf '%s\n/run/vmw-boot-id /proc/sys/kernel/random/boot_id none bind\n' "$mounts" >/run/vmw-fstab
    # A share that was plugged in a moment ago may not have been found yet.
    # The host waits for longer, and shows why it failed.
    tries=200
    until mount --all --fstab /run/vmw-fstab 2>/run/vmw-mount; do
        tries=$((tries - 1))
        if [ "$tries" -eq 0 ]; then
            cat /run/vmw-mount >&2
            return 1
        fi
        sleep 0.1
    done
}

set_apart() {
    echo "$host" >/proc/sys/kernel/hostname
    # Each machine's random numbers are to be its own: the kernel mixes the bytes in, and is told to use them. Debian 12's has no
    # driver for the generation id that would do so by itself.
    printf '%s' "$entropy" >/dev/urandom
    /usr/lib/vmw/apart "$now"
    say apart
    # While the host plugs in the devices. Without mDNS the machine can be used all the same.
    busctl call org.freedesktop.Avahi / org.freedesktop.Avahi.Server SetHostName s "$host" &
}

# What the host does not wait for.
settle() {
    # The SSH server, DHCP and mostly the first login come first.
    sleep 2
    # This one holds the template's ids in memory. It has stood still, and what was logged meanwhile waits for its successor.
    systemctl kill --kill-who=main --signal=KILL systemd-journald.service || true
    systemctl restart --no-block systemd-timesyncd.service || true
    if "$grown"; then
        systemctl start --no-block vmw-grow-root.service || true
    fi
    # A journal under the template's name is there when the watchdog was faster.
    forget_other_journals || true
    dd if=/dev/urandom of=/var/lib/systemd/random-seed bs=512 count=1 status=none || true
    keep_identity
}

rehearse() {
    # Forks find running what a boot would start after the login.
    # shellcheck disable=SC2046 # names of units
    systemctl start vmw-later.target $(systemctl show --property=Wants --value vmw-later.target)
    udevadm settle
    # Each fork loads all of this memory: what only the boot has read goes, and what a fork will read comes.
    sync
    echo 3 >/proc/sys/vm/drop_caches
    mount --version >/dev/null
    /usr/lib/vmw/apart "$(date +%s.%N)"
    busctl call org.freedesktop.Avahi / org.freedesktop.Avahi.Server GetHostName >/dev/null
    systemctl is-active ssh.service >/dev/null || true
    work=$(mktemp -d -p /run)
    # Without it, the first login takes longer.
    rehearse_login "$work" >/dev/null 2>&1 || true
    rm -r "$work"
    # The session ends a moment later. That belongs into the template's journal, not into the forks'.
    tries=50
    while [ -n "$(loginctl --no-legend list-sessions)" ] && [ "$tries" -gt 0 ]; do
        tries=$((tries - 1))
        sleep 0.1
    done
    journalctl --sync
    # A fork whose power is cut before it has settled must not go on with this.
    rm -f /var/lib/systemd/random-seed
    # Until a fork settles they leave the processor to its login; if it never does, their watchdogs start them anew.
    for pid in $(systemctl show --property=MainPID --value systemd-timesyncd.service systemd-journald.service); do
        # 0 for one that does not run.
        [ "$pid" -eq 0 ] || kill -STOP "$pid"
    done
    rm -rf /var/log/journal/*
}

# With keys of its own in the directory WORK, and a server that listens nowhere.
#   rehearse_login WORK
rehearse_login() {
    for key in host user; do
        ssh-keygen -q -t ed25519 -N '' -f "$1/$key"
    done
    # Its server's directory otherwise comes with its service.
    install -d /run/sshd
    chmod 0711 "$1"
    server="/usr/sbin/sshd -i -o HostKey=$1/host -o AuthorizedKeysFile=$1/user.pub"
    # The image's own user is the only one whose systemd lingers.
    for account in /var/lib/systemd/linger/*; do
        ssh -F none -i "$1/user" -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
            -o ProxyCommand="$server" "${account##*/}@rehearsal" true
    done
}

if [ "$1" = --template ]; then
    step="rehearse"
    rehearse
    exit
fi
mode=$1
# shellcheck source=/dev/null
case $mode in
    --fork) . /dev/stdin ;;
    *) . "$mode" ;;
esac
if [ "$mode" = --fork ]; then
    step="set the fork apart"
    set_apart
fi
step="write the files"
# Pairs of a path and a content, as the host has set them.
write_files "$@"
step="write the identity"
write_identity
if [ "$mode" = --fork ]; then
    step="start what waited for the identity"
    systemctl start --no-block ssh.service &
    starter=$!
    mount_shares
    wait "$starter"
    say "done"
    # From here on the machine can be used, whatever fails.
    trap - EXIT
    settle
else
    forget_other_journals || true
    keep_identity
fi
