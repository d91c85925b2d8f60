// Sequence adjustment. After a rewrite changed the length of a line, every packet of its connection needs other
// sequence and acknowledgement numbers.
#pragma once

// What is added to a packet's sequence number, and subtracted from its acknowledgement number.
struct seq_adjustment {
	__u32 seq, ack;
};

// Whether the TCP header has no options, or only timestamps in the form that Linux and others write. Other options
// may hold sequence numbers, as SACK does, and the program adjusts none of those.
static __always_inline int has_plain_options(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 length = packet->payload_offset - packet->tcp;
	__be32 first;

	if (length == 20)
		return 1;
	return length == 32 && !bpf_skb_load_bytes(skb, packet->tcp + 20, &first, 4) && first == bpf_htonl(0x0101080a);
}

static __always_inline int store_number(struct __sk_buff *skb, const struct packet *packet, __u32 offset, __u32 old,
					__u32 new)
{
	__be32 number = bpf_htonl(new);

	return old != new && (bpf_skb_store_bytes(skb, packet->tcp + offset, &number, 4, 0) ||
			      bpf_l4_csum_replace(skb, checksum_offset(packet), bpf_htonl(old), number, 4));
}

// The IP header must have no options, and the caller must have made the packet writable. Returns 0 if all was written.
static __always_inline int store_adjustment(struct __sk_buff *skb, const struct packet *packet,
					    const struct seq_adjustment *adjustment)
{
	return store_number(skb, packet, 4, packet->seq, packet->seq + adjustment->seq) ||
	       store_number(skb, packet, 8, packet->ack, packet->ack - adjustment->ack);
}
