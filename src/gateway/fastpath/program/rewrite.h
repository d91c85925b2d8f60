// Writes another address into a PORT, an EPRT or a 227.
//
// Must write what `Announcement::rewritten` of ftp-alg-core writes: the daemon goes on from here.
#pragma once

// The longest rest of a line, behind what it announces, that may move.
#define REST 16

// From the even byte before it, "(255,255,255,255,255,255" and the rest that may move.
#define PART 48

// The part of a line that is written anew. Where the line changes its length that is all of its rest.
struct text {
	__u32 base;   // where it starts in the line; even, because the checksum counts pairs
	__u32 growth; // by how much the line is longer
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

// Writes four numbers with a separator behind each. Returns where the last separator ends.
__noinline __u32 put_address(struct text *text, __u32 at, __u32 address, __u32 separator)
{
	__u32 i;

	if (!text)
		return 0;
	for (i = 0; i < 4; i++) {
		at = put_number(text, at, address >> 24, 1);
		put(text, at++, i == 3 && separator == '.' ? '|' : separator);
		address <<= 8;
	}
	return at;
}

static __always_inline __u32 length_of_address(__u32 address)
{
	return digits_of(address >> 24) + digits_of(address >> 16 & 255) + digits_of(address >> 8 & 255) +
	       digits_of(address & 255) + 4;
}

// Begins with the part of the line around `start`, up to `end`; zeros stand behind.
static __always_inline void copy_part(struct text *text, const struct step *line, __u32 start, __u32 end)
{
	__u32 base = start & (LINE - 2), i;

	if (base > LINE - PART)
		base = LINE - PART;
	text->base = base;
	for (i = 0; i < PART; i++) {
		__u32 is_before = (base + i - end) >> 31; // no branch, as in is_same

		asm volatile("" : "+r"(is_before));
		text->bytes[i] = line->bytes[base + i] * is_before;
	}
}

// With how many digits the two numbers of a port fill so many bytes: those of the first, and of the second from bit 8. Zeros fill up
// the second one first. 0 if they cannot.
__noinline __u32 widths_of_port(__u32 port, __u32 room, __u32 digits)
{
	__u32 high = digits_of(port >> 8 & 255), low = digits_of(port & 255), zeros, more;

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

// 0 if the line cannot keep its length.
__noinline int rewrite_port(struct text *text, const struct step *line, const struct endpoint *endpoint,
			    __u32 address, __u32 digits)
{
	__u32 at, own, room, widths;

	if (!text || !line || !endpoint || !digits)
		return 0;
	if (digits > MOST_DIGITS)
		digits = MOST_DIGITS;
	copy_part(text, line, endpoint->start, LINE);
	own = length_of_address(address) + 1;
	room = endpoint->end - endpoint->start;
	if (own > room)
		return 0;
	widths = widths_of_port(endpoint->port, room - own, digits);
	if (!widths)
		return 0;
	at = put_address(text, endpoint->start, address, ',');
	at = put_number(text, at, endpoint->port >> 8, widths & 255);
	put(text, at++, ',');
	at = put_number(text, at, endpoint->port, widths >> 8);
	return at == endpoint->end;
}

// Blanks before the parenthesis fill up. 0 if the line cannot keep its length.
__noinline int rewrite_227(struct text *text, const struct step *line, const struct endpoint *endpoint, __u32 address)
{
	__u32 at, own, room, blanks, i;

	if (!text || !line || !endpoint)
		return 0;
	copy_part(text, line, endpoint->start, LINE);
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
	at = put_address(text, at, address, ',');
	at = put_number(text, at, endpoint->port >> 8, 1);
	put(text, at++, ',');
	at = put_number(text, at, endpoint->port, 1);
	return at == endpoint->end;
}

// Writes the port of an EPRT. Returns where it ends.
static __always_inline __u32 put_port(struct text *text, __u32 at, __u32 port)
{
	__u32 place;

	for (place = 10000; place > 0; place /= 10)
		if (port >= place)
			put(text, at++, '0' + port / place % 10);
	return at;
}

// Writes what is announced as short as it can be, and the rest of the line behind it. 0 if that is too long, or the line then.
__noinline int rewrite_and_move(struct text *text, const struct step *line, const struct endpoint *endpoint,
				__u32 address, __u32 is_eprt)
{
	__u32 at, i, length;

	if (!text || !line || !endpoint)
		return 0;
	length = line->length;
	at = endpoint->start;
	copy_part(text, line, at, at);
	if (byte_at(line, at) == '(')
		put(text, at++, '(');
	at = put_address(text, at, address, is_eprt ? '.' : ',');
	if (is_eprt) {
		at = put_port(text, at, endpoint->port);
	} else {
		at = put_number(text, at, endpoint->port >> 8, 1);
		put(text, at++, ',');
		at = put_number(text, at, endpoint->port, 1);
	}
	for (i = 0; i < REST && endpoint->end + i < length; i++)
		put(text, at++, byte_at(line, endpoint->end + i));
	text->growth = at - length;
	return endpoint->end + i == length && at <= LINE;
}

// Writes another address, in the line's own length if it can. 0 if the line is the engine's.
static __always_inline int rewrite(struct text *text, const struct step *line, const struct endpoint *endpoint,
				   __u32 kind, __u32 address, __u32 digits)
{
	if (kind == PORT && rewrite_port(text, line, endpoint, address, digits))
		return 1;
	if (kind == REPLY_227 && rewrite_227(text, line, endpoint, address))
		return 1;
	return rewrite_and_move(text, line, endpoint, address, kind == EPRT);
}

// The packet has another length from now on, and its headers say so.
static __always_inline int change_length(struct __sk_buff *skb, const struct packet *packet, __u32 growth)
{
	__u32 before = packet->at - ETHERNET + packet->length, now = before + growth;
	__be16 total = bpf_htons(now);

	return bpf_skb_change_tail(skb, ETHERNET + now, 0) || bpf_skb_store_bytes(skb, ETHERNET + 2, &total, 2, 0) ||
	       bpf_l3_csum_replace(skb, ETHERNET + 10, bpf_htons(before), total, 2) ||
	       bpf_l4_csum_replace(skb, CHECKSUM, bpf_htons(before - 20), bpf_htons(now - 20), BPF_F_PSEUDO_HDR | 2);
}

// Puts the new text into the packet, which the caller has made writable. This fails only where its line grows and there is no memory.
static __always_inline int store_text(struct __sk_buff *skb, const struct packet *packet, struct step *line, struct text *text)
{
	__u32 base = text->base, length = packet->length + text->growth - base;
	__s64 difference;

	asm volatile("" : "+r"(base));
	if (base > LINE - PART)
		return -1;
	if (text->growth && change_length(skb, packet, text->growth))
		return -1;
	difference = bpf_csum_diff((__be32 *)(line->bytes + base), PART, (__be32 *)text->bytes, PART, 0);
	length--;
	asm volatile("" : "+r"(length));
	if (length >= PART)
		length = PART - 1;
	return bpf_skb_store_bytes(skb, packet->at + base, text->bytes, length + 1, 0) ||
	       bpf_l4_csum_replace(skb, CHECKSUM, 0, difference, 0);
}
