#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
for module in $(cat /modules/list); do
    # Parameters of modules come from the kernel's command line, as with modprobe.
    parameters=$(tr ' ' '\n' </proc/cmdline | sed -n "s/^$module\.//p")
    insmod "/modules/$module.ko" $parameters || echo "insmod $module failed" >/dev/kmsg
done
stty -echo -onlcr
echo "@@ ready"
while read -r line; do
    eval "$line" </dev/null
    echo "@@ done $?"
done
poweroff -f
