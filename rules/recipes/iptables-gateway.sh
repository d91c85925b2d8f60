#!/bin/sh
# A gateway that drops by default, in iptables: clients on the LAN behind masquerade, and one FTP
# server on the LAN, published on port 21 of the outer address (IPv4) or by its own (IPv6). Replaces
# the tables filter and nat.
#   sh iptables-gateway.sh             # may be repeated, also while ftp-alg runs
set -e

lan=lan0
wan=wan0
server=10.0.0.5
server6=fd00::5
variant=            # empty is the system's default; -nft or -legacy to choose

filter() {
	cat <<-RULES
	*filter
	:INPUT DROP
	:FORWARD DROP
	:OUTPUT ACCEPT
	-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
	-A INPUT -i lo -j ACCEPT
	-A INPUT -p $1 -j ACCEPT
	-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
	# Data connections that ftp-alg admitted. The conntrack back end does not need this rule.
	-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT
	-A FORWARD -p $1 -j ACCEPT
	# Control connections.
	-A FORWARD -i $lan -o $wan -p tcp --dport 21 -j ACCEPT
	-A FORWARD -i $wan -d $2 -p tcp --dport 21 -j ACCEPT
	COMMIT
	RULES
}

nat() {
	cat <<-RULES
	*nat
	-A PREROUTING -i $wan -m addrtype --dst-type LOCAL -p tcp --dport 21 -j DNAT --to-destination $server
	-A POSTROUTING -o $wan -j MASQUERADE
	COMMIT
	RULES
}

{ filter icmp "$server"; nat; } | "iptables$variant-restore"
filter ipv6-icmp "$server6" | "ip6tables$variant-restore"
