// Reads the headers of an IPv4 or IPv6 TCP packet, in an Ethernet frame or without a link-layer header (PPP, tun).
#pragma once

#define ETHERNET 14                           // length of the Ethernet header
#define OTHER_FRAME 0xff                      // no frame that the program reads

// The most extension headers of an IPv6 packet that the program reads. One with more is queued all the same, but does not
// return its connection.
#define MOST_EXTENSIONS 8

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define PSH 0x08
#define ACK 0x10
#define URG 0x20

static __always_inline __u32 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// Whether the kernel drops the packet because of its IPv4 header: the TTL ends here, or the checksum is wrong. The
// checksum of a header with options is not verified.
static __always_inline int is_dropped(const __u8 *ip)
{
	const __be16 *words = (const __be16 *)ip;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	return ip[8] <= 1 || ((ip[0] & 15) == 5 && fold(sum) != 0xffff);
}

// A number in a packet. On machines that need alignment (MIPS), the verifier assumes that each packet starts two bytes off.
typedef __be32 __attribute__((aligned(2))) be32;

struct packet {
	struct packet_tuple tuple;
	__u32 seq, ack;
	__u32 ip;                             // offset of the IP header: ETHERNET or 0
	__u32 tcp;                            // offset of the TCP header
	__u32 payload_offset, payload_length;
	__u32 flags;                          // bits 8 to 11 are the four bits before the flags
	__be16 window;
	__u8 is_plain;                        // the IP header has no options, and the packet is no fragment
	__u8 has_control_port;                // a port of the packet is in the map `control_ports`
};

static __always_inline __u32 checksum_offset(const struct packet *packet)
{
	return packet->tcp + 16;
}

// Returns the bytes at an offset, for direct access, or 0 if the packet is shorter.
static __always_inline __u8 *bytes_at(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	__u8 *bytes = (void *)(long)skb->data + offset, *end = (void *)(long)skb->data_end;

	if (bytes + length <= end)
		return bytes;
	if (skb->len < offset + length || bpf_skb_pull_data(skb, offset + length))
		return 0;
	bytes = (void *)(long)skb->data + offset;
	end = (void *)(long)skb->data_end;
	return bytes + length <= end ? bytes : 0;
}

// The offset of the IP header. If the frame begins like an IP header, it may still be an Ethernet address, and the kernel's
// own offset decides.
static __always_inline __u32 ip_offset(struct __sk_buff *skb)
{
	__u8 *data = bytes_at(skb, 0, 40);
	__be32 ip[4], differs = 0;

	if (!data)
		return OTHER_FRAME;
	if ((data[0] >> 4 == 4 || data[0] >> 4 == 6) &&
	    !bpf_skb_load_bytes_relative(skb, 0, ip, sizeof(ip), BPF_HDR_START_NET)) {
#pragma unroll
		for (int i = 0; i < 4; i++)
			differs |= ip[i] ^ ((be32 *)data)[i];
		if (!differs)
			return 0;
	}
	// A VLAN's interface may leave the tag in the frame.
	return *(__be16 *)(data + ETHERNET - 2) == (__be16)skb->protocol ? ETHERNET : OTHER_FRAME;
}

// Reads the TCP header. Returns 0 if the packet has no control port and is no SYN, or is cut off.
static __always_inline int read_tcp(struct __sk_buff *skb, struct packet *packet, const __u8 *tcp, __u32 end)
{
	__u32 length = (tcp[12] >> 4) * 4;

	packet->flags = (tcp[12] & 15) << 8 | tcp[13];
	packet->tuple.source_port = *(__be16 *)tcp;
	packet->tuple.destination_port = *(__be16 *)(tcp + 2);
	packet->has_control_port = has_port(&control_ports, bpf_ntohs(packet->tuple.destination_port)) ||
				   has_port(&control_ports, bpf_ntohs(packet->tuple.source_port));
	if ((!packet->has_control_port && !(packet->flags & SYN)) || length < 20 || end < packet->tcp + length ||
	    skb->len < end)
		return 0;
	packet->payload_offset = packet->tcp + length;
	packet->payload_length = end - packet->payload_offset;
	packet->seq = bpf_ntohl(*(be32 *)(tcp + 4));
	packet->ack = bpf_ntohl(*(be32 *)(tcp + 8));
	packet->window = *(__be16 *)(tcp + 14);
	return 1;
}

