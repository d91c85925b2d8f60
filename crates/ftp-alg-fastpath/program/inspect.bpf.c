// Inspects the recurring lines of FTP control connections at the interfaces of the gateway.
//
// The daemon hands over a connection that it has verified, and this program then follows its dialogue: one command,
// its reply, and so on, at last the FIN of each side. Each line must be whole, alone in its segment, and the next one
// by sequence number and by acknowledgement number. The program gives such a packet a packet mark, so that the rules
// do not queue it, and reports the line to the daemon in a ring buffer. It opens the pinhole that a line announces,
// and admits the SYN for which there is a pinhole.
//
// At anything else from either end the program hands the flow back and does not change the packet. So the rules queue
// the packet, and the daemon inspects the connection inline again. The program refuses nothing.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"
#include "packet.h"
#include "checksum.h"
#include "lines.h"
#include "rewrite.h"
#include "adjust.h"
#include "pinholes.h"
#include "decide.h"

// Return values, from linux/bpf.h of Linux 6.6.
#define NEXT -1 // TCX_NEXT: the next program and the stack get the packet
#define DROP 2  // TCX_DROP

#define OTHER -2 // of this program alone: `admit_packet` is to look at the packet

// Gives the connection back to the daemon. The packet is not changed, so the rules queue it.
static __always_inline int hand_back(struct flow *flow)
{
	int was_handed_over;

	bpf_spin_lock(&flow->lock);
	was_handed_over = flow->handed_over;
	flow->handed_over = 0;
	flow->opening = 0;
	bpf_spin_unlock(&flow->lock);
	if (was_handed_over)
		count(HANDED_BACK);
	return NEXT;
}

// Fills the record, except for the bytes of the line, which `read_line` reads, and the number, which `advance` sets.
static __always_inline void begin_record(struct line_record *line, const struct flow *flow, __u64 id, __u32 side,
					 const struct packet *packet)
{
	line->flow = id;
	line->at_ns = bpf_ktime_get_ns();
	line->number = 0;
	line->side = side;
	line->seq = packet->seq;
	line->ack = packet->ack;
	line->client = flow->client;
	line->server = flow->server;
	line->client_port = flow->client_port;
	line->server_port = flow->server_port;
	line->length = packet->payload_length;
	line->opened_pinhole = 0;
	line->window = packet->window;
	line->is_fin = !!(packet->flags & FIN);
	line->port_digits = flow->port_digits;
	line->pad = 0;
	line->consumed_pinhole = 0;
	__builtin_memset(line->bytes, 0, LONGEST_LINE);
}

// Opens the pinhole of the next line, and advances the flow. Returns 0 with nothing open if another processor has handed
// the flow back, because it got an announcement of this flow meanwhile.
static __always_inline int open(struct flow *flow, struct line_record *line, __u32 kind, const struct pinhole_key *key,
				__u32 number, __u32 growth)
{
	int is_active = kind == COMMAND_PORT || kind == COMMAND_EPRT;
	__u64 id = line->flow, deadline = line->at_ns + flow->pinhole_timeout;
	int is_advanced = 0;

	if (flow->pinhole_line)
		delete_pinhole_of(&flow->pinhole, id);
	delete_pinhole_of(key, id);
	if (insert_closed(key, flow, id, number, is_active))
		return 0;
	bpf_spin_lock(&flow->lock);
	if (flow->handed_over && flow->opening) {
		flow->pinhole = *key;
		flow->pinhole_line = number;
		flow->opening = 0;
		advance(flow, line, kind, growth);
		is_advanced = 1;
	}
	bpf_spin_unlock(&flow->lock);
	if (!is_advanced) {
		delete_pinhole_of(key, id);
		return 0;
	}
	open_inserted(key, id, number, deadline);
	line->opened_pinhole = 1;
	count(OPENED);
	return 1;
}

// Whether the flags and the length are those of one whole line, or of a FIN without a line.
static __always_inline int may_be_line(const struct packet *packet)
{
	__u32 flags = packet->flags & ~PSH;

	if (flags == (ACK | FIN))
		return !packet->payload_length;
	return flags == ACK && packet->payload_length >= 6 && packet->payload_length <= LONGEST_LINE;
}

