// Front end of dialogue.h at the ingress of interfaces (TCX): marks what must be queued and what is admitted, for
// rules that look at the mark. It sees packets before connection tracking and translation, so it asks conntrack
// whose connection a packet belongs to; that needs kernel types, BTF and Linux 6.6.
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "dialogue.h"
#include "packet.h"

#define MARK_DATA 0x40000000
#define MARK_QUEUE 0x04000000
#define NEXT -1 // TCX_NEXT

struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 size,
				  struct bpf_ct_opts *opts, __u32 opts_size) __ksym;
void bpf_ct_release(struct nf_conn *ct) __ksym;

// Puts the client's own address in the key, where its source is translated. False if that is not known.
static __always_inline int untranslate(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_ct_opts opts = { .netns_id = -1, .l4proto = 6 };
	struct bpf_sock_tuple tuple = {};
	const struct address *from = p->side == CLIENT ? &p->key.client : &p->key.server;
	const struct address *to = p->side == CLIENT ? &p->key.server : &p->key.client;
	__u16 source = p->side == CLIENT ? p->key.client_port : p->key.server_port;
	__u16 target = p->side == CLIENT ? p->key.server_port : p->key.client_port;
	struct nf_conn *ct;
	__u32 size;
	int known;

	if (p->ipv6) {
		__builtin_memcpy(tuple.ipv6.saddr, from, 16);
		__builtin_memcpy(tuple.ipv6.daddr, to, 16);
		tuple.ipv6.sport = source;
		tuple.ipv6.dport = target;
		size = sizeof(tuple.ipv6);
	} else {
		tuple.ipv4.saddr = from->word[3];
		tuple.ipv4.daddr = to->word[3];
		tuple.ipv4.sport = source;
		tuple.ipv4.dport = target;
		size = sizeof(tuple.ipv4);
	}
	ct = bpf_skb_ct_lookup(skb, &tuple, size, &opts, sizeof(opts));
	if (!ct)
		return 0;
	known = !(ct->status & IPS_DST_NAT);
	p->translated = ct->status & IPS_SRC_NAT ? 1 : 0;
	if (p->ipv6)
		__builtin_memcpy(&p->key.client, &ct->tuplehash[0].tuple.src.u3, 16);
	else
		p->key.client.word[3] = ct->tuplehash[0].tuple.src.u3.ip;
	p->key.client_port = ct->tuplehash[0].tuple.src.u.tcp.port;
	bpf_ct_release(ct);
	return known;
}

SEC("tc/mark")
int mark(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct scratch *s;
	struct packet *p;
	__u16 target;

	if (skb->protocol != bpf_htons(0x0800) && skb->protocol != bpf_htons(0x86dd))
		return NEXT;
	s = bpf_map_lookup_elem(&scratches, &zero);
	if (!s || !read_headers(s, skb, 14))
		return NEXT;
	p = &s->packet;
	target = bpf_ntohs(p->key.server_port);
	if (target != CONTROL_PORT) {
		if (is_admitted(p))
			skb->mark |= MARK_DATA;
		return NEXT;
	}
	if (!p->length && !(p->flags & (SYN | FIN | RST)))
		return NEXT;
	if ((p->flags & (SYN | ACK)) == SYN)
		return NEXT;
	if (!untranslate(skb, p) || inspect(s, skb) == QUEUE)
		skb->mark |= MARK_QUEUE;
	return NEXT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
