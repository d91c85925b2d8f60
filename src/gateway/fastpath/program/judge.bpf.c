// Judges the lines that recur on FTP control connections, where they enter the gateway.
//
// The daemon hands over a connection that it has verified. This program then follows it: one command, its reply,
// each a whole line in one segment, in step by sequence and by acknowledgement number; at last the FIN of each side. It marks such a packet, so that
// the rules do not queue it, and tells the daemon by a ring buffer. It opens the pinhole that a line announces, and
// admits the pinhole's SYN. At anything else it hands the flow back and leaves the packet as it is, so the packet is
// queued and the daemon goes on.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"
#include "packet.h"
#include "checksum.h"
#include "lines.h"
#include "rewrite.h"
#include "adjust.h"
#include "pinholes.h"
#include "steps.h"

// Of linux/bpf.h since 6.6.
#define NEXT -1 // TCX_NEXT
#define DROP 2  // TCX_DROP

static __always_inline int hand_back(struct flow *flow)
{
	int was_judged;

	bpf_spin_lock(&flow->lock);
	was_judged = flow->judged;
	flow->judged = 0;
	flow->opening = 0;
	bpf_spin_unlock(&flow->lock);
	if (was_judged)
		count(HANDED_BACK);
	return NEXT;
}

// The record of the ring is also where the line is read. `step` is set with the verdict.
static __always_inline void begin_record(struct step *line, const struct flow *flow, __u64 id, __u32 side,
					 const struct packet *packet)
{
	line->flow = id;
	line->at = bpf_ktime_get_ns();
	line->step = 0;
	line->side = side;
	line->seq = packet->seq;
	line->ack = packet->ack;
	line->client = flow->client;
	line->server = flow->server;
	line->client_port = flow->client_port;
	line->server_port = flow->server_port;
	line->length = packet->length;
	line->opened = 0;
	line->window = packet->window;
	line->ends = !!(packet->flags & FIN);
	line->digits = flow->digits;
	line->pad = 0;
	line->consumed = 0;
	__builtin_memset(line->bytes, 0, LINE);
}

