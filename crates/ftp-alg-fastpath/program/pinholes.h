// Pinholes: which line may open one, and the SYN that consumes it.
#pragma once

// Bits of the packet mark that the daemon may use. A SYN keeps a mark of others that has none of these bits.
#define OWN_MARK_BITS 0xfffe0000U

// Whether the pinhole admits a SYN that did not arrive where the pinhole's initiator is. Such a SYN may be forged, and the
// kernel may drop it (rp_filter), so it does not consume the pinhole. Only one source port is admitted in this way.
static __always_inline int admits_from_elsewhere(struct pinhole *pinhole, __be16 source_port)
{
	__u32 port = source_port, admitted = __sync_val_compare_and_swap(&pinhole->elsewhere_port, 0, port);

	return !admitted || admitted == port;
}

// The SYN that a pinhole admitted, if this one is its retransmission; else 0.
static __always_inline struct admitted_syn *find_admitted_syn(const struct packet *packet, __u64 now)
{
	struct syn_key key = { .port = packet->tuple.destination_port, .seq = packet->seq };
	struct admitted_syn *known = bpf_map_lookup_elem(&admitted_syns, &key);

	if (!known || known->until <= now || !are_same(&known->tuple, &packet->tuple, sizeof(packet->tuple) / 4))
		return 0;
	return known;
}

// Whether the SYN is a retransmission of a SYN that another pinhole admitted. Conntrack knows that connection, so the
// retransmission must not consume this pinhole.
static __always_inline int is_retransmitted_syn(const struct packet *packet, const struct pinhole *pinhole, __u64 now)
{
	struct admitted_syn *known = find_admitted_syn(packet, now);

	return known && (known->flow != pinhole->flow || known->line != pinhole->line);
}

// Remembers the SYN that was admitted by a pinhole of the flow, or of the rules if `flow` is 0.
static __always_inline void remember_syn(const struct packet *packet, __u64 flow, __u32 line, __u32 mark)
{
	struct syn_key key = { .port = packet->tuple.destination_port, .seq = packet->seq };
	struct admitted_syn syn = {
		.flow = flow, .until = bpf_ktime_get_ns() + SYN_LIFETIME, .line = line, .mark = mark, .tuple = packet->tuple,
	};

	bpf_map_update_elem(&admitted_syns, &key, &syn, BPF_ANY);
}

// Remembers the SYN if a pinhole of the rules is about to admit it. Each admits one connection, so a client cannot fill
// the map with many SYNs for one pinhole. Returns 0 if the rules have no pinhole.
static __always_inline int remember_syn_of_rules(struct __sk_buff *skb, const struct packet *packet,
						 const struct pinhole_key *key)
{
	__u64 *deadline = bpf_map_lookup_elem(&rules_pinholes, key);
	__u64 now;

	if (!deadline)
		return 0;
	now = bpf_ktime_get_ns();
	if (*deadline < now)
		return 0;
	if (!is_checksum_right(skb, packet, 0) || find_admitted_syn(packet, now))
		return 1;
	if (!bpf_map_delete_elem(&rules_pinholes, key))
		remember_syn(packet, 0, 0, 0);
	return 1;
}

// Marks the retransmission of a SYN that was admitted, unless that SYN has an answer: the rules or a filter may have
// dropped it.
static __always_inline void admit_again(struct __sk_buff *skb, const struct packet *packet)
{
	__u64 admitted_at, *start, now = bpf_ktime_get_ns();
	struct admitted_syn *known = find_admitted_syn(packet, now);
	__u32 first = 0;

	if (!known || !known->flow || known->answered)
		return;
	admitted_at = known->until - SYN_LIFETIME;
	start = bpf_map_lookup_elem(&readmission_start, &first);
	if (!start || admitted_at <= *start || admitted_at + READMISSION_TIME < now)
		return;
	// The next daemon's policy may forbid the port.
	if (!has_port(&barred_ports, bpf_ntohs(packet->tuple.destination_port)) && is_checksum_right(skb, packet, 0))
		skb->mark |= known->mark;
}

// Notes that the SYN has an answer. Called for each SYN-ACK.
static __always_inline void note_answer(const struct packet *packet)
{
	struct syn_key key = { .port = packet->tuple.source_port, .seq = packet->ack - 1 };
	struct admitted_syn *known = bpf_map_lookup_elem(&admitted_syns, &key);

	if (known)
		known->answered = 1;
}

