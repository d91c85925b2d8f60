// What a program at the netfilter hook (BPF_PROG_TYPE_NETFILTER) and a socket filter may not do. Each of these
// asks for one thing; `ftp-ebpf limits` loads them one by one, and prints what the verifier says.
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 size,
				  struct bpf_ct_opts *opts, __u32 opts_size) __ksym;
void bpf_ct_release(struct nf_conn *ct) __ksym;
int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym;
void *bpf_dynptr_slice(const struct bpf_dynptr *ptr, __u32 offset, void *buffer, __u32 size) __ksym;

struct locked {
	struct bpf_spin_lock lock;
	__u32 value;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct locked);
} locks SEC(".maps");

static __always_inline void count_locked(void)
{
	__u32 zero = 0;
	struct locked *l = bpf_map_lookup_elem(&locks, &zero);

	if (l) {
		bpf_spin_lock(&l->lock);
		l->value++;
		bpf_spin_unlock(&l->lock);
	}
}

static __always_inline struct nf_conn *look_up(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_ct_opts opts = { .netns_id = -1, .l4proto = 6 };

	return bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
}

SEC("nf/accept")
int nf_accept(struct bpf_nf_ctx *ctx)
{
	return 1;
}

SEC("nf/read_packet")
int nf_read_packet(struct bpf_nf_ctx *ctx)
{
	struct bpf_dynptr packet;
	__u8 room[20], *header;

	if (bpf_dynptr_from_skb((struct __sk_buff *)ctx->skb, 0, &packet))
		return 1;
	header = bpf_dynptr_slice(&packet, 0, room, sizeof(room));
	return !(header && header[9] == 254);
}

SEC("nf/verdict_queue")
int nf_verdict_queue(struct bpf_nf_ctx *ctx)
{
	return 3; // NF_QUEUE
}

SEC("nf/set_packet_mark")
int nf_set_packet_mark(struct bpf_nf_ctx *ctx)
{
	((struct sk_buff *)ctx->skb)->mark = 1;
	return 1;
}

SEC("nf/write_packet")
int nf_write_packet(struct bpf_nf_ctx *ctx)
{
	struct bpf_dynptr packet;
	__u8 byte = 0;

	if (bpf_dynptr_from_skb((struct __sk_buff *)ctx->skb, 0, &packet))
		return 1;
	return bpf_dynptr_write(&packet, 8, &byte, 1, 0) == 0; // 0: it loads, and fails
}

SEC("nf/look_up_conntrack")
int nf_look_up_conntrack(struct bpf_nf_ctx *ctx)
{
	struct nf_conn *ct = look_up((struct __sk_buff *)ctx->skb);

	if (ct)
		bpf_ct_release(ct);
	return 1;
}

SEC("nf/set_conntrack_mark")
int nf_set_conntrack_mark(struct bpf_nf_ctx *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx->skb;
	struct nf_conn *ct = (struct nf_conn *)(skb->_nfct & ~7UL);

	if (ct)
		ct->mark = 1;
	return 1;
}

SEC("nf/spin_lock")
int nf_spin_lock(struct bpf_nf_ctx *ctx)
{
	count_locked();
	return 1;
}

SEC("sf/accept")
int sf_accept(struct __sk_buff *skb)
{
	return 1;
}

SEC("sf/read_packet")
int sf_read_packet(struct __sk_buff *skb)
{
	__u8 header[20];

	return bpf_skb_load_bytes(skb, 0, header, sizeof(header)) == 0 && header[9] == 6;
}

SEC("sf/set_packet_mark")
int sf_set_packet_mark(struct __sk_buff *skb)
{
	skb->mark = 1;
	return 1;
}

SEC("sf/spin_lock")
int sf_spin_lock(struct __sk_buff *skb)
{
	count_locked();
	return 1;
}

SEC("sf/look_up_conntrack")
int sf_look_up_conntrack(struct __sk_buff *skb)
{
	struct nf_conn *ct = look_up(skb);

	if (ct)
		bpf_ct_release(ct);
	return 1;
}

SEC("tc/set_packet_mark")
int tc_set_packet_mark(struct __sk_buff *skb)
{
	skb->mark = 1;
	return -1; // TCX_NEXT
}

SEC("tc/set_conntrack_mark")
int tc_set_conntrack_mark(struct __sk_buff *skb)
{
	struct nf_conn *ct = look_up(skb);

	if (ct) {
		ct->mark = 1;
		bpf_ct_release(ct);
	}
	return -1;
}

SEC("tc/spin_lock")
int tc_spin_lock(struct __sk_buff *skb)
{
	count_locked();
	return -1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
