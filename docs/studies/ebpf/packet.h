// Reading the headers of a packet, for any front end. Included after dialogue.h.
#pragma once

#define CONTROL_PORT 21
#define TRANSLATED 0x08000000 // packet mark: the source of this connection is translated

// The connection's key has the client first; of a packet that is not of a control connection, the sender.
static __always_inline int read_headers(struct scratch *s, void *skb, __u32 at)
{
	struct packet *p = &s->packet;
	struct address from = {}, to = {};
	__u32 total, header;
	__u8 h[40], t[20];

	if (bpf_skb_load_bytes(skb, at, h, 20))
		return 0;
	if (h[0] >> 4 == 4) {
		header = (h[0] & 15) * 4;
		total = h[2] << 8 | h[3];
		if (h[9] != 6 || header < 20 || (h[6] & 0x3f) || h[7])
			return 0; // not TCP, a fragment
		from.word[2] = to.word[2] = bpf_htonl(0xffff);
		__builtin_memcpy(&from.word[3], h + 12, 4);
		__builtin_memcpy(&to.word[3], h + 16, 4);
		p->ipv6 = 0;
	} else {
		if (h[0] >> 4 != 6 || h[6] != 6 || bpf_skb_load_bytes(skb, at, h, 40))
			return 0; // extension headers are user space's
		header = 40;
		total = 40 + (h[4] << 8 | h[5]);
		__builtin_memcpy(&from, h + 8, 16);
		__builtin_memcpy(&to, h + 24, 16);
		p->ipv6 = 1;
	}
	if (bpf_skb_load_bytes(skb, at + header, t, 20))
		return 0;
	header += (t[12] >> 4) * 4;
	if ((t[12] >> 4) < 5 || total < header)
		return 0;
	p->payload = at + header;
	p->length = total - header;
	p->flags = t[13];
	__builtin_memcpy(&p->seq, t + 4, 4);
	__builtin_memcpy(&p->ack, t + 8, 4);
	p->seq = bpf_ntohl(p->seq);
	p->ack = bpf_ntohl(p->ack);
	p->side = (t[0] << 8 | t[1]) == CONTROL_PORT ? SERVER : CLIENT;
	if (p->side == CLIENT) {
		p->key.client = from;
		p->key.server = to;
		__builtin_memcpy(&p->key.client_port, t, 2);
		__builtin_memcpy(&p->key.server_port, t + 2, 2);
	} else {
		p->key.client = to;
		p->key.server = from;
		__builtin_memcpy(&p->key.client_port, t + 2, 2);
		__builtin_memcpy(&p->key.server_port, t, 2);
	}
	return 1;
}

// Whether a SYN comes through a pinhole. To delete it is to use it: of two packets one succeeds.
static __always_inline int is_admitted(struct packet *p)
{
	struct hole_key key = {};
	__u64 *until;

	if ((p->flags & (SYN | ACK | FIN | RST)) != SYN || p->side == SERVER)
		return 0;
	key.from = p->key.client;
	key.to = p->key.server;
	key.port = p->key.server_port;
	until = bpf_map_lookup_elem(&holes, &key);
	if (!until || *until < bpf_ktime_get_ns() || bpf_map_delete_elem(&holes, &key))
		return 0;
	count(ADMITTED);
	return 1;
}
