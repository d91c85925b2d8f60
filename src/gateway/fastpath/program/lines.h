// Reads a line: what it is, and the endpoint that it announces.
//
// The functions are global: the verifier then reads each once, whoever calls it. They take the line from the record
// of the ring, where 0 stands behind it.
#pragma once

// What a line is. UNKNOWN: the engine reads it.
enum kind {
	UNKNOWN,
	COMMAND,       // one that announces nothing
	ASKS_PASV,
	ASKS_EPSV,
	PORT,
	EPRT,
	LOGS_IN,       // USER or PASS
	PRELIMINARY,   // 1xx
	COMPLETION,    // 2xx
	OTHER_REPLY,   // 3xx to 5xx
	REPLY_227,
	REPLY_229,
	ASKS_PASSWORD, // 331
	LOGGED_IN,     // 230
	GREETS,        // 220
	GREETS_KNOWN,  // the same, of a server of a well-known name
	ENDS,          // no line: a FIN
};

// The endpoint that a line announces.
struct endpoint {
	__u32 address; // of this machine's byte order; none in a 229
	__u32 port;
	__u32 start;   // of the text that names it: of the first number, in a 227 of the parenthesis
	__u32 end;     // behind the last number
};

#define WORD(a, b, c, d) ((__u32)(a) << 24 | (__u32)(b) << 16 | (__u32)(c) << 8 | (__u32)(d))
// Takes letters in capitals. No other byte becomes a letter.
#define CAPITALS 0xdfdfdfdf

static __always_inline __u8 byte_at(const struct step *line, __u32 at)
{
	// The compiler may know the bound and drop the test; the verifier does not.
	asm volatile("" : "+r"(at));
	return at < LINE ? line->bytes[at] : 0;
}

// Each byte of a word the same.
#define EACH(byte) ((__u64)(byte) * 0x0101010101010101)

// Whether all of eight bytes are printable ASCII. Of the lowest byte that is not, its highest bit is set in one of the three.
static __always_inline int are_printable(__u64 bytes)
{
	return !(((bytes - EACH(' ')) | (bytes + EACH(0x7f - '~')) | bytes) & EACH(0x80));
}

// Whether the line is printable ASCII and one CR LF.
__noinline int is_whole_line(const struct step *line, __u32 length)
{
	__u32 at, words;

	if (!line || length < 2 || length > LINE)
		return 0;
	words = (length - 2) / 8;
	for (at = 0; at < LINE / 8 - 1 && at < words; at++)
		if (!are_printable(((const __u64 *)line->bytes)[at]))
			return 0;
	for (at = words * 8; at < length - 2; at++) {
		__u8 byte = byte_at(line, at);

		if (byte < ' ' || byte > '~')
			return 0;
	}
	return byte_at(line, length - 2) == '\r' && byte_at(line, length - 1) == '\n';
}

// Reads the number at `at`, without a zero before it: value, and digits from bit 24. 0 if there is none.
__noinline __u32 number_at(const struct step *line, __u32 at, __u32 most)
{
	__u32 value = 0, i;

	if (!line)
		return 0;
	for (i = 0; i < 6; i++) {
		__u32 digit = byte_at(line, at + i) - '0';

		if (digit > 9)
			break;
		value = value * 10 + digit;
	}
	if (!i || i > most || (i > 1 && byte_at(line, at) == '0'))
		return 0;
	return i << 24 | (value & 0xffffff);
}
#define VALUE(number) ((number) & 0xffffff)
#define DIGITS(number) ((number) >> 24)

// Reads four numbers between separators. Returns where the last one ends, or 0.
__noinline __u32 address_at(const struct step *line, __u32 at, __u32 separator, struct endpoint *endpoint)
{
	__u32 address = 0, i;

	if (!line || !endpoint)
		return 0;
	for (i = 0; i < 4; i++) {
		__u32 number = number_at(line, at, 3);

		if (!number || VALUE(number) > 255)
			return 0;
		address = address << 8 | VALUE(number);
		at += DIGITS(number);
		if (i < 3 && byte_at(line, at++) != separator)
			return 0;
	}
	endpoint->address = address;
	return at;
}

// Reads h1,h2,h3,h4,p1,p2. Returns where it ends, or 0.
__noinline __u32 host_port_at(const struct step *line, __u32 at, struct endpoint *endpoint)
{
	__u32 high, low;

	if (!line || !endpoint)
		return 0;
	at = address_at(line, at, ',', endpoint);
	if (!at || byte_at(line, at++) != ',')
		return 0;
	high = number_at(line, at, 3);
	at += DIGITS(high);
	if (!high || VALUE(high) > 255 || byte_at(line, at++) != ',')
		return 0;
	low = number_at(line, at, 3);
	if (!low || VALUE(low) > 255)
		return 0;
	endpoint->port = VALUE(high) << 8 | VALUE(low);
	return at + DIGITS(low);
}

