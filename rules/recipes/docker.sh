#!/bin/sh
# Docker with its iptables rules: an FTP server in a container, published with `-p 21:21` and no
# other port. ftp-alg runs on the host. Docker keeps chain DOCKER-USER for the operator, looks there
# first, and leaves it alone when it starts again.
#   sh docker.sh                       # after Docker's start; nothing is added twice
set -e

variant=            # empty is the system's default; -nft or -legacy to choose

for iptables in "iptables$variant" "ip6tables$variant"; do
	# Docker manages IPv6 only where it is enabled.
	$iptables -n -L DOCKER-USER >/dev/null 2>&1 || continue
	# Data connections that ftp-alg admitted; not needed with its conntrack back end.
	$iptables -C DOCKER-USER -m connmark --mark 0x40000000/0x40000000 -j ACCEPT 2>/dev/null ||
		$iptables -I DOCKER-USER -m connmark --mark 0x40000000/0x40000000 -j ACCEPT
done
