// Reports the SYN-ACK and the FINs of data connections that pinholes of the program admitted. A packet mark tells the
// rules not to log what was reported. They log everything else: each RST, because the program does not know whether it is
// in its receiver's window, and a FIN whose connection was evicted from the map.
#pragma once

// Reports the packet, if the daemon reads reports and there is room. Returns whether it did.
static __always_inline int report(struct __sk_buff *skb, const struct packet *packet,
				  const struct data_connection *connection)
{
	__u32 first = 0, *mark = bpf_map_lookup_elem(&data_reports, &first);
	struct data_record *record;

	if (!mark || !*mark || skb->mark)
		return 0;
	record = bpf_ringbuf_reserve(&data_ring, sizeof(*record), 0);
	if (!record)
		return 0;
	record->at_ns = bpf_ktime_get_ns();
	record->initiator = connection->initiator;
	record->target = connection->target;
	record->initiator_port = connection->initiator_port;
	record->target_port = connection->target_port;
	record->end = packet->seq + packet->payload_length;
	record->acknowledged = packet->ack;
	record->from_target = connection->from_target;
	record->flags = packet->flags;
	record->pad = 0;
	// The daemon reads the ring often enough.
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	skb->mark = *mark;
	return 1;
}

// Reports the SYN-ACK of a connection whose SYN was admitted, if it comes from the target, and remembers both ends for
// their FINs. Returns whether it did.
static __always_inline int report_answer(struct __sk_buff *skb, const struct packet *packet,
					 const struct admitted_syn *syn)
{
	struct data_connection connection = {
		.initiator = syn->tuple.source,
		.initiator_port = syn->tuple.source_port,
		.target = packet->tuple.source,
		.target_port = packet->tuple.source_port,
		.from_target = 1,
		.interface = skb->ifindex,
	};

	if (packet->tuple.source != syn->target || skb->ifindex != syn->target_interface)
		return 0;
	// Its receiver discards a SYN-ACK with a wrong checksum, and takes the next one.
	if (!is_checksum_right(skb, packet, 0) || !report(skb, packet, &connection))
		return 0;
	bpf_map_update_elem(&data_connections, &packet->tuple, &connection, BPF_ANY);
	connection.from_target = 0;
	connection.interface = syn->interface;
	bpf_map_update_elem(&data_connections, &syn->tuple, &connection, BPF_ANY);
	return 1;
}

// Reports a FIN, if its connection is known, and it comes from where its sender is. The rules log one that follows: the
// first may have been forged.
static __always_inline void report_fin(struct __sk_buff *skb, const struct packet *packet)
{
	struct data_connection *connection = bpf_map_lookup_elem(&data_connections, &packet->tuple);

	if (!connection || connection->interface != skb->ifindex || packet->flags & (SYN | RST))
		return;
	if (report(skb, packet, connection))
		bpf_map_delete_elem(&data_connections, &packet->tuple);
}
