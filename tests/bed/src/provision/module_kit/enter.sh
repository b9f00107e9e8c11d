#!/bin/sh
# enter.sh ROOT PATH... -- COMMAND...: runs COMMAND in a root of its own, made of ROOT's /usr, with each
# PATH of outside where it is there. Mounts live as long as COMMAND, and nobody else sees them.
set -e
usr=$1/usr
root=$1/mnt
shift
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir usr proc dev tmp etc
for dir in bin sbin lib lib64; do
    ln -s "usr/$dir" "$dir"
done
mount --rbind "$usr" usr
mount --rbind /proc proc
mount --rbind /dev dev
while [ "$1" != -- ]; do
    mkdir -p ".$1"
    mount --rbind "$1" ".$1"
    shift
done
shift
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/ LC_ALL=C "$@"
