#!/bin/sh
# Installs an ipk by its own scripts into a root tree of busybox, with what the scripts call on OpenWrt, and transfers a file
# through that gateway. Nothing there has a libc for the program: nft runs with libraries and a loader of its own.
#
#   unshare --mount --net --pid --fork openwrt.sh PACKAGE DIRECTORY     (an empty directory)
set -eu
package=$1
cd "$2"
fail() { echo "${0##*/}: $*" >&2; cat server root/tmp/log >&2 || :; exit 1; }
wait_for() {
    waited=0
    until "$@" >/dev/null; do
        [ $((waited += 1)) -le 200 ] || fail "in vain: $*"
        sleep 0.1
    done
}

mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs .
cd "$2"
# As there, /var is in memory, and there is no /run.
mkdir -p control files root/bin root/dev root/etc root/lib root/proc root/sys root/tmp/run root/usr/lib/nft root/usr/sbin
ln -s tmp root/var
cp "$(command -v busybox)" root/bin
chroot root /bin/busybox --install -s /bin
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount --rbind /sys root/sys
# The removal takes the pins that it sees: none of another test's daemon.
mount -t bpf bpf root/sys/fs/bpf
nft=$(command -v nft)
ldd "$nft" | grep -o '/[^ ]*' | xargs cp -L -t root/usr/lib/nft "$nft"
cat >root/usr/sbin/nft <<'END'
#!/bin/sh
exec /usr/lib/nft/ld-linux-*.so.* --library-path /usr/lib/nft /usr/lib/nft/nft "$@"
END
cat >root/lib/functions.sh <<'END'
default_postinst() { /etc/init.d/ftp-alg enable; /etc/init.d/ftp-alg start; }
default_prerm() { /etc/init.d/ftp-alg disable; /etc/init.d/ftp-alg stop; }
END
cat >root/etc/rc.common <<'END'
procd_open_instance() { :; }
procd_close_instance() { :; }
procd_set_param() {
    [ "$1" = command ] || return 0
    shift
    "$@" >/tmp/log 2>&1 &
    echo $! >/tmp/pid
}
procd_send_signal() { kill -"$3" "$(cat /tmp/pid)"; }
. "$1"
case $2 in
start) start_service ;;
reload) reload_service ;;
stop) kill "$(cat /tmp/pid)" ;;
enable) touch /tmp/enabled ;;
disable) rm /tmp/enabled ;;
esac
END
chmod 755 root/usr/sbin/nft
inside() { chroot root /bin/env -i PATH=/usr/sbin:/bin "$@"; }

# A client, this gateway, a server. What fw4 does with the zones lan and wan.
ip link set lo up
for name in lan:10.1.0 wan:10.2.0; do
    zone=${name%:*} network=${name#*:}
    ip netns add "$zone"
    ip link add "$zone" type veth peer name eth0 netns "$zone"
    ip address add "$network.1/24" dev "$zone"
    ip link set "$zone" up
    ip -n "$zone" address add "$network.2/24" dev eth0
    ip -n "$zone" link set eth0 up
    ip -n "$zone" route add default via "$network.1"
done
sysctl -qw net.ipv4.ip_forward=1
nft -f - <<'END'
table inet fw4 {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct mark & 0x40000000 != 0 accept
        ct state established accept
        iifname lan tcp dport 21 accept
    }
    chain srcnat { type nat hook postrouting priority srcnat; oifname wan masquerade; }
}
END
seq 100000 >files/file
export PYTHONPATH="${FTP_ALG_LAB_CACHE:-/var/cache/ftp-alg-lab}/root/usr/lib/python3/dist-packages"
ip netns exec wan /usr/bin/python3 -m pyftpdlib -p 21 -d files >server 2>&1 &
wait_for grep 'starting FTP server' server
echo 10.2.0.2 server.lan >root/etc/hosts

mkdir -p root/usr/lib/opkg/info
busybox tar -xzf "$package" -C control
busybox tar -xzf control/control.tar.gz -C control
for script in preinst postinst prerm postrm; do
    cp "control/$script" "root/usr/lib/opkg/info/ftp-alg.$script"
done
script() { inside "/usr/lib/opkg/info/ftp-alg.$1" "$2" || fail "$1 failed"; }
script preinst install
busybox tar -xzf control/data.tar.gz -C root
script postinst configure
[ -e root/tmp/enabled ] || fail 'the service is not enabled'
inside ftp-alg status --wait 20 >/dev/null || fail 'the daemon does not run'
[ -S root/tmp/run/ftp-alg/ftp-alg.sock ] || fail 'the state is not in memory'

ip netns exec lan timeout 30 busybox ftpget 10.2.0.2 got file || fail 'the transfer failed'
cmp got files/file
inside ftp-alg doctor --try ftp://server.lan || fail 'the program does not find an address of a name'
sed -i 's/^#control-ports.*/control-ports = [21, 2121]/' root/etc/ftp-alg.toml
inside /etc/init.d/ftp-alg reload
wait_for grep control-ports root/tmp/log

script prerm remove
wait_for [ ! -e "root/proc/$(cat root/tmp/pid)" ]
script postrm remove
[ ! -e root/tmp/enabled ] || fail 'the service is still enabled'
[ ! -e root/tmp/run/ftp-alg ] || fail 'the state is left'
! nft list table inet ftp_alg 2>/dev/null || fail 'the table is left'