// Marks the SYN for which there is a pinhole, and deletes the pinhole: each admits one connection.
static __always_inline void admit(struct __sk_buff *skb, const struct packet *packet)
{
	struct pinhole_key key = {
		.initiator = packet->tuple.source,
		.arrival = packet->tuple.destination,
		.port = packet->tuple.destination_port,
	};
	struct pinhole *pinhole;
	__u32 line, mark;
	__u64 flow, now;

	if ((packet->flags & (SYN | ACK)) == (SYN | ACK))
		note_answer(packet);
	if (!packet->is_plain || skb->mark & OWN_MARK_BITS ||
	    (packet->flags & (SYN | ACK | FIN | RST | URG)) != SYN)
		return;
	pinhole = bpf_map_lookup_elem(&pinholes, &key);
	if (!pinhole || !pinhole->flow) {
		if (!remember_syn_of_rules(skb, packet, &key))
			admit_again(skb, packet);
		return;
	}
	now = bpf_ktime_get_ns();
	if (pinhole->deadline < now || !is_checksum_right(skb, packet, 0) || is_retransmitted_syn(packet, pinhole, now))
		return;
	flow = pinhole->flow;
	line = pinhole->line;
	mark = pinhole->mark;
	if (skb->ifindex != pinhole->interface) {
		if (!admits_from_elsewhere(pinhole, packet->tuple.source_port))
			return;
	// If several processors find the pinhole at once, only one of them succeeds here.
	} else if (bpf_map_delete_elem(&pinholes, &key)) {
		return;
	}
	remember_syn(packet, flow, line, mark);
	skb->mark |= mark;
	count(ADMITTED);
}

// Whether a program of this machine listens at the pinhole's destination.
static __always_inline int has_listener(struct __sk_buff *skb, const struct pinhole_key *key)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	int is_listening;

	if (!is_ipv4(&key->arrival)) {
		__builtin_memcpy(tuple.ipv6.saddr, key, 32);
		tuple.ipv6.dport = key->port;
		socket = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	} else {
		tuple.ipv4.saddr = key->initiator.words[3];
		tuple.ipv4.daddr = key->arrival.words[3];
		tuple.ipv4.dport = key->port;
		socket = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	if (!socket)
		return 0;
	is_listening = socket->state == BPF_TCP_LISTEN;
	bpf_sk_release(socket);
	return is_listening;
}

// Whether the flow may open the pinhole. `is_translated` says whether the SYN arrives at another address than that of
// the end that announced the data connection.
static __always_inline int may_open(struct __sk_buff *skb, const struct pinhole_key *key, __u64 flow,
				    int is_translated)
{
	struct pinhole *existing;

	if (!key->port || has_port(&barred_ports, bpf_ntohs(key->port)))
		return 0;
	existing = bpf_map_lookup_elem(&pinholes, key);
	if (existing && existing->flow != flow)
		return 0;
	return !is_translated || !has_listener(skb, key);
}

// Deletes the pinhole with this key if it belongs to the flow.
static __always_inline void delete_pinhole_of(const struct pinhole_key *key, __u64 flow)
{
	struct pinhole *existing = bpf_map_lookup_elem(&pinholes, key);

	if (existing && existing->flow == flow)
		bpf_map_delete_elem(&pinholes, key);
}

static __always_inline int has_heartbeat(__u64 now)
{
	__u32 first = 0;
	__u64 *deadline = bpf_map_lookup_elem(&heartbeat, &first);

	return deadline && *deadline > now;
}

// The number of the line that opened the flow's pinhole, if that pinhole does not exist any more; else 0. The flow
// cannot open another one meanwhile, because a reply is pending.
static __always_inline __u32 consumed_pinhole(const struct flow *flow)
{
	__u32 line = flow->pinhole_line;

	return line && !bpf_map_lookup_elem(&pinholes, &flow->pinhole) ? line : 0;
}

// Inserts the pinhole with a deadline in the past, so that it admits nothing yet.
static __always_inline int insert_closed(const struct pinhole_key *key, const struct flow *flow, __u64 id, __u32 line,
					 int is_active)
{
	struct pinhole pinhole = {
		.flow = id,
		.deadline = 0,
		.line = line,
		.mark = is_active ? flow->active_mark : flow->passive_mark,
		.interface = flow->interface[is_active ? SERVER : CLIENT],
	};

	return bpf_map_update_elem(&pinholes, key, &pinhole, BPF_NOEXIST);
}

// Sets the deadline of a pinhole that `insert_closed` inserted.
static __always_inline void open_inserted(const struct pinhole_key *key, __u64 flow, __u32 line, __u64 deadline)
{
	struct pinhole *existing = bpf_map_lookup_elem(&pinholes, key);

	if (existing && existing->flow == flow && existing->line == line)
		*(volatile __u64 *)&existing->deadline = deadline;
}
