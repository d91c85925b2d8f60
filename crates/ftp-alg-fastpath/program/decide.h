// Decides whether a line is the next one of its flow. This code runs under the flow's spin lock, where the verifier
// permits no calls. The test `program_and_model_decide_random_dialogues_alike` compares it with a model in Rust.
#pragma once

enum verdict {
	HAND_BACK,       // not the next line: the engine gets the connection
	RETRANSMISSION,  // the last line of this side
	NEXT_LINE,       // the next line
	NEXT_LINE_OPENS, // the next line, if its pinhole can be opened
};

static __always_inline int is_announcement(__u32 kind)
{
	return kind == COMMAND_PORT || kind == COMMAND_EPRT || kind == REPLY_227 || kind == REPLY_229;
}

static __always_inline __u32 saved_length(const struct line_record *line)
{
	return line->is_fin ? LONGEST_LINE + 1 : line->length;
}

static __always_inline int is_retransmission(const struct saved_line *last, const struct line_record *line)
{
	const __u64 *last_words = (const __u64 *)last->bytes, *words = (const __u64 *)line->bytes;
	__u64 differs = last->seq != line->seq || last->length != saved_length(line);

#pragma unroll
	for (int i = 0; i < LONGEST_LINE / 8; i++)
		differs |= last_words[i] ^ words[i];
	return !differs;
}

// Whether the flow waits for a line of this kind.
static __always_inline int is_expected(__u32 dialogue, __u32 kind)
{
	switch (kind) {
	case FIN_ALONE:
		return dialogue == READY || dialogue == FIN_DUE;
	case COMMAND_BYPASSABLE:
	case COMMAND_PASV:
	case COMMAND_EPSV:
	case COMMAND_PORT:
	case COMMAND_EPRT:
	case COMMAND_QUIT:
		return dialogue == READY;
	// The end of the data connection follows. It must not arrive first, so the command does not wait in the queue.
	case COMMAND_ABOR:
		return dialogue == READY || dialogue == COMMAND_PENDING;
	case REPLY_PRELIMINARY:
		return dialogue == COMMAND_PENDING;
	case REPLY_OTHER:
		return dialogue == COMMAND_PENDING || dialogue == QUIT_PENDING;
	case REPLY_COMPLETION:
		return dialogue == COMMAND_PENDING || dialogue == PORT_PENDING || dialogue == QUIT_PENDING;
	case REPLY_227:
		return dialogue == PASV_PENDING;
	case REPLY_229:
		return dialogue == EPSV_PENDING;
	case REPLY_220:
	case REPLY_220_KNOWN_SERVER:
		return dialogue == GREETING_DUE;
	case COMMAND_LOGIN:
		return dialogue == LOGIN_DUE;
	case REPLY_331:
	case REPLY_230:
		return dialogue == LOGIN_PENDING;
	}
	return 0;
}

// Whether the side has sent its FIN.
static __always_inline int has_sent_fin(const struct flow *flow, __u32 side)
{
	return flow->last_line[side].length > LONGEST_LINE;
}

// Whether the sequence number `seq` is at or after `since`.
static __always_inline int is_at_or_after(__u32 seq, __u32 since)
{
	return (__s32)(seq - since) >= 0;
}

// Looks up how to adjust a packet of this side. Returns 0 if the packet may be older than the current sequence offset
// of either side, because older offsets are not known here.
static __always_inline int find_adjustment(const struct flow *flow, __u32 side, __u32 seq, __u32 ack,
					   struct seq_adjustment *adjustment)
{
	adjustment->seq = flow->seq_offset[side];
	adjustment->ack = flow->seq_offset[!side];
	return is_at_or_after(seq, flow->offset_since[side]) &&
	       is_at_or_after(ack - adjustment->ack, flow->offset_since[!side]);
}

static __always_inline __u32 decide(struct flow *flow, const struct line_record *line, __u32 kind, int may_open,
				    struct seq_adjustment *adjustment)
{
	__u32 side = line->side & 1, unacknowledged;

	// The number of the line that opens a pinhole is known before the pinhole is open, so no other line may take it.
	if (!flow->handed_over || flow->opening)
		return HAND_BACK;
	if (flow->adjusted && !find_adjustment(flow, side, line->seq, line->ack, adjustment))
		return HAND_BACK;
	if (is_retransmission(&flow->last_line[side], line))
		return RETRANSMISSION;
	if (has_sent_fin(flow, side) || line->seq != flow->next_seq[side])
		return HAND_BACK;
	// A FIN need not acknowledge the FIN of the other side, because both sides may send theirs at once.
	unacknowledged = flow->next_seq[!side] - (line->ack - adjustment->ack);
	if (unacknowledged && !(unacknowledged == 1 && line->is_fin && has_sent_fin(flow, !side)))
		return HAND_BACK;
	if (!is_expected(flow->dialogue, kind))
		return HAND_BACK;
	if (!is_announcement(kind))
		return NEXT_LINE;
	return may_open ? NEXT_LINE_OPENS : HAND_BACK;
}

// Updates the flow with its next line. `growth` is the number of bytes that a rewrite adds to the line.
static __always_inline void advance(struct flow *flow, struct line_record *line, __u32 kind, __u32 growth)
{
	__u32 side = line->side & 1;
	struct saved_line *last = &flow->last_line[side];

	last->seq = line->seq;
	last->length = saved_length(line);
#pragma unroll
	for (int i = 0; i < LONGEST_LINE / 8; i++)
		((__u64 *)last->bytes)[i] = ((const __u64 *)line->bytes)[i];
	flow->next_seq[side] += line->is_fin ? 1 : line->length;
	if (growth) {
		flow->seq_offset[side] += growth;
		flow->offset_since[side] = flow->next_seq[side];
	}
	line->number = ++flow->line_count;
	if (kind == REPLY_220_KNOWN_SERVER && flow->port_digits)
		flow->port_digits = MAX_PORT_DIGITS;
	if (kind == COMMAND_BYPASSABLE)
		flow->dialogue = COMMAND_PENDING;
	else if (kind == COMMAND_PASV)
		flow->dialogue = PASV_PENDING;
	else if (kind == COMMAND_EPSV)
		flow->dialogue = EPSV_PENDING;
	else if (kind == COMMAND_PORT || kind == COMMAND_EPRT)
		flow->dialogue = PORT_PENDING;
	else if (kind == COMMAND_LOGIN)
		flow->dialogue = LOGIN_PENDING;
	else if (kind == COMMAND_QUIT)
		flow->dialogue = QUIT_PENDING;
	else if (kind == COMMAND_ABOR)
		flow->dialogue = ABOR_PENDING;
	else if (kind == REPLY_331 || kind == REPLY_220 || kind == REPLY_220_KNOWN_SERVER)
		flow->dialogue = LOGIN_DUE;
	else if (kind != REPLY_PRELIMINARY && kind != FIN_ALONE)
		flow->dialogue = flow->dialogue == QUIT_PENDING ? FIN_DUE : READY;
}