static __always_inline void submit(struct step *line)
{
	// The daemon reads the ring before it decides anything, so it is only woken for the sake of room.
	__u64 unread = bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA);

	bpf_ringbuf_submit(line, unread > RING / 4 ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

// Opens the pinhole of a line whose turn it is, and takes the line. Other processors hand the flow back meanwhile.
static __always_inline int open(struct flow *flow, struct step *line, __u32 kind, const struct hole_key *key, __u32 step,
				const struct text *text)
{
	__u32 mark = kind == PORT || kind == EPRT ? flow->active_mark : flow->passive_mark;
	struct hole_key old = flow->hole;
	__u64 id = line->flow, until = line->at + flow->lifetime;
	int taken = 0;

	if (flow->hole_step)
		delete_own(&old, id);
	delete_own(key, id);
	if (insert_closed(key, id, step, mark))
		return 0;
	bpf_spin_lock(&flow->lock);
	if (flow->judged && flow->opening) {
		flow->hole = *key;
		flow->hole_step = step;
		flow->opening = 0;
		take(flow, line, kind, text->growth);
		taken = 1;
	}
	bpf_spin_unlock(&flow->lock);
	if (!taken) {
		delete_own(key, id);
		return 0;
	}
	open_inserted(key, id, step, until);
	line->opened = 1;
	count(OPENED);
	return 1;
}

// One whole line, or the end of what a side says.
static __always_inline int may_be_step(const struct packet *packet)
{
	__u32 flags = packet->flags & ~PSH;

	if (flags == (ACK | FIN))
		return !packet->length;
	return flags == ACK && packet->length >= 6 && packet->length <= LINE;
}

// Reads the line into its record. What it is; UNKNOWN if it is not one whole line.
static __always_inline __u32 read_line(struct __sk_buff *skb, const struct packet *packet, struct step *line,
				       struct endpoint *endpoint)
{
	__u32 length = packet->length;

	if (line->ends)
		return ENDS;
	// The compiler knows the bounds and would drop the tests that tell the verifier.
	length -= 6;
	asm volatile("" : "+r"(length));
	if (length > LINE - 6)
		return UNKNOWN;
	length += 6;
	if (bpf_skb_load_bytes(skb, packet->at, line->bytes, length) || !is_whole_line(line, length))
		return UNKNOWN;
	return line->side == CLIENT ? read_command(line, length, endpoint) : read_reply(line, endpoint);
}

static __always_inline int judge_line(struct __sk_buff *skb, const struct packet *packet, struct flow *flow,
				      struct step *line)
{
	struct endpoint endpoint = {};
	struct hole_key key = {};
	struct text text = {};
	struct shift shift = {};
	__u32 kind, verdict, step;
	int opens = 0, rewrites = 0, result = NEXT;

	kind = read_line(skb, packet, line, &endpoint);
	if (kind == UNKNOWN || !checksum_is_right(skb, packet, line))
		goto refuse;

	if (is_announcement(kind)) {
		__be32 address = bpf_htonl(endpoint.address), target, named;

		key.port = bpf_htons(endpoint.port);
		if (line->side == CLIENT) {
			if (address != flow->client)
				goto refuse;
			key.initiator = flow->active_initiator;
			key.arrival = flow->client_arrival;
			target = flow->client;
			named = flow->client_named;
		} else {
			if (kind == REPLY_227 && address != flow->server)
				goto refuse;
			key.initiator = flow->passive_initiator;
			key.arrival = flow->server_arrival;
			target = flow->server;
			named = kind == REPLY_227 ? flow->server_named : target;
		}
		rewrites = named != target;
		if (rewrites && !rewrite(&text, line, &endpoint, kind, bpf_ntohl(named), flow->digits))
			goto refuse;
		if (text.growth && !flow->adjusts)
			goto refuse;
		opens = may_open(skb, &key, line->flow, target);
	}

	// At the end of a transfer: then the daemon need not close its pinhole.
	if (kind == COMPLETION && flow->awaits == OTHER)
		line->consumed = consumed_step(flow);

	if (flow->adjusts && !has_plain_options(skb, packet))
		goto refuse;
	// No step is taken that the packet cannot follow.
	if ((rewrites || flow->adjusts) && bpf_skb_pull_data(skb, packet->at + packet->length))
		goto refuse;

	bpf_spin_lock(&flow->lock);
	verdict = verdict_on(flow, line, kind, opens, &shift);
	step = flow->steps + 1;
	if (verdict == TAKEN)
		take(flow, line, kind, 0);
	else if (verdict == OPENS)
		flow->opening = 1;
	bpf_spin_unlock(&flow->lock);
	if (verdict == HANDS_BACK)
		goto refuse;
	if (verdict == OPENS && !open(flow, line, kind, &key, step, &text))
		goto refuse;

	skb->mark = flow->judged_mark;
	count(JUDGED);
	if (rewrites) {
		// Never passes as it came: the step is taken. A retransmission is rewritten again.
		if (store_text(skb, packet, line, &text))
			result = DROP;
		count(REWRITTEN);
	}
	if (store_shift(skb, packet, &shift))
		result = DROP;
	if (verdict == AGAIN)
		bpf_ringbuf_discard(line, BPF_RB_NO_WAKEUP);
	else
		submit(line);
	return result;
refuse:
	bpf_ringbuf_discard(line, BPF_RB_NO_WAKEUP);
	return hand_back(flow);
}

// A packet that only acknowledges is no step, but its numbers are shifted as those of the lines. The mark spares it the rules.
static __always_inline int judge_acknowledgement(struct __sk_buff *skb, const struct packet *packet, struct flow *flow,
						 __u32 side)
{
	struct shift shift = {};
	int is_known;

	if (!flow->adjusts) {
		if (packet->plain && !skb->mark)
			skb->mark = flow->judged_mark;
		return NEXT;
	}
	if (!packet->plain || skb->mark || (packet->flags & ~PSH) != ACK || !has_plain_options(skb, packet) ||
	    bpf_skb_pull_data(skb, packet->at))
		return hand_back(flow);
	bpf_spin_lock(&flow->lock);
	is_known = flow->judged && shift_of(flow, side, packet->seq, packet->ack, &shift);
	bpf_spin_unlock(&flow->lock);
	if (!is_known)
		return hand_back(flow);
	skb->mark = flow->judged_mark;
	return store_shift(skb, packet, &shift) ? DROP : NEXT;
}

static __always_inline struct way *way_of(const struct packet *packet)
{
	return packet->has_control_port ? bpf_map_lookup_elem(&ways, &packet->key) : 0;
}

SEC("classifier") // As aya names it; it is attached by TCX.
int judge(struct __sk_buff *skb)
{
	struct packet packet;
	struct flow *flow;
	struct step *line;
	struct way *way;
	__u64 id;

	if (!read_packet(skb, &packet))
		return NEXT;
	way = way_of(&packet);
	if (!way) {
		admit(skb, &packet);
		return NEXT;
	}
	id = way->flow;
	flow = bpf_map_lookup_elem(&flows, &id);
	if (!flow || !flow->judged)
		return NEXT;
	// Judged already, at the interface below this one: a macvlan gets its packets from there. Nobody else sets this mark.
	if (skb->mark == flow->judged_mark)
		return NEXT;
	if (is_acknowledgement(&packet))
		return judge_acknowledgement(skb, &packet, flow, way->side & 1);
	if (!packet.plain || skb->mark || !may_be_step(&packet))
		return hand_back(flow);
	// Before the lock: a step that was taken before a packet is queued has its record by then.
	line = bpf_ringbuf_reserve(&ring, sizeof(*line), 0);
	if (!line) {
		count(NO_ROOM);
		return hand_back(flow);
	}
	begin_record(line, flow, id, way->side & 1, &packet);
	return judge_line(skb, &packet, flow, line);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