// Reads the line into its record. Returns its kind, which is NOT_BYPASSABLE if the payload is not one whole line.
static __always_inline __u32 read_line(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow,
				       struct line_record *line, struct announcement *announcement)
{
	__u32 length = packet->payload_length;

	if (line->is_fin)
		return FIN_ALONE;
	// The compiler knows these bounds, and would drop the tests that the verifier needs.
	length -= 6;
	asm volatile("" : "+r"(length));
	if (length > LONGEST_LINE - 6)
		return NOT_BYPASSABLE;
	length += 6;
	if (bpf_skb_load_bytes(skb, packet->payload_offset, line->bytes, length) || !is_whole_line(line, length))
		return NOT_BYPASSABLE;
	return line->side == CLIENT ? read_command(line, length, &flow->own[CLIENT], announcement) :
				      read_reply(line, &flow->own[SERVER], announcement);
}

// Lets the line pass if it is the next one, or a retransmission. Returns 0 if it is not.
static __always_inline int follow_line(struct __sk_buff *skb, const struct packet *packet, struct flow *flow,
				       struct line_record *line, __u32 kind, const struct announcement *announcement)
{
	struct pinhole_key key = {};
	struct rewrite rewrite = {};
	struct seq_adjustment adjustment = {};
	__u32 verdict, number;
	int opens = 0, rewrites = 0, result = NEXT;

	if (is_announcement(kind)) {
		int is_client = line->side == CLIENT;
		const struct address_text *announced = &flow->announced[is_client ? CLIENT : SERVER];

		if (!flow->pinhole_timeout)
			return 0;
		if (is_client && (announcement->port < flow->first_client_port ||
				  announcement->port > flow->last_client_port))
			return 0;
		key.port = bpf_htons(announcement->port);
		key.initiator = is_client ? flow->active_initiator : flow->passive_initiator;
		key.arrival = is_client ? flow->active_arrival : flow->passive_arrival;
		rewrites = announced->length && kind != REPLY_229;
		if (rewrites && !rewrite_line(&rewrite, line, announcement, kind, announced, flow->port_digits))
			return 0;
		if (rewrite.growth && !flow->adjusted)
			return 0;
		opens = has_heartbeat(line->at_ns) &&
			may_open(skb, &key, line->flow,
				 !are_same(&key.arrival, is_client ? &flow->client : &flow->server, 4));
	}

	// At the end of a transfer the program reports that its pinhole was consumed, so that the daemon need not
	// close it.
	if (kind == REPLY_COMPLETION && flow->dialogue == COMMAND_PENDING)
		line->consumed_pinhole = consumed_pinhole(flow);

	if (flow->adjusted && !has_plain_options(skb, packet))
		return 0;
	// The packet must be writable before the flow advances, because the flow cannot be set back.
	if ((rewrites || flow->adjusted) && bpf_skb_pull_data(skb, packet->payload_offset + packet->payload_length))
		return 0;

	bpf_spin_lock(&flow->lock);
	verdict = decide(flow, line, kind, opens, &adjustment);
	number = flow->line_count + 1;
	if (verdict == NEXT_LINE)
		advance(flow, line, kind, 0);
	else if (verdict == NEXT_LINE_OPENS)
		flow->opening = 1;
	bpf_spin_unlock(&flow->lock);
	if (verdict == HAND_BACK || (verdict == NEXT_LINE_OPENS && !open(flow, line, kind, &key, number, rewrite.growth)))
		return 0;

	skb->mark = flow->inspected_mark;
	count(INSPECTED);
	if (rewrites) {
		// The flow has advanced, so the packet must not pass without the rewrite. TCP retransmits a dropped
		// packet, and the program rewrites it then.
		if (store_rewrite(skb, packet, line, &rewrite))
			result = DROP;
		count(REWRITTEN);
	}
	if (store_adjustment(skb, packet, &adjustment))
		result = DROP;
	if (verdict == RETRANSMISSION)
		bpf_ringbuf_discard(line, BPF_RB_NO_WAKEUP);
	else
		bpf_ringbuf_submit(line, BPF_RB_NO_WAKEUP);
	return result;
}

