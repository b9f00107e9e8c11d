#!/bin/sh
# reload COUNT SERIAL: takes the storage driver out and puts it in again, COUNT times, and reads from
# the disk with this serial number after each.
n=0
while [ $n -lt "$1" ]; do
    rmmod hv_storvsc || exit 1
    [ -z "$(ls /sys/bus/vmbus/drivers | grep storvsc)" ] || exit 1
    insmod /modules/hv_storvsc.ko || exit 1
    name=$(disk "$2") || exit 1
    dd if="/dev/$name" of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null || exit 1
    n=$((n + 1))
done
