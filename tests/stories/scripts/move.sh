#!/bin/sh
# move CPU...: makes each CPU in turn the target of every channel.
for cpu in "$@"; do
    for channel in /sys/bus/vmbus/devices/*/channels/*; do
        echo "$cpu" >"$channel/cpu" || exit 1
        read -r now <"$channel/cpu"
        [ "$now" = "$cpu" ] || exit 1
    done
done
