// The dialogue of a control connection, as far as a program in the kernel can inspect it: one command at a time,
// each line whole in one segment, each reply an answer to what was last asked. All else is not inspected but
// handed over: the packet, and all of its connection after it, goes to the queue. Knows no hook: `inspect` is
// given packet, offsets and the connection's key by its front end (control.bpf.c).
//
// What it opens, the engine must open too, with the same endpoint; `run` compares the two over captures.
#pragma once

#define MAX_SEGMENT 2048
#define MAX_LINES 64
#define MAX_WORDS 96 // before an endpoint
#define MIN_DATA_PORT 1024
#ifndef PINHOLE_SECONDS
#define PINHOLE_SECONDS 30
#endif

enum verdict { PASS = 0, QUEUE = 1 };
enum side { CLIENT = 0, SERVER = 1 };
enum phase { SILENT, GREETED, VERIFIED, CLOSED, HANDED };
enum pending { NOTHING, LOGIN, PASSIVE, EXTENDED, ANNOUNCEMENT, TRANSFER, OTHER, UNREADABLE };
enum counter { PACKETS, OPENED, HANDED_OVER, QUEUED, ADMITTED, COLLISIONS, COUNTERS };

struct address {
	__u32 word[4]; // IPv4 as ::ffff:a.b.c.d
};

struct flow_key {
	struct address client, server;
	__u16 client_port, server_port; // as on the wire
};

struct hole_key {
	struct address from, to;
	__u16 port; // as on the wire
	__u16 zero;
};

// What is known of one control connection. Of HANDED ones the numbers say where user space has to go on.
struct flow {
	__u32 busy;	// a processor is at it: socket filters may not take spin locks
	__u32 next[2];	// by side
	__u8 phase, pending, logged_in, has_hole;
	__u16 open;	// the code of a multi-line reply that goes on
	__u16 lost;	// two processors met
	struct hole_key hole;
};

struct packet {
	struct flow_key key;
	__u32 seq, ack, payload, length; // payload: its offset
	__u8 side, flags, ipv6, translated;
};

struct scratch {
	__u8 line[MAX_SEGMENT];
	struct packet packet;
	__u32 open, code, start; // what `scan` found: a reply that goes on, one that ended, where its last line is
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

// Pinholes: until when each is open, in the kernel's nanoseconds.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct hole_key);
	__type(value, __u64);
} holes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &which);
	if (n)
		++*n;
}

#define VERB(a, b, c, d) ((__u32)(a) << 24 | (b) << 16 | (c) << 8 | (d))

static __always_inline __u8 upper(__u8 c)
{
	return c >= 'a' && c <= 'z' ? c - 32 : c;
}

static __always_inline int is_digit(__u8 c)
{
	return c >= '0' && c <= '9';
}

// The bound stands behind a barrier, or the compiler finds it needless and the verifier misses it.
static __always_inline __u8 byte_at(struct scratch *s, __u32 at)
{
	asm volatile("" : "+r"(at));
	return s->line[at & (MAX_SEGMENT - 1)];
}

