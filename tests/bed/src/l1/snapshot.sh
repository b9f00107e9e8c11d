# What L1 is busy with: all that counts, twice, and the exits of the guest's processors.
# On somebody's own machine nobody looks: that is not ours to trace.
[ -x /bin/l1-agent ] || exit 0
look() {
    grep -s . /sys/kernel/debug/kvm/*-*/* | sed 's/:\([0-9]*\)$/ \1/'
    cat /proc/[0-9]*/task/*/stat 2>/dev/null | awk '{
        match($0, /\(.*\)/)
        name = "thread " $1 " " substr($0, RSTART, RLENGTH)
        split(substr($0, RSTART + RLENGTH + 1), field, " ")
        print name ", ticks as a user " field[12]
        print name ", ticks in the kernel " field[13]
    }'
}
before=$(look)
sleep 1
after=$(look)
echo '--- counters of L1 that moved within a second ---'
printf '%s\n%s\n' "$before" "$after" | awk '{
    value = $NF
    sub(/ [^ ]*$/, "")
    if (($0 in seen) && value != seen[$0])
        print $0 ": " seen[$0] " + " value - seen[$0]
    seen[$0] = value
}'
echo '--- where the threads of host-vsp wait ---'
for pid in $(pidof host-vsp); do
    for task in /proc/"$pid"/task/*; do
        echo "$(cat "$task"/comm) in $(cat "$task"/wchan): $(cat "$task"/syscall)"
    done
done
echo '--- the last exits of guests within half a second ---'
cd /sys/kernel/tracing || exit
echo 1 >events/kvm/enable
echo >trace
sleep 0.5
# Disabling takes a while, event by event.
echo 0 >tracing_on
grep -v '^#' trace | tail -n 60
echo 0 >events/kvm/enable
echo 1 >tracing_on
