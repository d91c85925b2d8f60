// Reads a line: its kind, and the endpoint that it announces. `tests/kernel/fastpath/walk.rs` compares it with a model.
//
// The larger functions are global (`__noinline`), because then the verifier reads each of them only once. All functions
// read the line from its record in the ring, where all bytes after the line are 0.
#pragma once

enum kind {
	NOT_BYPASSABLE,         // any line that the engine has to read
	COMMAND_BYPASSABLE,     // a command that announces nothing
	COMMAND_PASV,
	COMMAND_EPSV,
	COMMAND_PORT,
	COMMAND_EPRT,
	COMMAND_LOGIN,          // USER or PASS
	COMMAND_QUIT,
	COMMAND_ABOR,
	REPLY_PRELIMINARY,      // 1xx
	REPLY_COMPLETION,       // 2xx
	REPLY_OTHER,            // 3xx to 5xx
	REPLY_227,
	REPLY_229,
	REPLY_331,              // asks for a password
	REPLY_230,              // the login succeeded
	REPLY_220,              // a greeting
	REPLY_220_KNOWN_SERVER, // a greeting in which a well-known server names itself
	FIN_ALONE,              // a FIN, without a line
};

// The endpoint that a line announces, and its place in the line.
struct announcement {
	__u32 port;
	__u16 start; // index of the address, or in a 227 of the parenthesis
	__u16 end;   // index after the last digit
};

#define WORD(a, b, c, d) ((__u32)(a) << 24 | (__u32)(b) << 16 | (__u32)(c) << 8 | (__u32)(d))
// This mask turns lower case letters into upper case. It turns no other byte into a letter.
#define UPPER_CASE 0xdfdfdfdf

static __always_inline __u8 byte_at(const struct line_record *line, __u32 at)
{
	// Without this the compiler could drop the test below where it knows the bound. The verifier needs the test.
	asm volatile("" : "+r"(at));
	return at < LONGEST_LINE ? line->bytes[at] : 0;
}

// A word of eight bytes that all have this value.
#define REPEATED(byte) ((__u64)(byte) * 0x0101010101010101)

// Whether all of eight bytes are printable ASCII. A printable byte neither borrows nor carries in the three terms. So
// the lowest byte that is not printable sets its own highest bit in one of them.
static __always_inline int are_printable(__u64 bytes)
{
	return !(((bytes - REPEATED(' ')) | (bytes + REPEATED(0x7f - '~')) | bytes) & REPEATED(0x80));
}

// Whether the line is printable ASCII and ends with its only CR LF.
__noinline int is_whole_line(const struct line_record *line, __u32 length)
{
	__u32 at, words;

	if (!line || length < 2 || length > LONGEST_LINE)
		return 0;
	words = (length - 2) / 8;
	for (at = 0; at < LONGEST_LINE / 8 - 1 && at < words; at++)
		if (!are_printable(((const __u64 *)line->bytes)[at]))
			return 0;
	for (at = words * 8; at < length - 2; at++) {
		__u8 byte = byte_at(line, at);

		if (byte < ' ' || byte > '~')
			return 0;
	}
	return byte_at(line, length - 2) == '\r' && byte_at(line, length - 1) == '\n';
}

// Reads a decimal number of at most `most` digits. Returns its value, and from bit 24 on how many digits it has; or 0
// if there is no such number, or it has a leading zero.
__noinline __u32 read_number(const struct line_record *line, __u32 at, __u32 most)
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

// 1 if both bytes are equal, else 0. It has no branch, because in a loop the verifier would follow each combination
// of branches.
static __always_inline __u32 is_equal(__u32 byte, __u32 other)
{
	__u32 same = ((byte ^ other) - 1) >> 31;

	asm volatile("" : "+r"(same));
	return same;
}

// A byte of an address, with `separator` in the place of a full stop.
static __always_inline __u32 separated(__u32 byte, __u32 separator)
{
	return byte ^ ((byte ^ separator) & -is_equal(byte, '.'));
}

// Finds the sender's own address in the line, with `separator` for its full stops. Returns the index after it, or 0 if
// there is another text.
__noinline __u32 skip_address(const struct line_record *line, __u32 at, const struct address_text *own, __u32 separator)
{
	__u32 i, length, differs = 0;

	if (!line || !own)
		return 0;
	length = own->length;
	if (length > LONGEST_ADDRESS || at > LONGEST_LINE - length)
		return 0;
	for (i = 0; i < LONGEST_ADDRESS; i++) {
		__u32 is_inside = (i - length) >> 31; // without a branch, as in is_equal

		asm volatile("" : "+r"(is_inside));
		differs |= (line->bytes[(at + i) % LONGEST_LINE] ^ separated(own->bytes[i], separator)) & -is_inside;
	}
	return differs ? 0 : at + length;
}

