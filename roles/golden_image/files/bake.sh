#!/bin/bash
# Turn a Debian cloud image into a golden image. Runs once, as root, in the builder VM; the host follows it on the serial console.
# Without an argument: all steps, then power off. With a step's name: that step.
set -euo pipefail

here=/run/vmw-bake
console=/dev/ttyS0
# Filled by the settings, as are the variables in capitals: a function and its title, in turns.
steps=()
# shellcheck source=/dev/null
. "$here/settings"

export DEBIAN_FRONTEND=noninteractive HOME=/root LC_ALL=C.UTF-8
# What an earlier step put there counts for the next ones, as it will at login.
touch /etc/environment
set -a
# shellcheck source=/dev/null
. /etc/environment
set +a

apt() {
    # No fsync for each file: a build that breaks off is thrown away.
    apt-get --quiet --yes -o Acquire::Languages=none -o Acquire::Retries=5 -o APT::Update::Error-Mode=any -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-unsafe-io "$@"
}

step_prepare() {
    # Each of these may hold apt's lock when a step needs it, and would disturb the agent later.
    systemctl mask --now apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service
    systemctl mask e2scrub_all.timer e2scrub_reap.service man-db.timer dpkg-db-backup.timer
    install_root_growth
    /usr/local/sbin/vmw-grow-root
    echo 'man-db man-db/auto-update boolean false' | debconf-set-selections
    if [ -d "$here/ca" ]; then
        cp "$here"/ca/*.crt /usr/local/share/ca-certificates/
        update-ca-certificates
        # Node.js has certificates of its own and asks this variable for more.
        echo 'NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt' >>/etc/environment
    fi
    if [ -n "$APT_MIRROR" ]; then
        use_apt_mirror
    fi
}

install_root_growth() {
    # cloud-init's growpart and resizefs cost a second of every boot; this costs nothing when there is nothing to grow.
    cat >/usr/local/sbin/vmw-grow-root <<'SCRIPT'
#!/bin/sh
# Grow the root file system when its disk has room behind it.
set -eu
device=$(findmnt --noheadings --output SOURCE /)
partition=/sys/class/block/${device#/dev/}
[ -e "$partition/partition" ] || exit 0
disk=$(dirname "$(readlink -f "$partition")")
room=$(($(cat "$disk/size") - $(cat "$partition/start") - $(cat "$partition/size")))
# In sectors: the copy of the partition table at the disk's end is no room.
[ "$room" -gt 65536 ] || exit 0
growpart "/dev/${disk##*/}" "$(cat "$partition/partition")"
resize2fs "$device"
SCRIPT
    chmod 0755 /usr/local/sbin/vmw-grow-root
    cat >/etc/systemd/system/vmw-grow-root.service <<'UNIT'
[Unit]
Description=Grow the root file system to its disk

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/vmw-grow-root

[Install]
WantedBy=multi-user.target
UNIT
    systemctl enable vmw-grow-root.service
}

use_apt_mirror() {
    local suite security="${APT_MIRROR%/}-security"
    # shellcheck source=/dev/null
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    rm -f /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources
    write_source main "${APT_MIRROR%/}" "$suite $suite-updates"
    # A mirror has the security archive beside the main one, or not at all.
    if /usr/lib/apt/apt-helper download-file "$security/dists/$suite-security/InRelease" "$here/InRelease"; then
        write_source security "$security" "$suite-security"
    fi
}

write_source() {
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
        "$2" "$3" >"/etc/apt/sources.list.d/debian-$1.sources"
}

step_index() {
    apt update
}

step_packages() {
    apt install --no-install-recommends \
        avahi-daemon build-essential ca-certificates curl git libnss-mdns qemu-guest-agent tiny-initramfs-core
}

step_node() {
    install -d -m 0755 /etc/apt/keyrings
    curl --fail --silent --show-error --location --retry 5 --output /etc/apt/keyrings/nodesource.asc \
        "$NODESOURCE_URL/gpgkey/nodesource-repo.gpg.key"
    chmod 0644 /etc/apt/keyrings/nodesource.asc
    echo "deb [signed-by=/etc/apt/keyrings/nodesource.asc] $NODESOURCE_URL/node_$NODE_MAJOR.x nodistro main" \
        >/etc/apt/sources.list.d/nodesource.list
    apt update
    apt install --no-install-recommends nodejs
    local version
    version=$(node --version)
    echo "Node.js $version"
    if [ "${version%%.*}" != "v$NODE_MAJOR" ]; then
        echo "apt installed Node.js $version, not $NODE_MAJOR" >&2
        return 1
    fi
}

