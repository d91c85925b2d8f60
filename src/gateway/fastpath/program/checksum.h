// Verifies the TCP checksum of a line or a SYN. Its receiver discards a segment with a wrong checksum, so the program
// must not act on such a segment.
#pragma once

#define LONGEST_TCP_HEADER 60

// A device may still have to complete the checksum (CHECKSUM_PARTIAL): of a packet from this machine, or from the
// other end of a veth. The field then has the sum of the pseudo-header alone, and that counts as right. `payload` has
// LONGEST_LINE bytes; 0 if the packet has none.
static __always_inline int is_checksum_right(struct __sk_buff *skb, const struct packet *packet, __u8 *payload)
{
	__u8 header[LONGEST_TCP_HEADER] = {};
	__u32 length = packet->payload_offset - ETHERNET - 20, pseudo_header, field;
	__s64 sum;

	pseudo_header = fold((__u64)packet->tuple.source + packet->tuple.destination + bpf_htons(IPPROTO_TCP) +
			     bpf_htons(length + packet->payload_length));
	length -= 20;
	asm volatile("" : "+r"(length));
	if (length > LONGEST_TCP_HEADER - 20)
		return 0;
	length += 20;
	if (bpf_skb_load_bytes(skb, ETHERNET + 20, header, length))
		return 0;
	field = *(__be16 *)(header + 16);
	if (field % 0xffff == pseudo_header % 0xffff)
		return 1;
	sum = bpf_csum_diff(0, 0, (__be32 *)header, LONGEST_TCP_HEADER, pseudo_header);
	if (payload)
		sum = bpf_csum_diff(0, 0, (__be32 *)payload, LONGEST_LINE, sum);
	return fold(sum) == 0xffff;
}