static __always_inline int inspect_line(struct __sk_buff *skb, const struct packet *packet, struct flow *flow,
					struct line_record *line)
{
	struct announcement announcement = {};
	__u32 kind = read_line(skb, packet, flow, line, &announcement);
	int result = 0;

	if (kind != NOT_BYPASSABLE && is_checksum_right(skb, packet, line->bytes))
		result = follow_line(skb, packet, flow, line, kind, &announcement);
	if (result)
		return result;
	bpf_ringbuf_discard(line, BPF_RB_NO_WAKEUP);
	return hand_back(flow);
}

// Marks a pure acknowledgement, which spares it the other rules, and adjusts its numbers on an adjusted connection. It
// does not advance the flow.
static __always_inline int inspect_acknowledgement(struct __sk_buff *skb, const struct packet *packet,
						   struct flow *flow, __u32 side)
{
	struct seq_adjustment adjustment = {};
	int is_adjustable;

	if (!flow->adjusted) {
		if (packet->is_plain && !skb->mark)
			skb->mark = flow->inspected_mark;
		return NEXT;
	}
	if (!packet->is_plain || skb->mark || (packet->flags & ~PSH) != ACK || !has_plain_options(skb, packet) ||
	    bpf_skb_pull_data(skb, packet->payload_offset))
		return hand_back(flow);
	bpf_spin_lock(&flow->lock);
	is_adjustable = flow->handed_over && find_adjustment(flow, side, packet->seq, packet->ack, &adjustment);
	bpf_spin_unlock(&flow->lock);
	if (!is_adjustable)
		return hand_back(flow);
	skb->mark = flow->inspected_mark;
	return store_adjustment(skb, packet, &adjustment) ? DROP : NEXT;
}

// Inspects the packet of a flow. Returns OTHER for a SYN of no flow.
static __noinline int inspect_packet(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct flow *flow;
	struct line_record *line;
	struct tuple_value *tuple = 0;
	__u64 id;

	if (!read_packet(skb, &packet))
		return NEXT;
	if (packet.has_control_port)
		tuple = bpf_map_lookup_elem(&tuples, &packet.tuple);
	if (!tuple)
		return packet.flags & SYN ? OTHER : NEXT;
	id = tuple->flow;
	flow = bpf_map_lookup_elem(&flows, &id);
	if (!flow || !flow->handed_over)
		return NEXT;
	// The packet did not arrive on its sender's interface, so it may be forged, and the rules queue it unless the
	// kernel drops it. Or the packet goes on to an interface above this one, such as a macvlan.
	if (skb->ifindex != flow->interface[tuple->side & 1])
		return NEXT;
	if (is_acknowledgement(&packet))
		return inspect_acknowledgement(skb, &packet, flow, tuple->side & 1);
	if (!packet.is_plain || skb->mark || !may_be_line(&packet))
		return hand_back(flow);
	// The record is reserved before the lock is taken. So if a line advances the flow before a packet is queued,
	// its record is in the ring when the daemon reads that packet.
	line = bpf_ringbuf_reserve(&ring, sizeof(*line), 0);
	if (!line) {
		count(RING_FULL);
		return hand_back(flow);
	}
	begin_record(line, flow, id, tuple->side & 1, &packet);
	return inspect_line(skb, &packet, flow, line);
}

static __noinline int admit_packet(struct __sk_buff *skb)
{
	struct packet packet = {};

	if (read_packet(skb, &packet))
		admit(skb, &packet);
	return NEXT;
}

// The stack has 512 bytes for all functions that are running, so `inspect_packet` and `admit_packet` have a frame each.
SEC("classifier") // aya loads a TCX program from a section of this name
int inspect(struct __sk_buff *skb)
{
	int result = inspect_packet(skb);

	return result == OTHER ? admit_packet(skb) : result;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
