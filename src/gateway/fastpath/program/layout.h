// Maps and structures that the program shares with the daemon. `src/gateway/fastpath` has them in Rust.
//
// Everything is in the byte order of the machine, except the types __be16 and __be32.
#pragma once

// The longest line that is judged, with its CR LF.
#define LINE 128

// Of a number of a port that keeps its length by zeros, where the server takes as many.
#define MOST_DIGITS 4

enum side { CLIENT, SERVER };

// What is waited for. NOTHING: a command. LOGIN: the same, of a client that has not logged in.
enum awaits { NOTHING, OTHER, PASV, EPSV, ANNOUNCED, LOGIN, LOGIN_REPLY, GREETING };

enum counts { JUDGED, HANDED_BACK, OPENED, ADMITTED, NO_ROOM, REWRITTEN, COUNTS };

// Endpoints of a control connection's packet, as the interface shows them.
struct way_key {
	__be32 source, destination;
	__be16 source_port, destination_port;
};

// The flow that a packet belongs to, and which side sends it.
struct way {
	__u64 flow;
	__u32 side;
	__u32 pad;
};

// Source address, destination address and destination port of the SYN that a pinhole admits.
struct hole_key {
	__be32 initiator, arrival;
	__be16 port;
	__u16 zero;
};

// A pinhole. It admits nothing while `flow` is 0 (reserved by the daemon) or `until` has passed.
struct hole {
	__u64 flow;
	__u64 until;
	__u32 step;
	__u32 mark;
};

// A line as it came. Bytes behind its length are 0. The length of a FIN is more than LINE.
struct line {
	__u32 seq, length;
	__u8 bytes[LINE];
};

// A control connection that the daemon handed over.
struct flow {
	struct bpf_spin_lock lock;
	__u32 judged;                              // 0: the daemon has it
	__u32 next[2];                             // next sequence number of client and server
	__u32 steps;                               // lines judged so far
	__u32 awaits;
	__be32 client, server;                     // their own addresses, behind all NAT
	__be16 client_port, server_port;
	__be32 client_named, server_named;         // addresses written in the place of their own
	__be32 client_arrival, server_arrival;     // destination of the SYN: active, passive
	__be32 active_initiator, passive_initiator;
	__u32 active_mark, passive_mark;           // packet mark of the admitted SYN
	__u32 judged_mark;                         // packet mark of a judged packet
	__u32 digits;                              // most digits of each port number of a PORT that keeps its length by zeros
	__u32 adjusts;                             // 1: lines may change their length; every packet is adjusted then
	__u32 shift[2];                            // by how much the sequence numbers of client and server are shifted,
	__u32 since[2];                            // and from which one on: earlier ones by something else
	__u32 hole_step;                           // the step that opened its pinhole; 0: it has none
	__u32 pad;
	__u64 lifetime;                            // of a pinhole, in nanoseconds
	struct hole_key hole;                      // that pinhole
	__u32 opening;                             // 1 while one processor opens a pinhole; the daemon writes 0
	struct line last[2];                       // last judged line of client and server
};

// A record of the ring: one judged line, or a FIN.
struct step {
	__u64 flow, at;                            // at: bpf_ktime_get_ns()
	__u32 step, side;                          // step: `steps` of the flow with this line
	__u32 seq, ack;
	__be32 client, server;
	__be16 client_port, server_port;
	__u16 length;
	__be16 window;
	__u8 opened;                               // 1: the line opened a pinhole
	__u8 ends;                                 // 1: a FIN, and no line
	__u8 digits;                               // of the flow
	__u8 pad;
	__u32 consumed;                            // the step whose pinhole is gone, if one is
	__u8 bytes[LINE];                          // as they came, before any rewrite; 0 behind the line
};

_Static_assert(sizeof(struct way_key) == 12, "");
_Static_assert(sizeof(struct hole_key) == 12, "");
_Static_assert(sizeof(struct hole) == 24, "");
_Static_assert(sizeof(struct line) == 136, "");
_Static_assert(sizeof(struct flow) == 400, "");
_Static_assert(__builtin_offsetof(struct flow, lifetime) == 104, "");
_Static_assert(__builtin_offsetof(struct flow, last) == 128, "");
_Static_assert(sizeof(struct step) == 184, "");
_Static_assert(__builtin_offsetof(struct step, bytes) == 56, "");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct way_key);
	__type(value, struct way);
} ways SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct hole_key);
	__type(value, struct hole);
} holes SEC(".maps");

// Bit port % 32 of word port / 32: no pinhole is opened at that port.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

// Bit port % 32 of word port / 32: servers of connections that were handed over have this port. Other packets are not
// looked up among the ways, which takes longer.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, __u32);
} control_ports SEC(".maps");

#define RING (1 << 20)
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

// In doubt it has: nothing is opened at a barred port, and a control port is looked up.
static __always_inline int has_port(void *map, __u32 port)
{
	__u32 word = port / 32, *bits = bpf_map_lookup_elem(map, &word);

	return !bits || *bits >> (port % 32) & 1;
}

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &which);

	if (value)
		++*value;
}
