// Front ends of dialogue.h for rules that ask a program (xt_bpf): `control` says whether a packet of a control
// connection must be queued, `admit` whether a SYN goes through a pinhole, which is then consumed. Both are
// socket filters, given the packet from its network header on. No kernel type is used, so no BTF is needed.
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "dialogue.h"
#include "packet.h"

SEC("socket")
int control(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratches, &zero);

	if (!s || !read_headers(s, skb, 0))
		return QUEUE;
	s->packet.translated = skb->mark & TRANSLATED ? 1 : 0;
	return inspect(s, skb);
}

SEC("socket")
int admit(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratches, &zero);

	if (!s || !read_headers(s, skb, 0))
		return 0;
	return is_admitted(&s->packet);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
