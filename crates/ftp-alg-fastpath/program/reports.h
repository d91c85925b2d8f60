// Reports the SYN-ACK and the FINs of data connections that pinholes of the program admitted. The rules log those of
// other connections, and each RST: the program does not know whether a reset is in its receiver's window.
#pragma once

static __always_inline int reports_data(void)
{
	__u32 first = 0, *is_on = bpf_map_lookup_elem(&data_reports, &first);

	return is_on && *is_on;
}

static __always_inline void report(const struct packet *packet, const struct data_connection *connection)
{
	struct data_record *record = bpf_ringbuf_reserve(&data_ring, sizeof(*record), 0);

	if (!record)
		return;
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
}

// Reports the SYN-ACK of a connection whose SYN was admitted, if it comes from the target, and remembers both ends for
// their FINs. Returns whether it did.
static __always_inline int report_answer(struct __sk_buff *skb, const struct packet *packet,
					  const struct admitted_syn *syn)
{
	struct packet_tuple from_initiator = syn->tuple, from_target = packet->tuple;
	struct data_connection connection = {
		.initiator = syn->tuple.source,
		.initiator_port = syn->tuple.source_port,
		.target = packet->tuple.source,
		.target_port = packet->tuple.source_port,
		.interface = syn->interface,
	};

	if (!reports_data() || packet->tuple.source != syn->target || skb->ifindex != syn->target_interface)
		return 0;
	// Its receiver discards a SYN-ACK with a wrong checksum, and takes the next one.
	if (!is_checksum_right(skb, packet, 0))
		return 0;
	bpf_map_update_elem(&data_connections, &from_initiator, &connection, BPF_ANY);
	connection.from_target = 1;
	connection.interface = skb->ifindex;
	bpf_map_update_elem(&data_connections, &from_target, &connection, BPF_ANY);
	report(packet, &connection);
	return 1;
}

// Reports a FIN, if it is one of a connection whose SYN-ACK was reported, and comes from where its sender is.
static __always_inline void report_fin(struct __sk_buff *skb, const struct packet *packet)
{
	struct data_connection *connection = bpf_map_lookup_elem(&data_connections, &packet->tuple);

	if (connection && connection->interface == skb->ifindex && (packet->flags & (SYN | RST)) == 0 && reports_data())
		report(packet, connection);
}