// Reads a host-port, h1,h2,h3,h4,p1,p2. Returns the index after it, or 0 if there is none, or it has another address.
__noinline __u32 read_host_port(const struct line_record *line, __u32 at, const struct address_text *own,
				struct announcement *announcement)
{
	__u32 high, low;

	if (!line || !own || !announcement || own->protocol != '1')
		return 0;
	at = skip_address(line, at, own, ',');
	if (!at || byte_at(line, at++) != ',')
		return 0;
	high = read_number(line, at, 3);
	at += DIGITS(high);
	if (!high || VALUE(high) > 255 || byte_at(line, at++) != ',')
		return 0;
	low = read_number(line, at, 3);
	if (!low || VALUE(low) > 255)
		return 0;
	announcement->port = VALUE(high) << 8 | VALUE(low);
	return at + DIGITS(low);
}

// Reads a port that a delimiter follows. Returns the index of the delimiter, or 0 if there is no port.
__noinline __u32 read_port(const struct line_record *line, __u32 at, struct announcement *announcement)
{
	__u32 number;

	if (!line || !announcement)
		return 0;
	number = read_number(line, at, 5);
	at += DIGITS(number);
	if (!number || VALUE(number) > 65535 || byte_at(line, at) != '|')
		return 0;
	announcement->port = VALUE(number);
	return at;
}

// Finds the opening parenthesis of a reply. Returns 0 if there is none, more than one, or a digit before it, because
// a client could then read another announcement than this program.
__noinline __u32 find_parenthesis(const struct line_record *line, __u32 length)
{
	__u32 at, found = 0, count = 0, digits = 0;

	if (!line)
		return 0;
	for (at = 4; at < LONGEST_LINE && at < length; at++) {
		__u32 byte = line->bytes[at], opens = is_equal(byte, '(');
		__u32 is_digit = (byte - '0' - 10) >> 31 & ~(byte - '0') >> 31;

		asm volatile("" : "+r"(is_digit));
		count += opens;
		found += opens * at;
		digits += is_digit & is_equal(count, 0);
	}
	return count == 1 && !digits ? found : 0;
}

static __always_inline __u32 word_at(const struct line_record *line, __u32 at)
{
	return bpf_ntohl(*(const __be32 *)(line->bytes + at));
}

// The bypassable commands, of RFC 959, 2389 and 3659: they announce nothing, and change no rights.
static __always_inline int is_bypassable(__u32 word)
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
		return 1;
	}
	return 0;
}

static __always_inline int is_bypassable_of_three(__u32 letters)
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

// Whether the argument that starts at `at` has no blank. `USER / HTTP/1.1` is no FTP.
__noinline int is_one_word(const struct line_record *line, __u32 at)
{
	if (!line)
		return 0;
	for (; at < LONGEST_LINE; at++)
		if (line->bytes[at] == ' ')
			return 0;
	return 1;
}

// Whether the line may be a request line of another protocol, as `METHOD target HTTP/1.1`: at least three words, of
// which the last one has a slash and ends with a digit. The engine takes no such sender for an FTP client. A blank at the
// end counts as such a word, because the engine ignores blanks there.
__noinline int is_request_line(const struct line_record *line, __u32 length)
{
	__u32 at, blanks = 0, slash = 0;
	__u8 last = 0;

	if (!line || length > LONGEST_LINE)
		return 0;
	last = byte_at(line, length - 3);
	if (last == ' ')
		return 1;
	if (last < '0' || last > '9')
		return 0;
	for (at = 3; at < LONGEST_LINE; at++) {
		__u32 byte = line->bytes[at], is_blank = is_equal(byte, ' ');

		blanks += is_blank;
		slash = (slash | is_equal(byte, '/')) & (is_blank - 1);
	}
	return blanks >= 2 && slash;
}

__noinline __u32 read_command(const struct line_record *line, __u32 length, const struct address_text *own,
			      struct announcement *announcement)
{
	__u32 word, at;
	__u8 after_verb;

