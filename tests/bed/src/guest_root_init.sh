#!/bin/sh
# Mounts the root file system that the kernel's command line names, as root=LABEL=… or
# root=UUID=…, and goes on with its init. The kernel's modules are in this archive, so they go
# with us: what the root file system has to load it finds where it looks.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

fail() {
    echo "initramfs: $*"
    poweroff -f
}

version=$(uname -r)
modules=/lib/modules/$version
for module in $(cat /lib/modules/load); do
    # Parameters of modules come from the kernel's command line, as with modprobe.
    name=${module##*/}
    parameters=$(tr ' ' '\n' </proc/cmdline | sed -n "s/^${name%.ko}\.//p")
    insmod "$modules/$module" $parameters || echo "insmod $module failed" >/dev/kmsg
done

root=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^root=//p')
tries=0
until device=$(findfs "$root" 2>/dev/null); do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || fail "no file system $root"
    sleep 0.1
done
mount -t ext4 -o ro "$device" /root || fail "can't mount $device"
mount -t tmpfs -o mode=755 modules /root/usr/lib/modules || fail "no place for modules"
mv "$modules" /root/usr/lib/modules/
chroot /root /usr/sbin/depmod "$version" || fail "depmod"
# systemd keeps a /run that is there.
mount -t tmpfs -o mode=755 run /root/run
cp -R /files /root/run/bed
mount --move /dev /root/dev
umount /sys /proc
exec switch_root /root /sbin/init
fail "no /sbin/init"
