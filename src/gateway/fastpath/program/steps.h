// Whether a line is the next step of its flow. All of this runs under the flow's lock, so nothing here may call.
#pragma once

enum verdict {
	HANDS_BACK, // the engine has the flow from now on
	AGAIN,      // a retransmission of the last line
	TAKEN,      // the next line
	OPENS,      // the next line, if its pinhole can be opened
};

static __always_inline int is_announcement(__u32 kind)
{
	return kind == PORT || kind == EPRT || kind == REPLY_227 || kind == REPLY_229;
}

static __always_inline __u32 length_to_keep(const struct step *line)
{
	return line->ends ? LINE + 1 : line->length;
}

static __always_inline int is_retransmission(const struct line *last, const struct step *line)
{
	const __u64 *before = (const __u64 *)last->bytes, *now = (const __u64 *)line->bytes;
	__u64 differs = last->seq != line->seq || last->length != length_to_keep(line);

#pragma unroll
	for (int i = 0; i < LINE / 8; i++)
		differs |= before[i] ^ now[i];
	return !differs;
}

// Whether the flow waits for a line of this kind.
static __always_inline int is_in_turn(__u32 awaits, __u32 kind)
{
	switch (kind) {
	case ENDS:
	case COMMAND:
	case ASKS_PASV:
	case ASKS_EPSV:
	case PORT:
	case EPRT:
		return awaits == NOTHING;
	case PRELIMINARY:
	case OTHER_REPLY:
		return awaits == OTHER;
	case COMPLETION:
		return awaits == OTHER || awaits == ANNOUNCED;
	case REPLY_227:
		return awaits == PASV;
	case REPLY_229:
		return awaits == EPSV;
	case GREETS:
	case GREETS_KNOWN:
		return awaits == GREETING;
	case LOGS_IN:
		return awaits == LOGIN;
	case ASKS_PASSWORD:
	case LOGGED_IN:
		return awaits == LOGIN_REPLY;
	}
	return 0;
}

static __always_inline int has_ended(const struct flow *flow, __u32 side)
{
	return flow->last[side].length > LINE;
}

// Whether `seq` of a side is not before `since`.
static __always_inline int is_since(__u32 seq, __u32 since)
{
	return (__s32)(seq - since) >= 0;
}

// How the sequence numbers of a packet of this side are shifted. 0 if that is not known of earlier ones.
static __always_inline int shift_of(const struct flow *flow, __u32 side, __u32 seq, __u32 ack, struct shift *shift)
{
	shift->seq = flow->shift[side];
	shift->ack = flow->shift[!side];
	return is_since(seq, flow->since[side]) && is_since(ack - shift->ack, flow->since[!side]);
}

static __always_inline __u32 verdict_on(struct flow *flow, const struct step *line, __u32 kind, int may_open,
					struct shift *shift)
{
	__u32 side = line->side & 1, behind;

	if (!flow->judged)
		return HANDS_BACK;
	if (flow->adjusts && !shift_of(flow, side, line->seq, line->ack, shift))
		return HANDS_BACK;
	if (is_retransmission(&flow->last[side], line))
		return AGAIN;
	if (has_ended(flow, side) || line->seq != flow->next[side])
		return HANDS_BACK;
	// The FINs of both sides may cross.
	behind = flow->next[!side] - (line->ack - shift->ack);
	if (behind && !(behind == 1 && line->ends && has_ended(flow, !side)))
		return HANDS_BACK;
	if (!is_in_turn(flow->awaits, kind))
		return HANDS_BACK;
	if (!is_announcement(kind))
		return TAKEN;
	return may_open && !flow->opening ? OPENS : HANDS_BACK;
}

// `growth`: by how much the line is longer when it has been rewritten.
static __always_inline void take(struct flow *flow, struct step *line, __u32 kind, __u32 growth)
{
	__u32 side = line->side & 1;
	struct line *last = &flow->last[side];

	last->seq = line->seq;
	last->length = length_to_keep(line);
#pragma unroll
	for (int i = 0; i < LINE / 8; i++)
		((__u64 *)last->bytes)[i] = ((const __u64 *)line->bytes)[i];
	flow->next[side] += line->ends ? 1 : line->length;
	if (growth) {
		flow->shift[side] += growth;
		flow->since[side] = flow->next[side];
	}
	line->step = ++flow->steps;
	if (kind == GREETS_KNOWN && flow->digits)
		flow->digits = MOST_DIGITS;
	if (kind == COMMAND)
		flow->awaits = OTHER;
	else if (kind == ASKS_PASV)
		flow->awaits = PASV;
	else if (kind == ASKS_EPSV)
		flow->awaits = EPSV;
	else if (kind == PORT || kind == EPRT)
		flow->awaits = ANNOUNCED;
	else if (kind == LOGS_IN)
		flow->awaits = LOGIN_REPLY;
	else if (kind == ASKS_PASSWORD || kind == GREETS || kind == GREETS_KNOWN)
		flow->awaits = LOGIN;
	else if (kind != PRELIMINARY)
		flow->awaits = NOTHING;
}
