// Verifies the TCP checksum of a line or a SYN. Its receiver discards a segment with a wrong checksum, so the program
// must not act on such a segment.
#pragma once

#define LONGEST_TCP_HEADER 60

// Length of the longest payload of a SYN whose checksum is verified. It is a multiple of LONGEST_LINE.
#define LONGEST_SYN_PAYLOAD (12 * LONGEST_LINE)

// Adds the payload of a SYN to `sum` (TCP Fast Open, RFC 7413). Returns a negative number if that cannot be done.
static __always_inline __s64 add_payload(struct __sk_buff *skb, const struct packet *packet, __s64 sum)
{
	for (__u32 offset = 0; offset < LONGEST_SYN_PAYLOAD && sum >= 0; offset += LONGEST_LINE) {
		__u8 bytes[LONGEST_LINE] = {};
		__u32 length = packet->payload_length - offset;

		if (packet->payload_length <= offset)
			return sum;
		if (length > LONGEST_LINE)
			length = LONGEST_LINE;
		length -= 1;
		asm volatile("" : "+r"(length));
		if (length > LONGEST_LINE - 1)
			return -1;
		if (bpf_skb_load_bytes(skb, packet->payload_offset + offset, bytes, length + 1))
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)bytes, LONGEST_LINE, sum);
	}
	return packet->payload_length <= LONGEST_SYN_PAYLOAD ? sum : -1;
}

// A device may still have to complete the checksum (CHECKSUM_PARTIAL): of a packet from this machine, or from the
// other end of a veth. The field then has the sum of the pseudo-header alone, and that counts as right. `line` has
// LONGEST_LINE bytes; it is 0 for a SYN.
static __always_inline int is_checksum_right(struct __sk_buff *skb, const struct packet *packet, __u8 *line)
{
	__u8 header[LONGEST_TCP_HEADER] = {};
	__u32 length = packet->payload_offset - packet->tcp, pseudo_header, field;
	const __be32 *words = packet->tuple.source.words;
	__u64 pseudo_sum = bpf_htons(IPPROTO_TCP) + bpf_htons(length + packet->payload_length);
	__s64 sum;

	// The 0xffff before an IPv4 address adds nothing.
#pragma unroll
	for (int i = 0; i < 8; i++)
		pseudo_sum += words[i];
	pseudo_header = fold(pseudo_sum);
	length -= 20;
	asm volatile("" : "+r"(length));
	if (length > LONGEST_TCP_HEADER - 20)
		return 0;
	length += 20;
	if (bpf_skb_load_bytes(skb, packet->tcp, header, length))
		return 0;
	field = *(__be16 *)(header + 16);
	if (field % 0xffff == pseudo_header % 0xffff)
		return 1;
	sum = bpf_csum_diff(0, 0, (__be32 *)header, LONGEST_TCP_HEADER, pseudo_header);
	sum = line ? bpf_csum_diff(0, 0, (__be32 *)line, LONGEST_LINE, sum) : add_payload(skb, packet, sum);
	return sum >= 0 && fold(sum) == 0xffff;
}
