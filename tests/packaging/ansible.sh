#!/bin/sh
# Runs the Ansible role against a copy of this machine that has no ftp-alg, as on a gateway whose systemd does not run.
#
#   unshare --mount --net --pid --fork ansible.sh PACKAGE DIRECTORY ANSIBLE     (an empty directory; a virtual environment)
set -eu
source=$(cd "${0%/*}/../.." && pwd)
ansible=$3
. "${0%/*}/overlay.sh"

# As a gateway whose forwarding nobody has switched on. A new network namespace has the values of the machine.
cat >root/etc/nftables.conf <<'RULES'
flush ruleset
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established accept
        tcp dport 21 accept
    }
}
RULES
inside nft -f /etc/nftables.conf
inside sysctl -qw net.ipv4.ip_forward=0

mkdir -p "root$ansible"
mount --bind "$ansible" "root$ansible"
cp -r "$source/packaging/ansible" root/tmp/ansible
cp "$package" root/tmp/ansible/ftp-alg.deb
cat >root/tmp/ansible/inventory <<'INVENTORY'
[gateways]
localhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3 ansible_become=false
INVENTORY

# play EXPECTED [VARIABLE...]: the line of the recap must have EXPECTED.
play() {
    expected=$1
    shift
    inside env HOME=/tmp LC_ALL=C.UTF-8 ANSIBLE_NOCOLOR=1 "PATH=$ansible/bin:$PATH" \
        ansible-playbook --inventory /tmp/ansible/inventory /tmp/ansible/gateways.yml "$@" >log 2>&1 || :
    grep -q "^localhost .*$expected" log || { cat log; fail "not $expected: $*"; }
}
# says TEXT: of the last play.
says() { grep -qF -- "$1" log || { cat log; fail "the play does not say: $1"; }; }

# The daemon does not run, so the last task fails, when all others are done.
play 'failed=1' --extra-vars ftp_alg_wait=1
says 'Wait until the daemon is ready'
says 'changed=4'
grep -qx 'control-ports = \[21, 2121\]' root/etc/ftp-alg.toml || fail 'the configuration is not written'
grep -q ftp-alg-setup root/etc/nftables.conf || fail 'the accept rule is in no file'
inside nft list ruleset | grep -q ftp-alg-setup || fail 'the accept rule is not loaded'
[ "$(inside sysctl -n net.ipv4.ip_forward)" = 1 ] || fail 'nothing is forwarded'
grep -qx 'net.ipv4.ip_forward = 1' root/etc/sysctl.d/ftp-alg-setup.conf || fail 'nothing is forwarded after a boot'

inside ftp-alg run --user ftp-alg >daemon 2>&1 &
play 'changed=0 .*failed=0'
play 'changed=0 .*failed=0' --check
inside ftp-alg status --wait 1 >/dev/null || { cat daemon; fail 'the daemon is not ready'; }

# An invalid configuration is refused before it is written.
cp root/etc/ftp-alg.toml written
play 'changed=0 .*failed=1' --extra-vars '{"ftp_alg_config": "control-ports = 21\n"}'
says 'control-ports'
cmp root/etc/ftp-alg.toml written || fail 'an invalid configuration was written'

# A rule that somebody has removed comes back.
inside ftp-alg setup --undo >/dev/null
play 'changed=1 .*failed=0'
says 'Add what the firewall lacks'
inside ftp-alg setup --check --gateway >/dev/null || fail 'a change is pending'
echo 'the second run changed nothing'
