#!/bin/sh
# A host that drops by default, in and out, in iptables: an FTP server, a client, or both. ftp-alg
# runs on the host itself. Replaces the table filter.
#   sh iptables-host.sh                # may be repeated, also while ftp-alg runs
set -e

variant=            # empty is the system's default; -nft or -legacy to choose

filter() {
	cat <<-RULES
	*filter
	:INPUT DROP
	:FORWARD DROP
	:OUTPUT DROP
	-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
	-A INPUT -i lo -j ACCEPT
	-A INPUT -p $1 -j ACCEPT
	# Data connections that ftp-alg admitted. The conntrack back end does not need this rule.
	-A INPUT -m connmark --mark 0x40000000/0x40000000 -j ACCEPT
	# Control connections to a server here.
	-A INPUT -p tcp --dport 21 -j ACCEPT
	-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
	-A OUTPUT -o lo -j ACCEPT
	-A OUTPUT -p $1 -j ACCEPT
	# Data connections, as in INPUT. Then acknowledgements that ftp-alg sends, which both back ends
	# need: otherwise an announcement in two segments is delayed until TCP retransmits.
	-A OUTPUT -m connmark --mark 0x40000000/0x40000000 -j ACCEPT
	-A OUTPUT -m mark --mark 0x70000000 -j ACCEPT
	# Control connections of a client here.
	-A OUTPUT -p tcp --dport 21 -j ACCEPT
	COMMIT
	RULES
}

filter icmp | "iptables$variant-restore"
filter ipv6-icmp | "ip6tables$variant-restore"
