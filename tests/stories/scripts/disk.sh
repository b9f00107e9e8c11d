#!/bin/sh
# disk SERIAL: waits for the disk with this serial number and prints its name, as in /dev.
# disk SERIAL gone: waits until there is none.
end=$(($(date +%s) + 45))
while [ "$(date +%s)" -lt $end ]; do
    found=
    for disk in /sys/block/sd*; do
        # The page without its header. A disk may go while it is looked at.
        [ "$(tail -c +5 "$disk/device/vpd_pg80" 2>/dev/null)" = "$1" ] && found=${disk##*/}
    done
    if [ "$2" = gone ]; then
        [ -z "$found" ] && exit 0
    elif [ -b "/dev/$found" ] && [ -n "$found" ]; then
        echo "$found"
        exit 0
    fi
    sleep 0.1
done
exit 1
