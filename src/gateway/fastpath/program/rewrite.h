// Writes another address into a PORT or a 227 without changing the line's length.
//
// Must write what `Announcement::rewritten` of ftp-alg-core writes: the daemon goes on from here.
#pragma once

// The longest announcement from the even byte before it: "(255,255,255,255,255,255" and one byte.
#define PART 32

// The part of a line that is written anew.
struct text {
	__u32 base; // where it starts in the line; even, because the checksum counts pairs
	__u8 bytes[PART];
};

// Places are those of the line.
static __always_inline void put(struct text *text, __u32 at, __u8 byte)
{
	at -= text->base;
	asm volatile("" : "+r"(at));
	if (at < PART)
		text->bytes[at] = byte;
}

static __always_inline __u32 digits_of(__u32 number)
{
	return number > 99 ? 3 : number > 9 ? 2 : 1;
}

// Writes a number up to 255 with at least so many digits. Returns where it ends.
__noinline __u32 put_number(struct text *text, __u32 at, __u32 number, __u32 digits)
{
	__u32 width;

	if (!text)
		return 0;
	number &= 255;
	width = digits_of(number);
	if (digits > width)
		width = digits;
	if (width > 3)
		put(text, at++, '0');
	if (width > 2)
		put(text, at++, '0' + number / 100);
	if (width > 1)
		put(text, at++, '0' + number / 10 % 10);
	put(text, at++, '0' + number % 10);
	return at;
}

// Writes four numbers with a comma behind each. Returns where the last comma ends.
__noinline __u32 put_address(struct text *text, __u32 at, __u32 address)
{
	__u32 i;

	if (!text)
		return 0;
	for (i = 0; i < 4; i++) {
		at = put_number(text, at, address >> 24, 1);
		put(text, at++, ',');
		address <<= 8;
	}
	return at;
}

static __always_inline __u32 length_of_address(__u32 address)
{
	return digits_of(address >> 24) + digits_of(address >> 16 & 255) + digits_of(address >> 8 & 255) +
	       digits_of(address & 255) + 4;
}

static __always_inline void copy_part(struct text *text, const struct step *line, __u32 start)
{
	__u32 i;

	start &= LINE - 2;
	text->base = start < LINE - PART ? start : LINE - PART;
	for (i = 0; i < PART; i++)
		text->bytes[i] = byte_at(line, text->base + i);
}

// Zeros fill up the second number of the port first, then the first one. 0 if the line cannot keep its length.
__noinline int rewrite_port(struct text *text, const struct step *line, const struct endpoint *endpoint,
			    __u32 address, __u32 digits)
{
	__u32 at, high, low, own, room, zeros, more;

	if (!text || !line || !endpoint || !digits)
		return 0;
	if (digits > 4)
		digits = 4;
	copy_part(text, line, endpoint->start);
	high = digits_of(endpoint->port >> 8 & 255);
	low = digits_of(endpoint->port & 255);
	own = length_of_address(address) + high + 1 + low;
	room = endpoint->end - endpoint->start;
	if (own > room)
		return 0;
	zeros = room - own;
	more = digits > low ? digits - low : 0;
	if (more > zeros)
		more = zeros;
	low += more;
	zeros -= more;
	if (zeros) {
		high += zeros;
		if (high > digits)
			return 0;
	}
	at = put_address(text, endpoint->start, address);
	at = put_number(text, at, endpoint->port >> 8, high);
	put(text, at++, ',');
	at = put_number(text, at, endpoint->port, low);
	return at == endpoint->end;
}

// Blanks before the parenthesis fill up. 0 if the line cannot keep its length.
__noinline int rewrite_227(struct text *text, const struct step *line, const struct endpoint *endpoint, __u32 address)
{
	__u32 at, own, room, blanks, i;

	if (!text || !line || !endpoint)
		return 0;
	copy_part(text, line, endpoint->start);
	own = 1 + length_of_address(address) + digits_of(endpoint->port >> 8 & 255) + 1 + digits_of(endpoint->port & 255);
	room = endpoint->end - endpoint->start;
	if (own > room)
		return 0;
	blanks = room - own;
	at = endpoint->start;
	// From "255,255,255,255" to "0,0,0,0".
	for (i = 0; i < 8 && i < blanks; i++)
		put(text, at++, ' ');
	put(text, at++, '(');
	at = put_address(text, at, address);
	at = put_number(text, at, endpoint->port >> 8, 1);
	put(text, at++, ',');
	at = put_number(text, at, endpoint->port, 1);
	return at == endpoint->end;
}

// Puts the new text into the packet, whose line starts at `at`. The caller has made the packet writable, so this
// does not fail.
static __always_inline int store_text(struct __sk_buff *skb, __u32 at, __u32 end, struct step *line, struct text *text)
{
	__u32 base = text->base, length = end - base - 1;
	__s64 difference;

	asm volatile("" : "+r"(base), "+r"(length));
	if (base > LINE - PART || length >= PART)
		return -1;
	difference = bpf_csum_diff((__be32 *)(line->bytes + base), PART, (__be32 *)text->bytes, PART, 0);
	return bpf_skb_store_bytes(skb, at + base, text->bytes, length + 1, 0) ||
	       bpf_l4_csum_replace(skb, CHECKSUM, 0, difference, 0);
}
