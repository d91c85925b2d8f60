#!/bin/sh
# Installs a package next to this machine, uses it, and purges it.
#
#   unshare --mount --net --pid --fork chroot.sh PACKAGE DIRECTORY     (an empty directory)
set -eu
. "${0%/*}/overlay.sh"
install="apt-get -qq install -y --no-install-recommends"

inside $install /tmp/ftp-alg.deb
inside id ftp-alg
inside ftp-alg check
inside ftp-alg version
sed -i 's/^#control-ports.*/control-ports = [21, 2121]/' root/etc/ftp-alg.toml

inside ftp-alg run --user ftp-alg 2>log &
inside ftp-alg status --wait 20 >/dev/null || { cat log; fail 'the daemon does not run'; }
waited=0
until grep -q 'control ports \[21, 2121\]' log; do
    [ $((waited += 1)) -le 200 ] || { cat log; fail 'the configuration is not in use'; }
    sleep 0.1
done

# An upgrade keeps the edited configuration and the state. It says what a restart would end.
ends='sessions with adjusted sequence numbers end now'
inside $install --reinstall /tmp/ftp-alg.deb >upgrade 2>&1 || { cat upgrade; exit 1; }
! grep -q "$ends" upgrade || fail 'the upgrade says that sessions end'
echo 'ftp-alg sessions, format 1; boot' >root/run/ftp-alg/queue-9.sessions
inside $install --reinstall /tmp/ftp-alg.deb >upgrade 2>&1 || { cat upgrade; exit 1; }
grep -q "$ends" upgrade || fail 'the upgrade does not say that sessions end'
grep -q '2121' root/etc/ftp-alg.toml || fail 'the upgrade took the configuration back'
[ -n "$(ls root/run/ftp-alg)" ] || fail 'the upgrade took the state'

# A crash leaves the table. The last is the oldest: the daemon, not its broker.
daemon=$(inside pidof ftp-alg | awk '{ print $NF }')
kill -9 "$daemon"
while inside pidof ftp-alg >/dev/null; do sleep 0.1; done
inside nft list table inet ftp_alg >/dev/null || fail 'no table is left to be removed'

# Pins that a daemon of another network namespace has locked, and those of one that ended.
used=root/sys/fs/bpf/ftp-alg/used
mkdir "$used" root/sys/fs/bpf/ftp-alg/abandoned
exec 9<"$used"
flock 9
inside apt-get -qq purge -y ftp-alg
[ -z "$(inside nft list tables)" ] || fail 'a table is left'
! inside getent passwd ftp-alg || fail 'the user is left'
! inside getent group ftp-alg || fail 'the group is left'
[ ! -e root/run/ftp-alg ] || fail 'the state is left'
[ "$(ls root/sys/fs/bpf/ftp-alg)" = "${used##*/}" ] || fail 'of the pins, those in use must be left, and only those'

# What differs from before, but for records and caches of the tools.
(cd upper && find . -type f -o -type l -o -type c) | sort | while read -r file; do
    case $file in
    ./var/lib/dpkg/* | ./var/lib/apt/* | ./var/cache/* | ./var/log/* | ./var/backups/*) ;;
    ./etc/passwd- | ./etc/group- | ./etc/shadow- | ./etc/gshadow- | ./etc/*.lock | ./etc/.pwd.lock) ;;
    *) cmp -s "upper/$file" "before/$file" || echo "left: $file" ;;
    esac
done >left
[ ! -s left ] || { cat left; fail 'the purge leaves files'; }
echo 'purged, nothing is left'
