#!/bin/sh
# load PLACE: writes, reads back and compares 64 KiB of /dev/sda, at PLACE MiB, one request of 4 KiB
# at a time, until /tmp/stop is there. Each request waits for its own interrupt, so a lost one
# stops the load. /tmp/turns.PLACE counts the turns.
place=$1
turns=0
while [ ! -e /tmp/stop ]; do
    head -c 65536 /dev/urandom >"/tmp/written.$place"
    dd if="/tmp/written.$place" of=/dev/sda bs=4k seek=$((place * 256)) oflag=direct 2>/dev/null || exit 1
    dd if=/dev/sda of="/tmp/read.$place" bs=4k skip=$((place * 256)) count=16 iflag=direct 2>/dev/null || exit 1
    cmp "/tmp/written.$place" "/tmp/read.$place" || exit 1
    turns=$((turns + 1))
    # Whole or not at all, for who reads it meanwhile.
    echo $turns >"/tmp/new.$place"
    mv "/tmp/new.$place" "/tmp/turns.$place"
done
