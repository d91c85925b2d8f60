#!/bin/sh
# Docker with its iptables rules: an FTP server in a container, published with `-p 21:21` and no
# other port. ftp-alg runs on the host. Docker runs chain DOCKER-USER first and does not change it,
# so the operator's rules go there: the rule for ftp-alg is added behind them.
#   sh docker.sh                       # after Docker has started; adds no rule twice
set -e

variant=            # empty is the system's default; -nft or -legacy to choose

for iptables in "iptables$variant" "ip6tables$variant"; do
	# Docker manages IPv6 only if that is enabled.
	$iptables -n -L DOCKER-USER >/dev/null 2>&1 || continue
	# Data connections that ftp-alg admitted. The conntrack back end does not need this rule.
	$iptables -C DOCKER-USER -m connmark --mark 0x40000000/0x40000000 -j ACCEPT 2>/dev/null && continue
	# Behind the rule for ESTABLISHED, or else before the RETURN with which older versions end the chain.
	number=$($iptables -S DOCKER-USER | awk '!/-A DOCKER-USER -j RETURN/ { end++ }
		/ESTABLISHED.*ACCEPT/ { behind = NR } END { print behind ? behind : end }')
	$iptables -I DOCKER-USER "$number" -m connmark --mark 0x40000000/0x40000000 -j ACCEPT
done
