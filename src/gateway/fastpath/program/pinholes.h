// Pinholes: who may open one, and the SYN that uses it up.
#pragma once

// Marks a SYN that a pinhole admits. Each admits one.
static __always_inline void admit(struct __sk_buff *skb, const struct packet *packet)
{
	struct hole_key key = {
		.initiator = packet->key.source,
		.arrival = packet->key.destination,
		.port = packet->key.destination_port,
	};
	struct hole *hole;
	__u32 mark;

	if (packet->length || !packet->plain || (packet->flags & (SYN | ACK | FIN | RST | URG)) != SYN)
		return;
	hole = bpf_map_lookup_elem(&holes, &key);
	if (!hole || !hole->flow || hole->until < bpf_ktime_get_ns() || skb->mark)
		return;
	mark = hole->mark;
	// Only one processor deletes it.
	if (bpf_map_delete_elem(&holes, &key))
		return;
	skb->mark = mark;
	count(ADMITTED);
}

// Whether a program of this machine listens there.
static __always_inline int is_listened_at(struct __sk_buff *skb, const struct hole_key *key)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	int listens;

	tuple.ipv4.saddr = key->initiator;
	tuple.ipv4.daddr = key->arrival;
	tuple.ipv4.dport = key->port;
	socket = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return 0;
	listens = socket->state == BPF_TCP_LISTEN;
	bpf_sk_release(socket);
	return listens;
}

// Whether the flow may open the pinhole. `target` is the address that awaits the data connection.
static __always_inline int may_open(struct __sk_buff *skb, const struct hole_key *key, __u64 flow, __be32 target)
{
	struct hole *there;

	if (!key->port || has_port(&ports, bpf_ntohs(key->port)))
		return 0;
	there = bpf_map_lookup_elem(&holes, key);
	if (there && there->flow != flow)
		return 0;
	return key->arrival == target || !is_listened_at(skb, key);
}

static __always_inline void delete_own(const struct hole_key *key, __u64 flow)
{
	struct hole *there = bpf_map_lookup_elem(&holes, key);

	if (there && there->flow == flow)
		bpf_map_delete_elem(&holes, key);
}

// The step that opened the flow's pinhole, if that is gone; else 0. While a reply is due the flow opens no other one.
static __always_inline __u32 consumed_step(const struct flow *flow)
{
	struct hole_key key = flow->hole;
	__u32 step = flow->hole_step;

	return step && !bpf_map_lookup_elem(&holes, &key) ? step : 0;
}

// Puts the pinhole into the map where it admits nothing yet.
static __always_inline int insert_closed(const struct hole_key *key, __u64 flow, __u32 step, __u32 mark)
{
	struct hole hole = { .flow = flow, .until = 0, .step = step, .mark = mark };

	return bpf_map_update_elem(&holes, key, &hole, BPF_NOEXIST);
}

static __always_inline void open_inserted(const struct hole_key *key, __u64 flow, __u32 step, __u64 until)
{
	struct hole *there = bpf_map_lookup_elem(&holes, key);

	if (there && there->flow == flow && there->step == step)
		*(volatile __u64 *)&there->until = until;
}
