#!/bin/busybox sh
# The first process of a lab guest. lab.py writes its orders into /lab:
#   modules   one `FILE [PARAMETER=VALUE…]` a line, in load order
#   ports     virtio port names to wait for
#   serials   disk serial numbers to wait for
#   command   the shell text to run
#   token     what marks the end of each stream on the ports
# Its own output goes to the console; the command's goes to the ports lab.stdout and lab.stderr, a tar of /out to
# lab.out.

export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
/bin/busybox mkdir -p /bin /dev /proc /sys /run /tmp /root /out /mnt
/bin/busybox --install -s /bin 2>/dev/null # says that files put here by --share exist already, and leaves them

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/virtio-ports /dev/by-serial
mount -t tmpfs tmpfs /dev/shm # the root, and so /tmp and /out, is in memory already
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
ifconfig lo 127.0.0.1 up

while read -r module; do insmod $module || echo "lab: cannot load $module"; done </lab/modules

# Ports and NVMe disks appear some time after their drivers. Names come from sysfs, since there is no udev.
link_device() { # link_device NAME FOLDER ATTRIBUTE-FILE…: links FOLDER/NAME to the device whose attribute reads NAME
    name=$1 folder=$2
    shift 2
    for attribute; do
        [ "$(cat "$attribute" 2>/dev/null | tr -d ' ')" = "$name" ] || continue
        device=${attribute#/sys/*/*/}
        device=/dev/${device%%/*}
        # The paths of a multipath NVMe disk have the serial too, but no device.
        [ -e "$device" ] && ln -s "$device" "$folder/$name" && return 0
    done
    return 1
}
while read -r name; do
    until link_device "$name" /dev/virtio-ports /sys/class/virtio-ports/*/name; do sleep 0.02; done
done </lab/ports
while read -r name; do
    until link_device "$name" /dev/by-serial /sys/class/block/*/serial /sys/class/block/*/device/serial; do
        sleep 0.02
    done
done </lab/serials

# A port can be opened once only, so that /dev/stdout would fail with EBUSY in the command: it gets pipes.
mkfifo /lab/stdout /lab/stderr
exec 3>/dev/virtio-ports/lab.stdout 4>/dev/virtio-ports/lab.stderr
cat /lab/stdout >&3 &
stdout_cat=$!
cat /lab/stderr >&4 &
stderr_cat=$!
/bin/sh /lab/command </dev/null >/lab/stdout 2>/lab/stderr 3>&- 4>&-
code=$?

# What the command left running would keep the pipes open.
for process in /proc/[0-9]*; do
    case ${process#/proc/} in
    1 | "$stdout_cat" | "$stderr_cat") ;;
    *) kill -9 "${process#/proc/}" 2>/dev/null ;;
    esac
done
wait "$stdout_cat" "$stderr_cat"
if [ -e /dev/virtio-ports/lab.out ]; then
    { tar -C /out -cf - . && printf '\000%s 0\n' "$(cat /lab/token)"; } >/dev/virtio-ports/lab.out
fi
sync
printf '\000%s 0\n' "$(cat /lab/token)" >&4
printf '\000%s %s\n' "$(cat /lab/token)" "$code" >&3
# The host ends the machine once it has all the marks; to power off here could lose what the ports still hold.
while :; do sleep 60; done
