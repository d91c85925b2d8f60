// Whether a line arrived as it was sent. Its receiver discards a segment with a wrong checksum, so what that says must not count.
#pragma once

#define LONGEST_HEADER 60

static __always_inline __u32 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// Of a packet that a device is to finish (CHECKSUM_PARTIAL), as one from this machine or over veth, the field has the sum of the
// pseudo-header alone.
static __always_inline int checksum_is_right(struct __sk_buff *skb, const struct packet *packet, struct step *line)
{
	__u8 header[LONGEST_HEADER] = {};
	__u32 length = packet->at - ETHERNET - 20, pseudo, field;
	__s64 sum;

	pseudo = folded((__u64)packet->key.source + packet->key.destination + bpf_htons(IPPROTO_TCP) +
			bpf_htons(length + packet->length));
	length -= 20;
	asm volatile("" : "+r"(length));
	if (length > LONGEST_HEADER - 20)
		return 0;
	length += 20;
	if (bpf_skb_load_bytes(skb, ETHERNET + 20, header, length))
		return 0;
	field = *(__be16 *)(header + 16);
	if (field % 0xffff == pseudo % 0xffff)
		return 1;
	sum = bpf_csum_diff(0, 0, (__be32 *)header, LONGEST_HEADER, pseudo);
	sum = bpf_csum_diff(0, 0, (__be32 *)line->bytes, LINE, sum);
	return folded(sum) == 0xffff;
}
