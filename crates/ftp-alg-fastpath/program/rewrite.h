// Rewrites a PORT, an EPRT or a 227: puts another address into it.
//
// The result must be what `Announcement::edit` of ftp-alg-core writes, because the engine continues the session with the
// line that it would have written itself. The tests `a_port_command_is_rewritten_as_the_engine_does` and
// `an_eprt_is_rewritten_as_the_engine_does` compare both.
#pragma once

// The most bytes after an announcement that the program moves, if the line changes its length.
#define LONGEST_TAIL 16

// Room for one byte before the announcement, for "(255,255,255,255,255,255", and for the tail; or for the longest IPv6
// address with its port and the end of its line.
#define PART 48

// The part of the line that the rewrite replaces. If the line changes its length, the part extends to the end of the
// line.
struct rewrite {
	__u32 base;   // index in the line at which the part starts; even, because the checksum sums pairs of bytes
	__u32 growth; // number of bytes that the rewrite adds to the line; a negative one wraps around
	__u8 bytes[PART];
};

// Writes a byte. `at` is its index in the line.
static __always_inline void put(struct rewrite *rewrite, __u32 at, __u8 byte)
{
	at -= rewrite->base;
	asm volatile("" : "+r"(at));
	if (at < PART)
		rewrite->bytes[at] = byte;
}

static __always_inline __u32 digit_count(__u32 number)
{
	return number > 99 ? 3 : number > 9 ? 2 : 1;
}

// Writes a number up to 255, with leading zeros up to `digits` digits. Returns the index after it.
__noinline __u32 put_number(struct rewrite *rewrite, __u32 at, __u32 number, __u32 digits)
{
	__u32 width;

	if (!rewrite)
		return 0;
	number &= 255;
	width = digit_count(number);
	if (digits > width)
		width = digits;
	if (width > 3)
		put(rewrite, at++, '0');
	if (width > 2)
		put(rewrite, at++, '0' + number / 100);
	if (width > 1)
		put(rewrite, at++, '0' + number / 10 % 10);
	put(rewrite, at++, '0' + number % 10);
	return at;
}

// Writes an address, with `separator` for its full stops and after it, where an EPRT has `|`. Returns the index after it.
__noinline __u32 put_address(struct rewrite *rewrite, __u32 at, const struct address_text *address, __u32 separator)
{
	__u32 i;

	if (!rewrite || !address)
		return 0;
	for (i = 0; i < LONGEST_ADDRESS && i < address->length; i++)
		put(rewrite, at++, separated(address->bytes[i], separator));
	put(rewrite, at++, separator == '.' ? '|' : separator);
	return at;
}

// Copies the part of the line that has `start` in it, up to `end`. The bytes of the part from `end` on become 0.
static __always_inline void copy_part(struct rewrite *rewrite, const struct line_record *line, __u32 start, __u32 end)
{
	__u32 base = start & (LONGEST_LINE - 2), i;

	if (base > LONGEST_LINE - PART)
		base = LONGEST_LINE - PART;
	rewrite->base = base;
	for (i = 0; i < PART; i++) {
		__u32 is_before = (base + i - end) >> 31; // without a branch, as in is_equal

		asm volatile("" : "+r"(is_before));
		rewrite->bytes[i] = line->bytes[base + i] * is_before;
	}
}

// Finds with how many digits the two numbers of a port fill `room` bytes. Leading zeros go to the second number
// first. Returns the digits of the first number, and those of the second from bit 8 on; or 0 if the numbers cannot
// fill the room.
__noinline __u32 port_digit_counts(__u32 port, __u32 room, __u32 digits)
{
	__u32 high = digit_count(port >> 8 & 255), low = digit_count(port & 255), zeros, more;

	if (high + low > room)
		return 0;
	zeros = room - high - low;
	more = digits > low ? digits - low : 0;
	if (more > zeros)
		more = zeros;
	low += more;
	zeros -= more;
	high += zeros;
	if (zeros && high > digits)
		return 0;
	return low << 8 | high;
}

// Rewrites a PORT so that it keeps its length, by leading zeros. Returns 0 if it cannot.
__noinline int rewrite_port(struct rewrite *rewrite, const struct line_record *line,
			    const struct announcement *announcement, const struct address_text *address, __u32 digits)
{
	__u32 at, shortest, room, counts;

	if (!rewrite || !line || !announcement || !address || !digits)
		return 0;
	if (digits > MAX_PORT_DIGITS)
		digits = MAX_PORT_DIGITS;
	copy_part(rewrite, line, announcement->start, LONGEST_LINE);
	shortest = address->length + 2; // with two commas
	room = announcement->end - announcement->start;
	if (shortest > room)
		return 0;
	counts = port_digit_counts(announcement->port, room - shortest, digits);
	if (!counts)
		return 0;
	at = put_address(rewrite, announcement->start, address, ',');
	at = put_number(rewrite, at, announcement->port >> 8, counts & 255);
	put(rewrite, at++, ',');
	at = put_number(rewrite, at, announcement->port, counts >> 8);
	return at == announcement->end;
}

