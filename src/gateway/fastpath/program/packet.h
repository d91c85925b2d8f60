// Reads the headers of an IPv4 TCP packet on Ethernet.
#pragma once

#define ETHERNET 14
#define CHECKSUM (ETHERNET + 20 + 16) // of TCP, where IP has no options

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define PSH 0x08
#define ACK 0x10
#define URG 0x20

struct packet {
	struct way_key key;
	__u32 seq, ack;
	__u32 at, length;  // of the payload
	__u32 flags;       // with the four bits before them, from 0x100
	__be16 window;
	__u8 plain;        // IP has no options, and this is no fragment
	__u8 has_control_port;
};

// 0 if neither a control connection nor a pinhole can be meant: other protocols, later fragments, segments of other
// ports but for SYNs.
static __always_inline int read_packet(struct __sk_buff *skb, struct packet *packet)
{
	void *data, *end;
	__u8 *ip, *tcp, own[20];
	__u32 ip_length, tcp_length, total;
	__be16 fragment;

	// With a VLAN tag it comes again, without it, on the VLAN's own interface.
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
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
	packet->plain = ip_length == 20 && !(fragment & bpf_htons(0x2000));
	packet->key.source = *(__be32 *)(ip + 12);
	packet->key.destination = *(__be32 *)(ip + 16);
	tcp = ip + 20;
	if (ip_length != 20) {
		if (ip_length < 20 || bpf_skb_load_bytes(skb, ETHERNET + ip_length, own, sizeof(own)))
			return 0;
		tcp = own;
	}
	packet->flags = (tcp[12] & 15) << 8 | tcp[13];
	packet->key.source_port = *(__be16 *)tcp;
	packet->key.destination_port = *(__be16 *)(tcp + 2);
	packet->has_control_port = has_port(&control_ports, bpf_ntohs(packet->key.destination_port)) ||
				   has_port(&control_ports, bpf_ntohs(packet->key.source_port));
	if (!packet->has_control_port && !(packet->flags & SYN))
		return 0;
	tcp_length = (tcp[12] >> 4) * 4;
	if (tcp_length < 20 || total < ip_length + tcp_length || skb->len < ETHERNET + total)
		return 0;
	packet->length = total - ip_length - tcp_length;
	packet->at = ETHERNET + ip_length + tcp_length;
	packet->seq = bpf_ntohl(*(__be32 *)(tcp + 4));
	packet->ack = bpf_ntohl(*(__be32 *)(tcp + 8));
	packet->window = *(__be16 *)(tcp + 14);
	return 1;
}

// Whether it says nothing, and only acknowledges.
static __always_inline int is_acknowledgement(const struct packet *packet)
{
	return !packet->length && !(packet->flags & (SYN | FIN | RST | URG));
}