static __always_inline int read_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	__u8 *ip = bytes_at(skb, packet->ip, 40), *tcp, copied[16];
	__u32 length;
	__be16 fragment;

	if (!ip)
		return 0;
	fragment = *(__be16 *)(ip + 6);
	if (ip[0] >> 4 != 4 || ip[9] != IPPROTO_TCP || fragment & bpf_htons(0x1fff))
		return 0;
	length = (ip[0] & 15) * 4;
	packet->is_plain = length == 20 && !(fragment & bpf_htons(0x2000));
	packet->tuple.source.words[0] = packet->tuple.source.words[1] = 0;
	packet->tuple.source.words[2] = packet->tuple.destination.words[2] = bpf_htonl(0xffff);
	packet->tuple.destination.words[0] = packet->tuple.destination.words[1] = 0;
	packet->tuple.source.words[3] = *(be32 *)(ip + 12);
	packet->tuple.destination.words[3] = *(be32 *)(ip + 16);
	packet->tcp = packet->ip + length;
	tcp = ip + 20;
	if (length != 20) {
		if (length < 20 || bpf_skb_load_bytes(skb, packet->tcp, copied, sizeof(copied)))
			return 0;
		tcp = copied;
	}
	return read_tcp(skb, packet, tcp, packet->ip + bpf_ntohs(*(__be16 *)(ip + 2))) && !is_dropped(ip);
}

// Reads the IPv6 header and extension headers. A packet with extension headers is queued, like one with IPv4 options.
static __always_inline int read_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	__u8 *ip = bytes_at(skb, packet->ip, 60), *tcp, next, header[4], copied[16];
	__u32 end;

	if (!ip || ip[0] >> 4 != 6 || ip[7] <= 1)
		return 0;
	packet->tcp = packet->ip + 40;
	end = packet->tcp + bpf_ntohs(*(__be16 *)(ip + 4));
	next = ip[6];
	packet->is_plain = next == IPPROTO_TCP;
	__builtin_memcpy(&packet->tuple, ip + 8, 32);
	// The kernel drops it (ip6_rcv_core), and it must not be taken for a packet of an IPv4 connection.
	if (is_ipv4(&packet->tuple.source))
		return 0;
	tcp = ip + 40;
	if (!packet->is_plain) {
		for (int i = 0; i < MOST_EXTENSIONS && next != IPPROTO_TCP; i++) {
			if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
			    next != IPPROTO_FRAGMENT && next != IPPROTO_AH)
				return 0;
			if (bpf_skb_load_bytes(skb, packet->tcp, header, sizeof(header)))
				return 0;
			// A fragment after the first has no TCP header.
			if (next == IPPROTO_FRAGMENT && (header[2] || header[3] & 0xf8))
				return 0;
			packet->tcp += next == IPPROTO_FRAGMENT ? 8 :
				       next == IPPROTO_AH ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
			next = header[0];
		}
		if (next != IPPROTO_TCP || bpf_skb_load_bytes(skb, packet->tcp, copied, sizeof(copied)))
			return 0;
		tcp = copied;
	}
	return read_tcp(skb, packet, tcp, end);
}

// Returns 0 if the packet can belong to no control connection and consume no pinhole: another protocol, a fragment
// after the first, a segment without SYN that has no control port, or a packet that the kernel drops.
static __always_inline int read_packet(struct __sk_buff *skb, struct packet *packet)
{
	// The VLAN's own interface receives a tagged frame as well, without its tag, and the program inspects it there.
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return 0;
	packet->ip = ip_offset(skb);
	if (packet->ip == OTHER_FRAME)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return read_ipv4(skb, packet);
	return skb->protocol == bpf_htons(ETH_P_IPV6) && read_ipv6(skb, packet);
}

// Whether the packet is a pure acknowledgement: no payload, no SYN, FIN, RST or URG.
static __always_inline int is_acknowledgement(const struct packet *packet)
{
	return !packet->payload_length && !(packet->flags & (SYN | FIN | RST | URG));
}