	if (!line || !own || !announcement)
		return NOT_BYPASSABLE;
	word = word_at(line, 0) & UPPER_CASE;
	after_verb = line->bytes[4];
	if (is_bypassable(word))
		return after_verb == '\r' || (after_verb == ' ' && !is_request_line(line, length)) ?
			       COMMAND_BYPASSABLE : NOT_BYPASSABLE;
	after_verb = line->bytes[3];
	if (is_bypassable_of_three(word >> 8))
		return after_verb == '\r' || (after_verb == ' ' && !is_request_line(line, length)) ?
			       COMMAND_BYPASSABLE : NOT_BYPASSABLE;
	if (word == WORD('P', 'A', 'S', 'V'))
		return length == 6 ? COMMAND_PASV : NOT_BYPASSABLE;
	if (word == WORD('E', 'P', 'S', 'V'))
		return length == 6 ? COMMAND_EPSV : NOT_BYPASSABLE;
	if (word == WORD('Q', 'U', 'I', 'T'))
		return length == 6 ? COMMAND_QUIT : NOT_BYPASSABLE;
	if (word == WORD('A', 'B', 'O', 'R'))
		return length == 6 ? COMMAND_ABOR : NOT_BYPASSABLE;
	if (line->bytes[4] != ' ')
		return NOT_BYPASSABLE;
	if (word == WORD('U', 'S', 'E', 'R') || word == WORD('P', 'A', 'S', 'S'))
		return is_one_word(line, 5) ? COMMAND_LOGIN : NOT_BYPASSABLE;
	if (word == WORD('P', 'O', 'R', 'T')) {
		announcement->start = 5;
		announcement->end = at = read_host_port(line, 5, own, announcement);
		return at && at + 2 == length ? COMMAND_PORT : NOT_BYPASSABLE;
	}
	if (word == WORD('E', 'P', 'R', 'T')) {
		if (line->bytes[5] != '|' || line->bytes[6] != own->protocol || line->bytes[7] != '|')
			return NOT_BYPASSABLE;
		announcement->start = 8;
		at = skip_address(line, 8, own, '.');
		if (!at || byte_at(line, at) != '|')
			return NOT_BYPASSABLE;
		announcement->end = at = read_port(line, at + 1, announcement);
		return at && at + 3 == length ? COMMAND_EPRT : NOT_BYPASSABLE;
	}
	return NOT_BYPASSABLE;
}

// Whether the greeting names a server that takes four digits in a number of a PORT. The list is
// `DECIMAL_GREETINGS` in `ftp/announcement.rs` of ftp-alg-core, without Pure-FTPd, whose greeting has several lines. `GREETINGS` of
// the model has a greeting of each server.
static __always_inline int names_known_server(const struct line_record *line)
{
	__u32 first = word_at(line, 4), second = word_at(line, 8);
	__u32 third = word_at(line, 12), fourth = word_at(line, 16);

	return (first == WORD('(', 'v', 's', 'F') && second == WORD('T', 'P', 'd', ' ')) ||
	       (first == WORD('P', 'r', 'o', 'F') && second == WORD('T', 'P', 'D', ' ')) ||
	       (first == WORD('p', 'y', 'f', 't') && second == WORD('p', 'd', 'l', 'i') &&
		third >> 16 == ('b' << 8 | ' ')) ||
	       (first == WORD('F', 'i', 'l', 'e') && second == WORD('Z', 'i', 'l', 'l') &&
		third == WORD('a', ' ', 'S', 'e') && fourth == WORD('r', 'v', 'e', 'r'));
}

__noinline __u32 read_reply(const struct line_record *line, const struct address_text *own,
			    struct announcement *announcement)
{
	__u32 hundreds, code, at;

	if (!line || !own || !announcement)
		return NOT_BYPASSABLE;
	hundreds = line->bytes[0] - '0';
	code = line->bytes[1] - '0';
	at = line->bytes[2] - '0';
	if (hundreds < 1 || hundreds > 5 || code > 9 || at > 9 || line->bytes[3] != ' ')
		return NOT_BYPASSABLE;
	code = hundreds * 100 + code * 10 + at;
	if (code == 230)
		return REPLY_230;
	if (code == 331)
		return REPLY_331;
	if (code == 220)
		return names_known_server(line) ? REPLY_220_KNOWN_SERVER : REPLY_220;
	// The engine reads these. 120 delays the greeting, 228 announces an endpoint (RFC 1639), 23x and 33x belong
	// to the login or to TLS, 257 quotes a name, and 421 ends the session.
	if (code == 120 || code == 228 || code == 257 || (code >= 230 && code <= 239) ||
	    (code >= 331 && code <= 339) || code == 421)
		return NOT_BYPASSABLE;
	if (code != 227 && code != 229)
		return hundreds == 1 ? REPLY_PRELIMINARY : hundreds == 2 ? REPLY_COMPLETION : REPLY_OTHER;
	at = find_parenthesis(line, line->length);
	if (!at)
		return NOT_BYPASSABLE;
	announcement->start = at;
	if (code == 227) {
		announcement->end = at = read_host_port(line, at + 1, own, announcement);
		return at && byte_at(line, at) == ')' ? REPLY_227 : NOT_BYPASSABLE;
	}
	if (byte_at(line, at + 1) != '|' || byte_at(line, at + 2) != '|' || byte_at(line, at + 3) != '|')
		return NOT_BYPASSABLE;
	announcement->end = at = read_port(line, at + 4, announcement);
	return at && byte_at(line, at + 1) == ')' ? REPLY_229 : NOT_BYPASSABLE;
}