// What a command will be answered with. UNREADABLE: not for us to decide.
static __always_inline int classify(__u32 verb)
{
	switch (verb) {
	case VERB('P', 'A', 'S', 'V'):
		return PASSIVE;
	case VERB('E', 'P', 'S', 'V'):
		return EXTENDED;
	case VERB('P', 'O', 'R', 'T'): case VERB('E', 'P', 'R', 'T'):
		return ANNOUNCEMENT;
	case VERB('U', 'S', 'E', 'R'): case VERB('P', 'A', 'S', 'S'): case VERB('A', 'C', 'C', 'T'):
		return LOGIN;
	case VERB('A', 'P', 'P', 'E'): case VERB('L', 'I', 'S', 'T'): case VERB('M', 'L', 'S', 'D'):
	case VERB('N', 'L', 'S', 'T'): case VERB('R', 'E', 'T', 'R'): case VERB('S', 'T', 'O', 'R'):
	case VERB('S', 'T', 'O', 'U'):
		return TRANSFER;
	case VERB('A', 'L', 'L', 'O'): case VERB('C', 'D', 'U', 'P'): case VERB('C', 'W', 'D', 0):
	case VERB('C', 'L', 'N', 'T'): case VERB('D', 'E', 'L', 'E'): case VERB('F', 'E', 'A', 'T'):
	case VERB('H', 'E', 'L', 'P'): case VERB('M', 'D', 'T', 'M'): case VERB('M', 'F', 'M', 'T'):
	case VERB('M', 'K', 'D', 0): case VERB('M', 'L', 'S', 'T'): case VERB('M', 'O', 'D', 'E'):
	case VERB('N', 'O', 'O', 'P'): case VERB('O', 'P', 'T', 'S'): case VERB('P', 'W', 'D', 0):
	case VERB('Q', 'U', 'I', 'T'): case VERB('R', 'E', 'S', 'T'): case VERB('R', 'M', 'D', 0):
	case VERB('R', 'N', 'F', 'R'): case VERB('R', 'N', 'T', 'O'): case VERB('S', 'I', 'T', 'E'):
	case VERB('S', 'I', 'Z', 'E'): case VERB('S', 'T', 'A', 'T'): case VERB('S', 'T', 'R', 'U'):
	case VERB('S', 'Y', 'S', 'T'): case VERB('T', 'Y', 'P', 'E'): case VERB('X', 'C', 'W', 'D'):
	case VERB('X', 'P', 'W', 'D'):
		return OTHER;
	default: // AUTH, CCC, REIN and ABOR among them: they change what replies mean
		return UNREADABLE;
	}
}

// The number of one to five digits at `at`, and past it in the upper half; without `zeros`, none may lead. 0 if
// there is none.
__noinline __u64 number_at(struct scratch *s, __u32 at, int zeros)
{
	__u32 number = 0, i;

	if (!s)
		return 0;
	for (i = 0; i < 6; i++) {
		__u8 c = byte_at(s, at + i);

		if (!is_digit(c))
			break;
		if (i && !number && !zeros)
			return 0;
		number = number * 10 + (c - '0');
	}
	return i && i < 6 ? (__u64)(at + i) << 32 | number : 0;
}

// Where the first byte from `at` on stands that is neither letter nor blank, or, with `digit`, that is a digit.
__noinline __u32 skip_words(struct scratch *s, __u32 at, int digit)
{
	__u32 i;

	if (!s)
		return 0;
	for (i = 0; i < MAX_WORDS; i++, at++) {
		__u8 c = byte_at(s, at);

		if (digit ? is_digit(c) || c == '\n' : !(c == ' ' || (upper(c) >= 'A' && upper(c) <= 'Z')))
			break;
	}
	return at;
}

// `count` numbers with `separator` between them, each below 256, shifted into each other; `*at` past them.
// False if they are not so.
static __always_inline int numbers(struct scratch *s, __u32 *at, __u32 count, __u8 separator, int zeros, __u64 *all)
{
	__u32 i;

	for (i = 0; i < count; i++) {
		__u64 found;

		if (i && byte_at(s, (*at)++) != separator)
			return 0;
		found = number_at(s, *at, zeros);
		if (!found || (__u32)found > 255)
			return 0;
		*all = *all << 8 | (__u8)found;
		*at = found >> 32;
	}
	return 1;
}

static __always_inline int is_line_end(__u8 c)
{
	return c == '\r' || c == '\n';
}

// The host-port at the first digit of a 227: address and port in 48 bits. Behind it the engine, as clients do,
// looks for a seventh number; here only a bracket or the end may stand.
__noinline __u64 host_port_of_reply(struct scratch *s, __u32 at)
{
	__u64 all = 0;
	__u8 c;

	if (!s)
		return 0;
	at = skip_words(s, at, 1);
	if (!numbers(s, &at, 6, ',', 1, &all))
		return 0;
	c = byte_at(s, at);
	return c == ')' || is_line_end(c) ? all : 0;
}

