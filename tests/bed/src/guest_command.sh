#!/bed/busybox sh
# The first program of a guest that is there for one command. All that is ours is in /bed.
say() { echo "bed: $*" >/dev/console; }
give_up() {
    say "$*"
    poweroff -f
}
/bed/busybox mkdir -p /bed/bin /bed/root /proc /sys /dev /tmp /run /root /bin
/bed/busybox --install -s /bed/bin
# The user's own tools first.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/bed/bin
export HOME=/root TERM=dumb
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /dev/shm
ln -sf /proc/self/fd /dev/fd
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
[ -c /dev/ttyS1 ] || mknod /dev/ttyS1 c 4 65
[ -e /bin/sh ] || ln -s /bed/busybox /bin/sh

while read -r file name; do
    # Parameters of modules come from the kernel's command line, as with modprobe.
    parameters=$(tr ' ' '\n' </proc/cmdline | sed -n "s/^$name\.//p")
    insmod "/bed/modules/$file" $parameters || give_up "the module $name cannot be loaded"
done </bed/modules/list

inside=""
if [ -s /bed/device ]; then
    device=$(cat /bed/device)
    tries=0
    until [ -b "$device" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || give_up "there is no $device after 20 s"
        sleep 0.2
    done
    mount "$device" /bed/root || give_up "$device cannot be mounted as a root file system"
    for dir in proc sys dev tmp run; do
        mkdir -p "/bed/root/$dir"
        mount --bind "/$dir" "/bed/root/$dir" || give_up "$device has no place for /$dir"
    done
    [ -x /bed/root/bin/sh ] || give_up "$device has no /bin/sh"
    inside="chroot /bed/root"
fi
if ! /bed/run /dev/ttyS1 $inside /bin/sh -c "$(cat /bed/command)" >/dev/console 2>&1; then
    say "the kernel's log:"
    dmesg >/dev/console
fi
if [ -n "$inside" ]; then
    for dir in proc sys dev tmp run; do umount "/bed/root/$dir"; done
    umount /bed/root || mount -o remount,ro /bed/root
fi
sync
poweroff -f
