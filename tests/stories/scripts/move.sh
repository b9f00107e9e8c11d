#!/bin/sh
# move CPU: makes CPU the target of every channel.
for channel in /sys/bus/vmbus/devices/*/channels/*; do
    echo "$1" >"$channel/cpu" || exit 1
    [ "$(cat "$channel/cpu")" = "$1" ] || exit 1
done