// The argument of PORT.
__noinline __u64 host_port(struct scratch *s, __u32 at)
{
	__u64 all = 0;

	return s && numbers(s, &at, 6, ',', 1, &all) && is_line_end(byte_at(s, at)) ? all : 0;
}

// The port of `229 words (|||port|)`. 0 if it is of any other form.
__noinline __u32 extended_port(struct scratch *s, __u32 at)
{
	__u64 port;

	if (!s)
		return 0;
	at = skip_words(s, at, 0);
	if (byte_at(s, at) != '(' || byte_at(s, at + 1) != '|' || byte_at(s, at + 2) != '|' ||
	    byte_at(s, at + 3) != '|')
		return 0;
	port = number_at(s, at + 4, 1);
	return byte_at(s, port >> 32) == '|' && (__u32)port < 65536 ? port : 0;
}

// The argument of EPRT, `|1|a.b.c.d|port|`, as host_port gives it; an IPv6 address is user space's to read.
__noinline __u64 extended_endpoint(struct scratch *s, __u32 at)
{
	__u64 all = 0, port;

	if (!s || byte_at(s, at) != '|' || byte_at(s, at + 1) != '1' || byte_at(s, at + 2) != '|')
		return 0;
	at += 3;
	if (!numbers(s, &at, 4, '.', 0, &all) || byte_at(s, at) != '|')
		return 0;
	port = number_at(s, at + 1, 1);
	at = port >> 32;
	if ((__u32)port > 65535 || byte_at(s, at) != '|' || !is_line_end(byte_at(s, at + 1)))
		return 0;
	return all << 16 | (__u16)port;
}

static __always_inline void close_hole(struct flow *f)
{
	if (f->has_hole) {
		struct hole_key key = f->hole;

		bpf_map_delete_elem(&holes, &key);
		f->has_hole = 0;
	}
}

// Opens for `from` to `to`, in place of what was open before.
static __always_inline int open_hole(struct flow *f, struct address *from, struct address *to, __u32 port)
{
	struct hole_key key = { .from = *from, .to = *to, .port = bpf_htons(port) };
	__u64 until = bpf_ktime_get_ns() + PINHOLE_SECONDS * 1000000000ULL;

	close_hole(f);
	if (port < MIN_DATA_PORT || bpf_map_update_elem(&holes, &key, &until, BPF_ANY))
		return 0;
	f->hole = key;
	f->has_hole = 1;
	count(OPENED);
	return 1;
}

// Whether the upper 32 of the 48 bits are this address.
static __always_inline int names(__u64 endpoint, const struct address *a)
{
	return a->word[2] == bpf_htonl(0xffff) && a->word[3] == bpf_htonl(endpoint >> 16);
}

struct walk {
	struct scratch *s;
	__u32 at, end, past;
};

static long step(__u32 turn, struct walk *w)
{
	__u32 at = w->at + turn;
	__u8 c;

	if (at >= w->end)
		return 1;
	c = byte_at(w->s, at);
	if (c == '\n') {
		w->past = at + 1;
		return 1;
	}
	// What Telnet reads, and what some servers pass over.
	return c == 0 || c == 0xff || (c == '\r' && byte_at(w->s, at + 1) != '\n');
}

// Past the end of the line at `at`. 0 if it is not whole, or not plain text. As a loop of its own this is 45,000
// instructions to the verifier of 6.18, and too many to that of 6.1; what bpf_loop calls is looked at once.
__noinline __u32 past_line(struct scratch *s, __u32 at, __u32 end)
{
	struct walk w = { .s = s, .at = at, .end = end };

	if (!s)
		return 0;
	bpf_loop(MAX_SEGMENT, step, &w, 0);
	return w.past;
}