// Rewrites a 227 so that it keeps its length, by blanks before the parenthesis. Returns 0 if it cannot.
__noinline int rewrite_227(struct rewrite *rewrite, const struct line_record *line,
			   const struct announcement *announcement, const struct address_text *address)
{
	__u32 at, shortest, room, blanks, i;

	if (!rewrite || !line || !announcement || !address)
		return 0;
	copy_part(rewrite, line, announcement->start, LONGEST_LINE);
	shortest = 1 + address->length + 1 + digit_count(announcement->port >> 8 & 255) + 1 +
		   digit_count(announcement->port & 255);
	room = announcement->end - announcement->start;
	if (shortest > room)
		return 0;
	blanks = room - shortest;
	at = announcement->start;
	// An address has at most 8 bytes more than another: "255,255,255,255" and "0,0,0,0".
	for (i = 0; i < 8 && i < blanks; i++)
		put(rewrite, at++, ' ');
	put(rewrite, at++, '(');
	at = put_address(rewrite, at, address, ',');
	at = put_number(rewrite, at, announcement->port >> 8, 1);
	put(rewrite, at++, ',');
	at = put_number(rewrite, at, announcement->port, 1);
	return at == announcement->end;
}

// Writes the port of an EPRT. Returns the index after it.
static __always_inline __u32 put_port(struct rewrite *rewrite, __u32 at, __u32 port)
{
	__u32 unit;

	for (unit = 10000; unit > 0; unit /= 10)
		if (port >= unit)
			put(rewrite, at++, '0' + port / unit % 10);
	return at;
}

// Rewrites the announcement in its shortest form, and moves the tail of the line. Returns 0 if the tail or the new
// line is too long.
__noinline int rewrite_with_growth(struct rewrite *rewrite, const struct line_record *line,
				   const struct announcement *announcement, const struct address_text *address,
				   __u32 is_eprt)
{
	__u32 at, i, length;

	if (!rewrite || !line || !announcement || !address)
		return 0;
	length = line->length;
	at = announcement->start;
	copy_part(rewrite, line, at, at);
	if (byte_at(line, at) == '(')
		put(rewrite, at++, '(');
	at = put_address(rewrite, at, address, is_eprt ? '.' : ',');
	if (is_eprt) {
		at = put_port(rewrite, at, announcement->port);
	} else {
		at = put_number(rewrite, at, announcement->port >> 8, 1);
		put(rewrite, at++, ',');
		at = put_number(rewrite, at, announcement->port, 1);
	}
	for (i = 0; i < LONGEST_TAIL && announcement->end + i < length; i++)
		put(rewrite, at++, byte_at(line, announcement->end + i));
	rewrite->growth = at - length;
	return announcement->end + i == length && at <= LONGEST_LINE;
}

// Rewrites the line, in its own length if possible. Returns 0 if the engine has to rewrite it.
static __always_inline int rewrite_line(struct rewrite *rewrite, const struct line_record *line,
					const struct announcement *announcement, __u32 kind,
					const struct address_text *address, __u32 digits)
{
	if (kind == COMMAND_PORT && rewrite_port(rewrite, line, announcement, address, digits))
		return 1;
	if (kind == REPLY_227 && rewrite_227(rewrite, line, announcement, address))
		return 1;
	return rewrite_with_growth(rewrite, line, announcement, address, kind == COMMAND_EPRT);
}

// Changes the length of the packet, in its headers as well. Returns 0 if that succeeds.
static __always_inline int change_length(struct __sk_buff *skb, const struct packet *packet, __u32 growth)
{
	__u32 old = packet->payload_offset - packet->tcp + packet->payload_length, new = old + growth;
	int is_v4 = is_ipv4(&packet->tuple.source);
	__u32 header = is_v4 ? 20 : 0; // what the length in the IP header counts before the TCP header
	__be16 total = bpf_htons(header + new);

	return bpf_skb_change_tail(skb, packet->tcp + new, 0) ||
	       bpf_skb_store_bytes(skb, packet->ip + (is_v4 ? 2 : 4), &total, 2, 0) ||
	       (is_v4 && bpf_l3_csum_replace(skb, packet->ip + 10, bpf_htons(header + old), total, 2)) ||
	       bpf_l4_csum_replace(skb, checksum_offset(packet), bpf_htons(old), bpf_htons(new), BPF_F_PSEUDO_HDR | 2);
}

// Writes the rewritten part into the packet, which the caller must have made writable. Returns 0 if that succeeds. It
// fails only if the line grows and the kernel has no memory.
static __always_inline int store_rewrite(struct __sk_buff *skb, const struct packet *packet, struct line_record *line,
					 struct rewrite *rewrite)
{
	__u32 base = rewrite->base, length = packet->payload_length + rewrite->growth - base;
	__s64 difference;

	asm volatile("" : "+r"(base));
	if (base > LONGEST_LINE - PART)
		return -1;
	if (rewrite->growth && change_length(skb, packet, rewrite->growth))
		return -1;
	difference = bpf_csum_diff((__be32 *)(line->bytes + base), PART, (__be32 *)rewrite->bytes, PART, 0);
	length--;
	asm volatile("" : "+r"(length));
	if (length >= PART)
		length = PART - 1;
	return bpf_skb_store_bytes(skb, packet->payload_offset + base, rewrite->bytes, length + 1, 0) ||
	       bpf_l4_csum_replace(skb, checksum_offset(packet), 0, difference, 0);
}
