#!/bin/sh
# ufw: the rules that ftp-alg needs, for a gateway (default deny routed) or a host. ufw must be
# enabled already, with your other rules. No rule is written twice.
#   sh ufw.sh gateway                  # clients on the LAN, or a server there
#   sh ufw.sh host                     # a server or a client on this host
set -e

lan=lan0
wan=wan0
server=10.0.0.5     # published on port 21 of the outer address
server6=fd00::5     # reached by its own address
rules=/etc/ufw

case $1 in
gateway) chains=forward ;;
host) chains='input output' ;;
*) echo "usage: sh ufw.sh gateway|host" >&2; exit 2 ;;
esac

# append FILE LINE: adds the line at the end of the table filter, unless it is there.
append() {
	grep -qxF -e "$2" "$1" || sed -i "/^\*filter/,/^COMMIT/ s|^COMMIT|$2\n&|" "$1"
}

# Data connections that ftp-alg admitted. The conntrack back end does not need this rule.
for chain in $chains; do
	append $rules/before.rules "-A ufw-before-$chain -m connmark --mark 0x40000000/0x40000000 -j ACCEPT"
	append $rules/before6.rules "-A ufw6-before-$chain -m connmark --mark 0x40000000/0x40000000 -j ACCEPT"
done

if [ "$1" = gateway ]; then
	# Control connections.
	ufw route allow in on $lan out on $wan to any port 21 proto tcp
	ufw route allow in on $wan to $server port 21 proto tcp
	ufw route allow in on $wan to $server6 port 21 proto tcp
	# ufw has no command for NAT. These are the lines of its manual, unless the file has a NAT table.
	grep -q '^\*nat' $rules/before.rules || cat >>$rules/before.rules <<-NAT
		*nat
		:PREROUTING ACCEPT [0:0]
		:POSTROUTING ACCEPT [0:0]
		-F
		-A PREROUTING -i $wan -m addrtype --dst-type LOCAL -p tcp --dport 21 -j DNAT --to-destination $server
		-A POSTROUTING -o $wan -j MASQUERADE
		COMMIT
	NAT
else
	# Acknowledgements that ftp-alg sends, if ufw denies outgoing packets. Both back ends need them:
	# otherwise an announcement in two segments is delayed until TCP retransmits.
	append $rules/before.rules "-A ufw-before-output -m mark --mark 0x70000000 -j ACCEPT"
	append $rules/before6.rules "-A ufw6-before-output -m mark --mark 0x70000000 -j ACCEPT"
	ufw allow in 21/tcp
	ufw allow out 21/tcp
fi
ufw reload