// The client's line, the whole of the segment.
static __always_inline int command(struct flow *f, struct scratch *s, __u32 end)
{
	struct packet *p = &s->packet;
	__u32 verb = 0, length = 0, i;
	int kind;

	if (f->pending != NOTHING || f->phase == SILENT)
		return QUEUE;
	if (past_line(s, 0, end) != end) // a second line
		return QUEUE;
	for (i = 0; i < 5; i++) {
		__u8 c = i < end ? s->line[i] : '\n';

		if (c == ' ' || c == '\r' || c == '\n')
			break;
		if (i == 4)
			return QUEUE;
		verb = verb << 8 | upper(c);
		length++;
	}
	if (length < 3)
		return QUEUE;
	if (length == 3)
		verb <<= 8;
	kind = classify(verb);
	if (kind == UNREADABLE || (kind == EXTENDED && s->line[4] == ' ')) // EPSV ALL
		return QUEUE;
	if (kind == ANNOUNCEMENT) {
		__u64 endpoint;

		if (!f->logged_in || p->translated || s->line[4] != ' ')
			return QUEUE;
		endpoint = verb == VERB('P', 'O', 'R', 'T') ? host_port(s, 5)
							    : extended_endpoint(s, 5);
		if (!names(endpoint, &p->key.client) ||
		    !open_hole(f, &p->key.server, &p->key.client, endpoint & 0xffff))
			return QUEUE;
	}
	if ((kind == PASSIVE || kind == EXTENDED) && !f->logged_in)
		return QUEUE;
	f->phase = VERIFIED;
	f->pending = kind;
	return PASS;
}

// The code at the start of the line at `at`; with CONTINUES, if more lines of the reply follow. 0 without one.
#define CONTINUES 0x10000
__noinline __u32 code_at(struct scratch *s, __u32 at)
{
	__u32 code = 0, i;
	__u8 c;

	if (!s || at > MAX_SEGMENT - 4)
		return 0;
	for (i = 0; i < 3; i++) {
		c = byte_at(s, at + i);
		if (!is_digit(c))
			return 0;
		code = code * 10 + (c - '0');
	}
	c = byte_at(s, at + 3);
	if (c == '-')
		return code | CONTINUES;
	return c == ' ' || c == '\r' || c == '\n' ? code : 0;
}

// Reads the server's lines, all of them in this segment, of a reply that may be open since an earlier one. What
// is found is put in the scratch. False if it is not for us to decide.
static __always_inline int scan(struct scratch *s, __u32 end, __u32 open)
{
	__u32 at = 0, i;

	s->code = 0;
	for (i = 0; i < MAX_LINES; i++) {
		__u32 next = past_line(s, at, end);
		__u32 code = code_at(s, at);

		if (!next)
			return 0;
		if (!open) {
			if (!code)
				return 0; // a line without a code
			if (code & CONTINUES)
				open = code & 0xffff;
			else
				s->code = code;
		} else if (code == open) {
			s->code = code;
			open = 0;
		}
		s->start = at;
		at = next;
		if (s->code || at == end)
			break;
	}
	s->open = open;
	return at == end; // else something follows the reply, or it has too many lines
}

// The server's lines.
static __always_inline int replies(struct flow *f, struct scratch *s, __u32 end)
{
	struct packet *p = &s->packet;
	__u32 code, at;

	if (p->ack != f->next[CLIENT]) // it does not know what was last asked
		return QUEUE;
	if (!scan(s, end, f->open))
		return QUEUE;
	f->open = s->open;
	code = s->code;
	at = s->start;
	if (!code)
		return PASS; // the reply goes on

	if (f->phase == SILENT) {
		if (code / 100 == 1)
			return PASS; // 120: ready in a while
		if (code != 220)
			return QUEUE;
		f->phase = GREETED;
		return PASS;
	}
	if (code == 227 || code == 229) {
		__u32 port;

		if (f->pending != (code == 227 ? PASSIVE : EXTENDED))
			return QUEUE;
		if (code == 227) {
			__u64 endpoint = host_port_of_reply(s, at + 4);

			port = endpoint & 0xffff;
			if (!names(endpoint, &p->key.server))
				return QUEUE;
		} else {
			port = extended_port(s, at + 4);
		}
		if (!open_hole(f, &p->key.client, &p->key.server, port))
			return QUEUE;
		f->pending = NOTHING;
		return PASS;
	}
	if (code / 100 == 1 && f->pending == TRANSFER)
		return PASS;
	if (code / 100 == 1 || code == 234 || f->pending == NOTHING)
		return QUEUE;
	if ((code == 230 || code == 232) && f->pending == LOGIN)
		f->logged_in = 1;
	if (f->pending == ANNOUNCEMENT && code / 100 != 2)
		close_hole(f);
	f->pending = NOTHING;
	return PASS;
}

