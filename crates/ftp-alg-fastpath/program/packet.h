// Reads the headers of an IPv4 TCP packet in an Ethernet frame.
#pragma once

#define ETHERNET 14                           // length of the Ethernet header
#define CHECKSUM (ETHERNET + 20 + 16)         // offset of the TCP checksum, if the IP header has no options

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

// Whether the kernel drops the packet because of its IP header: the TTL ends here, or the checksum is wrong. The
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

struct packet {
	struct packet_tuple tuple;
	__u32 seq, ack;
	__u32 payload_offset, payload_length;
	__u32 flags;                          // bits 8 to 11 are the four bits before the flags
	__be16 window;
	__u8 is_plain;                        // the IP header has no options, and the packet is no fragment
	__u8 has_control_port;                // a port of the packet is in the map `control_ports`
};

// Returns 0 if the packet can belong to no control connection and consume no pinhole: another protocol, a fragment
// after the first, a segment without SYN that has no control port, or a packet that the kernel drops.
static __always_inline int read_packet(struct __sk_buff *skb, struct packet *packet)
{
	void *data, *end;
	__u8 *ip, *tcp, copied[20];
	__u32 ip_length, tcp_length, total;
	__be16 fragment;

	// The VLAN's own interface receives a tagged frame as well, without its tag, and the program inspects it there.
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return 0;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETHERNET + 40 > end) {
		if (skb->len < ETHERNET + 40 || bpf_skb_pull_data(skb, ETHERNET + 40))
			return 0;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + ETHERNET + 40 > end)
			return 0;
	}
	// A VLAN's interface may leave the tag in the frame.
	if (*(__be16 *)(data + ETHERNET - 2) != bpf_htons(ETH_P_IP))
		return 0;
	ip = data + ETHERNET;
	if (ip[0] >> 4 != 4 || ip[9] != IPPROTO_TCP)
		return 0;
	fragment = *(__be16 *)(ip + 6);
	if (fragment & bpf_htons(0x1fff))
		return 0;
	ip_length = (ip[0] & 15) * 4;
	total = bpf_ntohs(*(__be16 *)(ip + 2));
	packet->is_plain = ip_length == 20 && !(fragment & bpf_htons(0x2000));
	packet->tuple.source = *(__be32 *)(ip + 12);
	packet->tuple.destination = *(__be32 *)(ip + 16);
	tcp = ip + 20;
	if (ip_length != 20) {
		if (ip_length < 20 || bpf_skb_load_bytes(skb, ETHERNET + ip_length, copied, sizeof(copied)))
			return 0;
		tcp = copied;
	}
	packet->flags = (tcp[12] & 15) << 8 | tcp[13];
	packet->tuple.source_port = *(__be16 *)tcp;
	packet->tuple.destination_port = *(__be16 *)(tcp + 2);
	packet->has_control_port = has_port(&control_ports, bpf_ntohs(packet->tuple.destination_port)) ||
				   has_port(&control_ports, bpf_ntohs(packet->tuple.source_port));
	if ((!packet->has_control_port && !(packet->flags & SYN)) || is_dropped(ip))
		return 0;
	tcp_length = (tcp[12] >> 4) * 4;
	if (tcp_length < 20 || total < ip_length + tcp_length || skb->len < ETHERNET + total)
		return 0;
	packet->payload_length = total - ip_length - tcp_length;
	packet->payload_offset = ETHERNET + ip_length + tcp_length;
	packet->seq = bpf_ntohl(*(__be32 *)(tcp + 4));
	packet->ack = bpf_ntohl(*(__be32 *)(tcp + 8));
	packet->window = *(__be16 *)(tcp + 14);
	return 1;
}

// Whether the packet is a pure acknowledgement: no payload, no SYN, FIN, RST or URG.
static __always_inline int is_acknowledgement(const struct packet *packet)
{
	return !packet->payload_length && !(packet->flags & (SYN | FIN | RST | URG));
}