step_agent() {
    local package=@anthropic-ai/claude-code exact installed
    if [ -n "$NPM_REGISTRY" ]; then
        npm config set --location=global registry "$NPM_REGISTRY"
    fi
    # An exact version: for a tag or none, npm may quietly take an older release that suits the Node.js at hand.
    exact=$(npm view "$package@$CLAUDE_CODE_VERSION" version --json | tr -d '"\n')
    if ! [[ $exact =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]]; then
        echo "the registry has no single version $CLAUDE_CODE_VERSION of $package: $exact" >&2
        return 1
    fi
    npm install --global --no-audit --no-fund "$package@$exact"
    installed=$(claude --version)
    echo "claude --version: $installed"
    if [ "${installed%% *}" != "$exact" ]; then
        echo "npm was asked for $package $exact, and installed $installed" >&2
        return 1
    fi
    # Only root can update a global installation, and the manifest says which version this image has.
    echo 'DISABLE_AUTOUPDATER=1' >>/etc/environment
    echo '{"hasCompletedOnboarding": true}' >/etc/skel/.claude.json
}

step_configure() {
    # Every session sshd opens, one with a command too, gets the keys; `optional`, for a login must not depend on them.
    echo "session optional pam_env.so readenv=1 envfile=/home/$GUEST_USER/.secrets/secrets.env" >>/etc/pam.d/sshd
    # The worktree belongs to the host's user, and root in the guest is somebody else to Git.
    git config --system --add safe.directory '*'
    # A clone boots the kernel beside its disk, which only an image build replaces.
    dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\n' 'linux-image-*' | sed -n 's/^ii *//p' | xargs apt-mark hold
    configure_user
    configure_sshd
    configure_network
    configure_boot
    configure_order
}

configure_user() {
    # The uid of the host's user, so that files in the share belong to the right person on both sides.
    useradd --uid "$GUEST_UID" --user-group --create-home --shell /bin/bash --groups adm,sudo "$GUEST_USER"
    # Each VM writes its keys into it.
    install -d -m 0700 -o "$GUEST_USER" -g "$GUEST_USER" "/home/$GUEST_USER/.ssh"
    install -m 0600 -o "$GUEST_USER" -g "$GUEST_USER" /dev/null "/home/$GUEST_USER/.ssh/authorized_keys"
    # The user's systemd is up before the first login, which would have to wait for it.
    install -D /dev/null "/var/lib/systemd/linger/$GUEST_USER"
    echo "$GUEST_USER ALL=(ALL) NOPASSWD:ALL" >/etc/sudoers.d/90-vmw
    chmod 0440 /etc/sudoers.d/90-vmw
}

configure_sshd() {
    printf '%s\n' 'PasswordAuthentication no' 'PermitRootLogin no' 'HostKey /etc/ssh/ssh_host_ed25519_key' \
        >/etc/ssh/sshd_config.d/10-vmw.conf
    # A template has no host key; its forks start the server when they have theirs. It reads its configuration at its start, and
    # need not have another sshd read it before.
    write_unit ssh.service.d/vmw.conf '[Unit]' 'ConditionPathExists=/etc/ssh/ssh_host_ed25519_key' '[Service]' 'ExecStartPre='
    # Each login would wait for the programs that write a message of the day.
    sed -i '/pam_motd\.so .*motd\.dynamic/s/^/# /' /etc/pam.d/sshd
}