static __always_inline int read_payload(struct flow *f, struct scratch *s, void *skb)
{
	struct packet *p = &s->packet;
	__u32 length = p->length;

	if (length == 0 || length > MAX_SEGMENT)
		return QUEUE;
	length--;
	asm volatile("" : "+r"(length)); // as in byte_at
	length = (length & (MAX_SEGMENT - 1)) + 1;
	if (bpf_skb_load_bytes(skb, p->payload, s->line, length))
		return QUEUE;
	if (s->line[(length - 1) & (MAX_SEGMENT - 1)] != '\n')
		return QUEUE; // a cut line
	return p->side == CLIENT ? command(f, s, length) : replies(f, s, length);
}

// The SYN-ACK names both first numbers.
static __always_inline int begin(struct packet *p)
{
	struct flow new = { .next = { p->ack, p->seq + 1 } };
	struct flow *old = bpf_map_lookup_elem(&flows, &p->key);

	if (old && old->phase != CLOSED && old->phase != HANDED) {
		if (old->next[CLIENT] == p->ack && old->next[SERVER] == p->seq + 1)
			return PASS;
		old->lost = 1; // another connection in its place, or someone who says so
		return QUEUE;
	}
	return bpf_map_update_elem(&flows, &p->key, &new, BPF_ANY) ? QUEUE : PASS;
}

#define FIN 1
#define SYN 2
#define RST 4
#define ACK 16

static __always_inline int inspect_flow(struct flow *f, struct scratch *s, void *skb)
{
	struct packet *p = &s->packet;
	__u32 side = p->side & 1;
	__s32 ahead = p->seq - f->next[side];
	int verdict = PASS;

	if (f->lost)
		verdict = QUEUE;
	else if (ahead < 0 && (__s32)(ahead + p->length) <= 0 && !(p->flags & RST))
		return PASS; // a retransmission
	else if (ahead)
		verdict = QUEUE;
	else if (p->length)
		verdict = read_payload(f, s, skb);
	if (verdict == QUEUE) {
		f->phase = HANDED;
		close_hole(f);
		count(HANDED_OVER);
		return QUEUE;
	}
	f->next[side] += p->length;
	if (p->flags & (FIN | RST)) {
		f->phase = CLOSED;
		close_hole(f);
	}
	return PASS;
}

// What becomes of a packet of a control connection.
static __always_inline int inspect(struct scratch *s, void *skb)
{
	struct packet *p = &s->packet;
	struct flow *f;
	int verdict;

	if ((p->flags & (SYN | ACK)) == SYN)
		return PASS;
	if (p->flags & SYN)
		return p->side == SERVER && !p->length ? begin(p) : QUEUE;
	if (!p->length && !(p->flags & (FIN | RST)))
		return PASS; // an acknowledgement
	count(PACKETS);
	f = bpf_map_lookup_elem(&flows, &p->key);
	if (!f || f->phase == HANDED) {
		count(QUEUED);
		return QUEUE;
	}
	if (f->phase == CLOSED)
		return PASS;
	if (!__sync_bool_compare_and_swap(&f->busy, 0, 1)) {
		f->lost = 1;
		count(COLLISIONS);
		return QUEUE;
	}
	verdict = inspect_flow(f, s, skb);
	__sync_lock_test_and_set(&f->busy, 0);
	if (verdict == QUEUE)
		count(QUEUED);
	return verdict;
}
