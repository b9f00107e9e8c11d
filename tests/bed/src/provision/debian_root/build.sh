#!/bin/sh
# build.sh DEVICE LABEL START: makes a Debian of the packages in /tmp/debs/base and /tmp/debs/more, and
# puts it on the only partition of DEVICE, from sector START. Runs as root in an L1; Debian is made in memory first,
# since nothing of it has to survive before it is whole.
set -e
device=$1
label=$2
start=$3
root=/tmp/root

in_root() {
    chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C TZ=UTC \
        DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true "$@"
}

step() {
    echo "@@ $*"
}

step "unpacking the base"
mkdir -p "$root/usr" "$root/tmp"
for dir in bin sbin lib lib64; do
    mkdir "$root/usr/$dir"
    ln -s "usr/$dir" "$root/$dir"
done
for deb in /tmp/debs/base/*.deb; do
    ar p "$deb" data.tar | tar -x -C "$root" -f -
done
for unread in doc info locale man; do
    rm -rf "$root/usr/share/$unread/"*
done
mkdir -p "$root/var/lib/dpkg/info" "$root/etc/dpkg/dpkg.cfg.d" "$root/debs"
: >"$root/var/lib/dpkg/status"
: >"$root/etc/fstab"
ln -s mawk "$root/usr/bin/awk"
# Nobody reads documents here, and nothing is lost before the end.
cat >"$root/etc/dpkg/dpkg.cfg.d/small" <<'END'
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/info/*
force-unsafe-io
END
# No service starts while its package is installed.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
mount --bind /tmp/debs "$root/debs"
mount -t proc proc "$root/proc"
mount -t devtmpfs devtmpfs "$root/dev"

step "installing the base"
cd "$root"
# What the scripts of all others stand on, in this order.
for name in base-passwd base-files dpkg libc6 perl-base mawk debconf; do
    [ "$name" != mawk ] || rm usr/bin/awk
    in_root dpkg --force-depends --install debs/base/*-"$name".deb
done
in_root sh -c 'dpkg --force-depends --unpack /debs/base/*.deb'
in_root dpkg --configure --pending --force-configure-any --force-depends
step "installing the rest"
in_root sh -c 'dpkg --force-depends --unpack /debs/more/*.deb'
step "configuring the rest"
in_root dpkg --configure --pending
step "settling"
broken=$(in_root dpkg --audit)
[ -z "$broken" ] || { echo "$broken"; exit 1; }
cd /
umount "$root/debs"
rmdir "$root/debs"
rm "$root/usr/sbin/policy-rc.d" "$root/var/lib/dpkg/"*-old "$root/var/log/"*.log

# Root may come in on the serial console without a password.
in_root passwd -d root
echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >"$root/etc/hosts"
echo "LABEL=$label / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
in_root systemd-machine-id-setup
# There is no display, and nothing to be tidied at intervals: a story lasts a minute. What is not
# there (other formats of programs, pages of other sizes, users' sessions) is not looked for.
in_root systemctl set-default multi-user.target
in_root systemctl mask getty@tty1.service systemd-logind.service systemd-tmpfiles-clean.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer \
    proc-sys-fs-binfmt_misc.automount systemd-binfmt.service dev-hugepages.mount \
    dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount systemd-pstore.service
# In software emulation on a busy machine the usual minute and a half may be short.
mkdir -p "$root/etc/systemd/system.conf.d"
cat >"$root/etc/systemd/system.conf.d/patient.conf" <<'END'
[Manager]
DefaultTimeoutStartSec=10min
DefaultDeviceTimeoutSec=10min
END
mkdir -p "$root/usr/lib/modules"
# Caches are as new as what they are made of.
touch "$root/usr" "$root/etc/.updated" "$root/var/.updated"

step "writing the disk"
printf 'label: gpt\n\nstart=%s, name=%s, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n' "$start" "$label" |
    in_root sfdisk --quiet "$device"
in_root mke2fs -q -t ext4 -L "$label" -E lazy_itable_init=0,lazy_journal_init=0 "${device}1"
umount "$root/dev" "$root/proc"
mkdir /tmp/disk
mount -t ext4 "${device}1" /tmp/disk
# busybox knows nothing of the attributes that some files have.
mkdir -p "$root/disk"
mount --bind /tmp/disk "$root/disk"
in_root sh -c 'cp -a --one-file-system /bin /boot /etc /home /lib /lib64 /media /mnt /opt /root /sbin /srv /usr /var /disk/'
for dir in dev proc run sys tmp; do
    mkdir "/tmp/disk/$dir"
done
chmod 1777 /tmp/disk/tmp
df -m /tmp/disk
umount "$root/disk" /tmp/disk
mount -t devtmpfs devtmpfs "$root/dev"
in_root e2fsck -fn "${device}1"
sync
step "done"