// Reads a port and the delimiter behind it. Returns where the port ends, or 0.
__noinline __u32 port_at(const struct step *line, __u32 at, struct endpoint *endpoint)
{
	__u32 number;

	if (!line || !endpoint)
		return 0;
	number = number_at(line, at, 5);
	at += DIGITS(number);
	if (!number || VALUE(number) > 65535 || byte_at(line, at) != '|')
		return 0;
	endpoint->port = VALUE(number);
	return at;
}

// 1 if both bytes are the same, else 0. Without a branch: the verifier would follow each combination of those in a loop.
static __always_inline __u32 is_same(__u32 byte, __u32 other)
{
	__u32 same = ((byte ^ other) - 1) >> 31;

	asm volatile("" : "+r"(same));
	return same;
}

// Finds the only opening parenthesis of a reply. 0 if there is none, or two, or a digit before it: others could
// read another announcement than this program.
__noinline __u32 parenthesis(const struct step *line, __u32 length)
{
	__u32 at, found = 0, count = 0, digits = 0;

	if (!line)
		return 0;
	for (at = 4; at < LINE && at < length; at++) {
		__u32 byte = line->bytes[at], opens = is_same(byte, '(');
		__u32 is_digit = (byte - '0' - 10) >> 31 & ~(byte - '0') >> 31;

		asm volatile("" : "+r"(is_digit));
		count += opens;
		found += opens * at;
		digits += is_digit & is_same(count, 0);
	}
	return count == 1 && !digits ? found : 0;
}

static __always_inline __u32 word_at(const struct step *line, __u32 at)
{
	return bpf_ntohl(*(const __be32 *)(line->bytes + at));
}

// Commands that announce nothing and change nobody's rights. RFC 959, 2389 and 3659.
static __always_inline int is_plain_command(__u32 word)
{
	switch (word) {
	case WORD('N', 'O', 'O', 'P'):
	case WORD('C', 'D', 'U', 'P'):
	case WORD('T', 'Y', 'P', 'E'):
	case WORD('S', 'I', 'Z', 'E'):
	case WORD('M', 'D', 'T', 'M'):
	case WORD('R', 'E', 'S', 'T'):
	case WORD('R', 'E', 'T', 'R'):
	case WORD('S', 'T', 'O', 'R'):
	case WORD('A', 'P', 'P', 'E'):
	case WORD('L', 'I', 'S', 'T'):
	case WORD('N', 'L', 'S', 'T'):
	case WORD('M', 'L', 'S', 'D'):
	case WORD('D', 'E', 'L', 'E'):
	case WORD('R', 'N', 'F', 'R'):
	case WORD('R', 'N', 'T', 'O'):
	case WORD('S', 'Y', 'S', 'T'):
	case WORD('Q', 'U', 'I', 'T'):
		return 1;
	}
	return 0;
}

static __always_inline int is_plain_command_of_three(__u32 letters)
{
	switch (letters) {
	case WORD(0, 'P', 'W', 'D'):
	case WORD(0, 'C', 'W', 'D'):
	case WORD(0, 'M', 'K', 'D'):
	case WORD(0, 'R', 'M', 'D'):
		return 1;
	}
	return 0;
}

// Whether the argument has no blank: `USER / HTTP/1.1` is no FTP.
__noinline int is_one_word(const struct step *line, __u32 at)
{
	if (!line)
		return 0;
	for (; at < LINE; at++)
		if (line->bytes[at] == ' ')
			return 0;
	return 1;
}

// Whether it may be `METHOD target HTTP/1.1` or its like, whose sender the engine takes for no client of FTP: three words,
// the last one with a slash and a digit at its end.
__noinline int is_request_line(const struct step *line, __u32 length)
{
	__u32 at, blanks = 0, slash = 0;
	__u8 last = 0;

	if (!line || length > LINE)
		return 0;
	last = byte_at(line, length - 3);
	if (last < '0' || last > '9')
		return 0;
	for (at = 3; at < LINE; at++) {
		__u32 byte = line->bytes[at], is_blank = is_same(byte, ' ');

		blanks += is_blank;
		slash = (slash | is_same(byte, '/')) & (is_blank - 1);
	}
	return blanks == 2 && slash;
}

