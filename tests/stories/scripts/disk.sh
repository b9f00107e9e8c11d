#!/bin/sh
# disk SERIAL: waits for the disk with this serial number and prints its name, as in /dev.
# disk SERIAL gone: waits until there is none.
n=0
while [ $n -lt 300 ]; do
    found=
    for disk in /sys/block/sd*; do
        [ -e "$disk/device/vpd_pg80" ] || continue
        # The page without its header.
        [ "$(tail -c +5 "$disk/device/vpd_pg80")" = "$1" ] && found=${disk##*/}
    done
    if [ "$2" = gone ]; then
        [ -z "$found" ] && exit 0
    elif [ -b "/dev/$found" ] && [ -n "$found" ]; then
        echo "$found"
        exit 0
    fi
    sleep 0.1
    n=$((n + 1))
done
exit 1
