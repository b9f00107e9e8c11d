#!/bin/sh
# turns MORE PLACE...: waits until the load at each PLACE has made MORE further turns.
more=$1
shift
for place in "$@"; do
    [ -e "/tmp/turns.$place" ] && read -r from <"/tmp/turns.$place" || from=0
    echo $((from + more)) >"/tmp/wanted.$place"
done
for place in "$@"; do
    read -r wanted <"/tmp/wanted.$place"
    until [ -e "/tmp/turns.$place" ] && read -r now <"/tmp/turns.$place" && [ "$now" -ge "$wanted" ]; do
        sleep 0.1
    done
done