configure_network() {
    # All that makes a machine known to the network follows its card's address, and nothing the machine-id.
    cat >/etc/systemd/network/10-vmw.network <<'CONFIG'
[Match]
Driver=virtio_net

[Network]
DHCP=ipv4
IPv6AcceptRA=yes
# avahi answers for the name.
LLMNR=no
MulticastDNS=no

[DHCPv4]
ClientIdentifier=mac
# The name is the host's to give; to take one from the network would start another service at boot.
UseHostname=no

[DHCPv6]
DUIDType=link-layer
CONFIG
    rm -f /etc/netplan/*.yaml
    # netplan's generator would have started it.
    systemctl enable systemd-networkd.service
    systemctl mask systemd-networkd-wait-online.service
}

configure_boot() {
    local name generators=/etc/systemd/system-generators
    install -d "$generators" /usr/lib/vmw /var/lib/vmw
    # The seed is read by what follows, in a fraction of a second instead of many.
    systemctl mask cloud-init-local.service cloud-init.service cloud-config.service cloud-final.service cloud-init-hotplugd.socket
    touch /etc/cloud/cloud-init.disabled
    install -m 0755 "$here/init.sh" /usr/lib/vmw/init
    install -m 0755 "$here/identity.sh" /usr/lib/vmw/identity
    gcc -O2 -s -Wall -Wextra -Werror -o /usr/lib/vmw/apart "$here/apart.c"
    # systemd waits for each of these before it starts anything, and a clone has nothing of what they look for.
    for name in cloud-init-generator netplan systemd-cryptsetup-generator systemd-debug-generator systemd-gpt-auto-generator \
        systemd-hibernate-resume-generator systemd-integritysetup-generator systemd-run-generator \
        systemd-system-update-generator systemd-veritysetup-generator; do
        ln -sf /dev/null "$generators/$name"
    done
    # What has nothing to do in a clone, and starts others to find that out. vmw-grow-root grows the root.
    systemctl mask systemd-firstboot.service systemd-network-generator.service systemd-pstore.service systemd-repart.service
    sed -i 's/,x-systemd\.growfs//' /etc/fstab
    # Every machine has these devices, and a fork's card and shares come while it runs: nobody should look for their drivers then.
    printf '%s\n' virtio_console virtio_net virtio_rng virtiofs >/etc/modules-load.d/vmw.conf
    # udev looks each device up there for names of vendors and the keys of keyboards.
    rm -f /usr/lib/udev/hwdb.bin /etc/udev/hwdb.bin
    systemctl mask systemd-hwdb-update.service
    # The host asks often, and need not fill the log.
    write_unit qemu-guest-agent.service.d/vmw.conf '[Service]' 'LogLevelMax=notice'
    # Its timers are masked, and it would start Python at each boot.
    systemctl mask unattended-upgrades.service
}

# A boot first starts what a login needs, name resolution included; on an emulated machine, the rest would make it wait twice as
# long. That starts by a timer, when the login has had its turn.
configure_order() {
    local early=(block input net virtio-ports)
    write_unit vmw-later.target '[Unit]' 'Description=What a login can do without'
    write_unit vmw-later.timer '[Unit]' 'Description=Start what a login can do without' \
        '[Timer]' OnActiveSec=15 AccuracySec=1 Unit=vmw-later.target '[Install]' WantedBy=timers.target
    systemctl enable vmw-later.timer
    start_later sysinit dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount sys-kernel-config.mount \
        sys-kernel-debug.mount sys-kernel-tracing.mount systemd-binfmt.service systemd-journal-flush.service \
        systemd-random-seed.service systemd-timesyncd.service systemd-update-utmp.service
    start_later multi-user cron.service getty.target
    # Of the devices, first those without which there is no login and no agent; and never what has no driver to load and no rule.
    write_unit systemd-udev-trigger.service.d/vmw.conf '[Service]' 'ExecStart=' \
        "ExecStart=-udevadm trigger --type=devices --action=add$(printf ' --subsystem-match=%s' "${early[@]}")"
    write_unit vmw-coldplug.service '[Unit]' 'Description=Coldplug the other udev devices' \
        '[Service]' Type=oneshot RemainAfterExit=yes 'ExecStart=-udevadm trigger --type=subsystems --action=add' \
        "ExecStart=-udevadm trigger --type=devices --action=add$(
            printf ' --subsystem-nomatch=%s' "${early[@]}" \
                bdi clockevents event_source memory pci_bus pci_express vc wakeup workqueue
        )" '[Install]' WantedBy=vmw-later.target
    systemctl enable vmw-coldplug.service
    # These machines have no display and no keyboard, nobody asks them for a runlevel or for FUSE's connections, and no desktop
    # starts programs by itself. Each of these is one program more, or two.
    systemctl disable getty@tty1.service
    systemctl mask modprobe@drm.service sys-fs-fuse-connections.mount systemd-update-utmp-runlevel.service
    install -d /etc/systemd/user-generators
    ln -sf /dev/null /etc/systemd/user-generators/systemd-xdg-autostart-generator
}

# Have units started later, and not by the target that does so now.
#   start_later TARGET UNIT...
start_later() {
    local unit new=/etc/systemd/system/vmw-later.target.wants old=/etc/systemd/system/$1.target.wants
    shift
    install -d "$new" "$old"
    for unit; do
        ln -sf "/usr/lib/systemd/system/$unit" "$new/$unit"
        # Hides the package's own link of that name.
        ln -sf /dev/null "$old/$unit"
    done
}

write_unit() {
    local path=/etc/systemd/system/$1
    shift
    install -d "$(dirname "$path")"
    printf '%s\n' "$@" >"$path"
}

step_ramdisk() {
    # Debian's own takes seconds, for it looks for any root on any device; a clone's is always on a virtio disk.
    mktirfs -m no --include-modules=virtio_pci,virtio_blk,"$(findmnt --noheadings --output FSTYPE /)" \
        -o "$here/initrd" "$(uname -r)"
}

step_handover() {
    local work=$here/handover
    mkdir "$work"
    cp "/boot/vmlinuz-$(uname -r)" "$work/kernel"
    mv "$here/initrd" "$work/initrd"
    printf '{"debian": "%s", "kernel": "%s", "node": "%s", "claude_code": "%s", "root_uuid": "%s"}\n' \
        "$(cat /etc/debian_version)" "$(uname -r)" "$(node --version | tr -d v)" "$(claude --version | cut -d ' ' -f 1)" \
        "$(findmnt --noheadings --output UUID /)" >"$work/facts.json"
    tar --create --format=ustar --file=/dev/disk/by-id/virtio-vmw-out --directory="$work" kernel initrd facts.json
    rm -r "$work"
    sync
}

step_clean() {
    echo 'man-db man-db/auto-update boolean true' | debconf-set-selections
    apt clean
    rm -rf /var/lib/apt/lists/* /root/.npm /root/.cache /root/.local /root/.bash_history
    # Not what a service has open: every clone's first boot would have to clear the orphaned inodes.
    find /tmp /var/tmp -mindepth 1 -maxdepth 1 -not -name 'systemd-private-*' -not -name '.*-unix' -exec rm -rf {} +
    cloud-init clean --logs --seed
    rm -f /etc/netplan/*.yaml /etc/network/interfaces.d/50-cloud-init /var/lib/dhcp/*.leases
    rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
    rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
    # Otherwise systemd takes each boot for the first one after an update, and looks again for users to create: systemd.unit(5).
    touch --reference=/usr /etc/.updated /var/.updated
    : >/etc/hostname
    # Empty, not absent: an absent file would make every clone's first boot a `first boot` to systemd, presets and all.
    : >/etc/machine-id
    rm -f /var/lib/dbus/machine-id
    install -d /var/lib/dbus
    ln -s /etc/machine-id /var/lib/dbus/machine-id
    systemctl stop systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-journald.service
    rm -rf /var/log/journal/*
    find /var/log -type f -exec truncate --size=0 {} +
    sync
    fstrim /
}

say() {
    # A new line first: the kernel or systemd may be in the middle of one.
    printf '\nvmw-bake: %s\n' "$*" >"$console"
}

power_off() {
    # A shutdown in good order would write logs, seeds and states into the cleaned image: SysRq makes it read-only, and is gone.
    sync
    echo u >/proc/sysrq-trigger
    sleep 3
    echo o >/proc/sysrq-trigger
    sleep infinity
}

main() {
    local index status=0 total=$((${#steps[@]} / 2))
    dmesg --console-off
    # systemd's own messages on the console.
    kill -s SIGRTMIN+21 1
    for ((index = 0; index < total; index++)); do
        say "step $((index + 1))/$total ${steps[2 * index + 1]}"
        # A process of its own: bash forgets `errexit` in a function whose status is looked at.
        bash "$here/bake.sh" "${steps[2 * index]}" 2>&1 </dev/null | sed --unbuffered 's/^/vmw-bake| /' >"$console" || status=$?
        if [ "$status" -ne 0 ]; then
            say "failed: ${steps[2 * index]}: exit status $status"
            power_off
        fi
    done
    say "done"
    power_off
}

if [ $# -gt 0 ]; then
    "step_$1"
else
    main
fi
