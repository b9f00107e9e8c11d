#!/bin/sh
# move-on CPU...: moves every channel from CPU to CPU and round again until /tmp/still is there.
# /tmp/rounds then has their number.
rounds=0
while [ ! -e /tmp/still ]; do
    move "$@" || exit 1
    rounds=$((rounds + 1))
done
echo $rounds >/tmp/rounds
