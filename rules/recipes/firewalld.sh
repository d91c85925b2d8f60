#!/bin/sh
# firewalld with FirewallBackend=iptables in /etc/firewalld/firewalld.conf: the rules that ftp-alg
# needs, for a gateway or a host. With FirewallBackend=nftables a direct rule has no effect;
# docs/howto/firewalld.md says what to do then.
#   sh firewalld.sh gateway            # clients on the LAN, or a server there
#   sh firewalld.sh host               # a server on this host
set -e

zone=public         # the zone from which clients reach a server on this host

case $1 in
gateway) chain=FORWARD ;;
host) chain=INPUT ;;      # firewalld accepts connections that this host opens
*) echo "usage: sh firewalld.sh gateway|host" >&2; exit 2 ;;
esac

# Data connections that ftp-alg admitted. The conntrack back end does not need this rule.
for family in ipv4 ipv6; do
	firewall-cmd --permanent --direct --add-rule $family filter $chain 0 \
		-m connmark --mark 0x40000000/0x40000000 -j ACCEPT
done
# Control connections. --add-service=ftp would assign them the kernel's own helper.
[ "$1" = gateway ] || firewall-cmd --permanent --zone=$zone --add-port=21/tcp
firewall-cmd --reload
