// The maps and structures that the program shares with the daemon. build.rs reads macros, enumerations and structures,
// and makes those of `src/layout.rs`. So they stand before the maps, and a field's type is a number of linux/types.h or
// a structure above it.
//
// Numbers are in the machine's byte order. Fields of the types __be16 and __be32 are in network byte order.
// `struct address` becomes an IpAddr.
#pragma once

// Length of the longest line that the program inspects, with its CR LF.
#define LONGEST_LINE 128

// Length of the longest text of an address.
#define LONGEST_ADDRESS 39

// A PORT keeps its length by leading zeros in the two numbers of its port. No server is sent more digits than this in
// one of them.
#define MAX_PORT_DIGITS 4

// How long an admitted SYN is remembered, in nanoseconds: as long as conntrack waits for its answer.
#define SYN_LIFETIME 120000000000ULL
// How long a SYN without an answer is admitted again: TCP retransmits it after 1, 3, 7, 15 and 31 seconds.
#define READMISSION_TIME 35000000000ULL

enum side { CLIENT, SERVER };

// What the program waits for on a control connection. A pending command waits for its reply.
enum dialogue {
	READY,           // the next command, after the login
	COMMAND_PENDING, // the reply to a bypassable command
	PASV_PENDING,    // the reply to PASV
	EPSV_PENDING,    // the reply to EPSV
	PORT_PENDING,    // the reply to PORT or EPRT
	LOGIN_DUE,       // USER or PASS
	LOGIN_PENDING,   // the reply to USER or PASS
	GREETING_DUE,    // the server's greeting
	QUIT_PENDING,    // the reply to QUIT
	FIN_DUE,         // a FIN, after the reply to QUIT
	ABOR_PENDING,    // nothing: the engine reads the replies to ABOR, of which servers send one to three
};

// Indices of the map `counters`.
enum counter { INSPECTED, HANDED_BACK, OPENED, ADMITTED, RING_FULL, REWRITTEN, COUNTERS };

// An IPv6 address, or an IPv4 address as ::ffff:0:0/96 has it.
struct address {
	__be32 words[4];
};

// An address as FTP writes it. `protocol` is the digit of RFC 2428: 1 for IPv4, with full stops, and 2 for IPv6.
struct address_text {
	__u8 protocol, length;
	__u8 bytes[LONGEST_ADDRESS];
	__u8 pad;
};

// Source and destination of a control connection's packet, as it arrives at the interface.
struct packet_tuple {
	struct address source, destination;
	__be16 source_port, destination_port;
};

// The flow that a packet belongs to, and the side that sends the packet.
struct tuple_value {
	__u64 flow;
	__u32 side;
	__u32 pad;
};

// Source address, destination address and destination port of the SYN that a pinhole admits.
struct pinhole_key {
	struct address initiator, arrival;
	__be16 port;
	__u16 pad;
};

// A pinhole. It admits nothing if `flow` is 0, because then the daemon has reserved it, or if `deadline` has passed.
struct pinhole {
	__u64 flow;
	__u64 deadline;                            // in nanoseconds of bpf_ktime_get_ns()
	__u32 line;                                // number of the line that opened the pinhole
	__u32 mark;                                // packet mark of the admitted SYN
	__u32 interface;                           // index of the interface on which the initiator is
	__u32 elsewhere_port;                      // source port (__be16) of a SYN on another interface; 0: there was none
};

// What a SYN and its SYN-ACK have in common, whatever NAT translates: the port of the announced endpoint, and the SYN's
// sequence number.
struct syn_key {
	__be16 port;
	__u16 pad;
	__u32 seq;
};

// A SYN that a pinhole admitted, by which the program recognises its retransmission.
struct admitted_syn {
	__u64 flow;                                // flow of the pinhole; 0: the pinhole was one of the rules
	__u64 until;                               // end of the entry, in nanoseconds of bpf_ktime_get_ns()
	__u32 line;                                // number of the line that opened the pinhole
	__u32 mark;                                // packet mark of the SYN
	struct packet_tuple tuple;                 // tuple of the SYN
	__u32 answered;                            // 1: there was a SYN-ACK, so the kernel has not dropped the SYN
};

// A line as it arrived, by which the program recognises its retransmission. Bytes after its end are 0. For a FIN
// `length` is LONGEST_LINE + 1.
struct saved_line {
	__u32 seq, length;
	__u8 bytes[LONGEST_LINE];
};

