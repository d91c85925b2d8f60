// Sequence adjustment: of a connection whose lines have changed their length, each packet's numbers are shifted.
#pragma once

// By how much the numbers of a packet are shifted: the sent number to the delivered one, the acknowledged one back.
struct shift {
	__u32 seq, ack;
};

// No option, or timestamps alone, as Linux and others write them; others may have numbers of their own, as SACK.
static __always_inline int has_plain_options(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 length = packet->at - ETHERNET - 20;
	__be32 first;

	if (length == 20)
		return 1;
	return length == 32 && !bpf_skb_load_bytes(skb, ETHERNET + 40, &first, 4) && first == bpf_htonl(0x0101080a);
}

static __always_inline int store_number(struct __sk_buff *skb, __u32 at, __u32 before, __u32 now)
{
	__be32 number = bpf_htonl(now);

	return before != now && (bpf_skb_store_bytes(skb, at, &number, 4, 0) ||
				 bpf_l4_csum_replace(skb, CHECKSUM, bpf_htonl(before), number, 4));
}

// Of a packet whose IP header has no options. The caller has made it writable.
static __always_inline int store_shift(struct __sk_buff *skb, const struct packet *packet, const struct shift *shift)
{
	return store_number(skb, ETHERNET + 24, packet->seq, packet->seq + shift->seq) ||
	       store_number(skb, ETHERNET + 28, packet->ack, packet->ack - shift->ack);
}