__noinline __u32 read_command(const struct step *line, __u32 length, struct endpoint *endpoint)
{
	__u32 word, at;
	__u8 behind;

	if (!line || !endpoint)
		return UNKNOWN;
	word = word_at(line, 0) & CAPITALS;
	behind = line->bytes[4];
	if (is_plain_command(word))
		return behind == '\r' || (behind == ' ' && !is_request_line(line, length)) ? COMMAND : UNKNOWN;
	behind = line->bytes[3];
	if (is_plain_command_of_three(word >> 8))
		return behind == '\r' || (behind == ' ' && !is_request_line(line, length)) ? COMMAND : UNKNOWN;
	if (word == WORD('P', 'A', 'S', 'V'))
		return length == 6 ? ASKS_PASV : UNKNOWN;
	if (word == WORD('E', 'P', 'S', 'V'))
		return length == 6 ? ASKS_EPSV : UNKNOWN;
	if (line->bytes[4] != ' ')
		return UNKNOWN;
	if (word == WORD('U', 'S', 'E', 'R') || word == WORD('P', 'A', 'S', 'S'))
		return is_one_word(line, 5) ? LOGS_IN : UNKNOWN;
	if (word == WORD('P', 'O', 'R', 'T')) {
		endpoint->start = 5;
		endpoint->end = at = host_port_at(line, 5, endpoint);
		return at && at + 2 == length ? PORT : UNKNOWN;
	}
	if (word == WORD('E', 'P', 'R', 'T')) {
		if (line->bytes[5] != '|' || line->bytes[6] != '1' || line->bytes[7] != '|')
			return UNKNOWN;
		endpoint->start = 8;
		at = address_at(line, 8, '.', endpoint);
		if (!at || byte_at(line, at) != '|')
			return UNKNOWN;
		endpoint->end = at = port_at(line, at + 1, endpoint);
		return at && at + 3 == length ? EPRT : UNKNOWN;
	}
	return UNKNOWN;
}

// Whether it is the greeting of a server that takes four digits, as `is_well_known` of ftp-alg-core has them. Pure-FTPd's
// has several lines.
static __always_inline int is_well_known(const struct step *line)
{
	__u32 first = word_at(line, 4), second = word_at(line, 8), third = word_at(line, 12), fourth = word_at(line, 16);

	return (first == WORD('(', 'v', 's', 'F') && second == WORD('T', 'P', 'd', ' ')) ||
	       (first == WORD('P', 'r', 'o', 'F') && second == WORD('T', 'P', 'D', ' ')) ||
	       (first == WORD('p', 'y', 'f', 't') && second == WORD('p', 'd', 'l', 'i') && third >> 16 == ('b' << 8 | ' ')) ||
	       (first == WORD('F', 'i', 'l', 'e') && second == WORD('Z', 'i', 'l', 'l') && third == WORD('a', ' ', 'S', 'e') &&
		fourth == WORD('r', 'v', 'e', 'r'));
}

__noinline __u32 read_reply(const struct step *line, struct endpoint *endpoint)
{
	__u32 hundreds, code, at;

	if (!line || !endpoint)
		return UNKNOWN;
	hundreds = line->bytes[0] - '0';
	code = line->bytes[1] - '0';
	at = line->bytes[2] - '0';
	if (hundreds < 1 || hundreds > 5 || code > 9 || at > 9 || line->bytes[3] != ' ')
		return UNKNOWN;
	code = hundreds * 100 + code * 10 + at;
	if (code == 230)
		return LOGGED_IN;
	if (code == 331)
		return ASKS_PASSWORD;
	if (code == 220)
		return is_well_known(line) ? GREETS_KNOWN : GREETS;
	// 120 waits for the server. 228, 232 and 332 are of the login, 421 ends the session, and a 257 quotes a name.
	if (code == 120 || code == 228 || code == 257 || (code >= 230 && code <= 239) || (code >= 331 && code <= 339) || code == 421)
		return UNKNOWN;
	if (code != 227 && code != 229)
		return hundreds == 1 ? PRELIMINARY : hundreds == 2 ? COMPLETION : OTHER_REPLY;
	at = parenthesis(line, line->length);
	if (!at)
		return UNKNOWN;
	endpoint->start = at;
	if (code == 227) {
		endpoint->end = at = host_port_at(line, at + 1, endpoint);
		return at && byte_at(line, at) == ')' ? REPLY_227 : UNKNOWN;
	}
	if (byte_at(line, at + 1) != '|' || byte_at(line, at + 2) != '|' || byte_at(line, at + 3) != '|')
		return UNKNOWN;
	endpoint->end = at = port_at(line, at + 4, endpoint);
	return at && byte_at(line, at + 1) == ')' ? REPLY_229 : UNKNOWN;
}