// A control connection that the daemon handed over.
struct flow {
	struct bpf_spin_lock lock;
	__u32 handed_over;                         // 0: the daemon has the connection
	__u32 next_seq[2];                         // next sequence number of client and server
	__u32 line_count;                          // lines and FINs so far; the last one has this number
	__u32 dialogue;                            // enum dialogue
	struct address client, server;             // their own addresses, without NAT
	__be16 client_port, server_port;
	struct address_text own[2];                // texts of both addresses
	struct address_text announced[2];          // texts that a rewrite puts in their place; length 0: no rewrite
	struct address active_arrival, passive_arrival; // destination of a data connection's SYN, by mode
	struct address active_initiator, passive_initiator; // source of a data connection's SYN, by mode
	__u32 active_mark, passive_mark;           // packet mark of an admitted SYN, by mode
	__u32 inspected_mark;                      // packet mark of an inspected packet
	__u32 port_digits;                         // most digits in each number of a PORT's port; 0: no leading zeros
	__u32 adjusted;                            // 1: lines may change length, and packets are adjusted
	__u32 seq_offset[2];                       // sequence offset of client and server
	__u32 offset_since[2];                     // first sequence number to which the sequence offset applies
	__u32 pinhole_line;                        // number of the line that opened `pinhole`; 0: no line did
	__u16 first_client_port, last_client_port; // the ports that the client may announce
	__u64 pinhole_timeout;                     // in nanoseconds; 0: the program opens none
	struct pinhole_key pinhole;                // the pinhole that this flow opened last
	__u32 opening;                             // 1 while one processor opens a pinhole; the daemon writes 0
	__u32 interface[2];                        // indices of the interfaces on which client and server are
	struct saved_line last_line[2];            // last inspected line of client and server
};

// A record of the ring: one inspected line, or a FIN.
struct line_record {
	__u64 flow;
	__u64 at_ns;                               // bpf_ktime_get_ns()
	__u32 number;                              // `line_count` of the flow, with this line
	__u32 side;
	__u32 seq, ack;
	struct address client, server;
	__be16 client_port, server_port;
	__u16 length;
	__be16 window;
	__u8 opened_pinhole;                       // 1: the line opened a pinhole
	__u8 is_fin;                               // 1: a FIN, without a line
	__u8 port_digits;                          // `port_digits` of the flow, before this line
	__u8 pad;
	__u32 consumed_pinhole;                    // number of the line whose pinhole was found consumed; 0: none was
	__u8 bytes[LONGEST_LINE];                  // the line as it arrived, before any rewrite; 0 after its end
};

// The two directions of each control connection that was handed over.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct packet_tuple);
	__type(value, struct tuple_value);
} tuples SEC(".maps");

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
	__type(key, struct pinhole_key);
	__type(value, struct pinhole);
} pinholes SEC(".maps");

// The SYNs that were admitted. If there is no room, the kernel evicts entries that were not looked up for a long time.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct syn_key);
	__type(value, struct admitted_syn);
} admitted_syns SEC(".maps");

// The pinholes of the rules for which no SYN has come, each with its deadline (bpf_ktime_get_ns()). The daemon inserts
// a pinhole before the rules have it.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct pinhole_key);
	__type(value, __u64);
} rules_pinholes SEC(".maps");

// A bitmap of ports, 32 in a word. The program opens no pinhole at a port whose bit is set.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, __u32);
} barred_ports SEC(".maps");

// A bitmap of ports, 32 in a word. A bit is set if a connection to a server at that port was handed over. The program
// looks up no other packets in `tuples`, because the lookup costs more than this test.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, __u32);
} control_ports SEC(".maps");

// When the daemon's heartbeat ends (bpf_ktime_get_ns()). After that nobody reads the lines, and no pinhole is opened. The
// second element is the program's version, by which a daemon knows whether an attached program is its own.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} heartbeat SEC(".maps");

// A SYN that was admitted before this (bpf_ktime_get_ns()) is not admitted again: the policy may forbid it now, or its
// mark may name another translation.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} readmission_start SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

// Whether the bit of `port` is set in a bitmap. If the word cannot be read it counts as set: then no pinhole is
// opened at the port, or the packet is looked up.
static __always_inline int has_port(void *map, __u32 port)
{
	__u32 word = port / 32, *bits = bpf_map_lookup_elem(map, &word);

	return !bits || *bits >> (port % 32) & 1;
}

static __always_inline int is_ipv4(const struct address *address)
{
	return !(address->words[0] | address->words[1] | (address->words[2] ^ bpf_htonl(0xffff)));
}

// Whether both have the same words, without a branch for each. `words` must be a constant.
static __always_inline int are_same(const void *a, const void *b, __u32 words)
{
	__u32 differs = 0;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		differs |= ((const __u32 *)a)[i] ^ ((const __u32 *)b)[i];
	return !differs;
}

static __always_inline void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		++*value;
}
