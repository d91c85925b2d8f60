//! The engine's side of the fast path.
//!
//! An idle connection is handed over to the BPF program, with everything that the program needs to inspect its lines,
//! as long as the ends take turns with lines that it knows. The engine later reads each line that the program let pass,
//! before it decides anything else. So events, counters, pinholes and records are the same as if the line had been
//! queued. A packet that is queued takes the connection back.

pub(crate) mod handover;

use std::{
    mem::take,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use crate::{
    engine::{
        Engine, Entry, EventKind, Kernel, KernelError, Opening, PinholeEnds, QueueMode,
        QueuedPacket, Sessions, Translation,
        batch::SessionRef,
        decision::{Decider, external},
        limits::is_counted,
        offload::handover::{
            FastPathLine, FastPathProgress, FlowChange, Handover, LoginStage, PinholeId,
            SequenceOffset, Withdrawal,
        },
        pinholes::pinhole::Pinhole,
        records::opening_again,
    },
    ftp::{AnnouncementKind, Padding},
    packet::{self, Packet, Seq, flags},
    policy::Policy,
    session::{
        Action, AnnouncedLine, Conditions, Dialogue, DialogueEvent, DialogueHandler, ForwardAction,
        Phase, Session, Side,
    },
};

/// Limit of connections that are handed over before the server's greeting, because any SYN-ACK creates one.
pub(crate) const MAX_UNGREETED: u32 = 256;

/// Room for a packet with a line.
const USUAL_PACKET: usize = 256;

impl Engine {
    /// Tells the BPF program to inspect no more lines of the connections of these packets, if the packets come from where their
    /// senders are. The caller reads the program's lines before it [decides](Self::take) about the packets. Otherwise the
    /// program could pass a line in the place of a packet that was queued before the handover and is accepted meanwhile.
    /// The server would read that packet from the end of the line on, perhaps as a command that nobody has inspected.
    pub fn stop_fast_path<'p>(
        &mut self,
        packets: impl Iterator<Item = QueuedPacket<'p>> + Clone,
        kernel: &mut dyn Kernel,
    ) {
        if !self.sessions.uses_fast_path {
            return;
        }
        self.sessions.prefetch(packets.clone().map(|packet| packet.bytes));
        for QueuedPacket { bytes, meta, .. } in packets {
            let Ok(packet) = Packet::parse(bytes) else { continue };
            let Some(Entry { head, session }) = self.sessions.table.find_packet(&packet) else {
                continue;
            };
            let FastPathProgress { is_handed_over, is_stopped, .. } = head.extra().fast_path;
            // A forged packet from elsewhere changes nothing.
            if is_handed_over
                && !is_stopped
                && session.interfaces.is_at(head.side_of(packet.endpoints().0), meta.input)
            {
                head.extra_mut().fast_path.is_stopped = kernel.stop_flow(head.id);
            }
        }
    }

    /// Reads lines from the fast path, in order for each connection. The caller [finishes](Self::finish) the batch.
    pub fn read_fast_path_lines<'l>(
        &mut self,
        lines: impl Iterator<Item = FastPathLine<'l>>,
        kernel: &mut dyn Kernel,
    ) {
        let mut bytes = Vec::with_capacity(USUAL_PACKET);
        for line in lines {
            let endpoints = [line.client, line.server];
            let found = self.sessions.index_of(endpoints[0], endpoints[1], line.flow);
            let Some((index, entry)) =
                found.and_then(|index| Some((index, self.sessions.table.get_mut(index)?)))
            else {
                // The session was removed.
                line.pinhole().into_iter().for_each(|id| self.sessions.pinholes.close_lost(id));
                continue;
            };
            // The line was read before a crash.
            if line.line <= entry.head.extra().fast_path.lines_inspected {
                continue;
            }
            let before = entry.head.extra().fast_path.lines_inspected;
            let state = &mut entry.head.extra_mut().fast_path;
            (state.lines_inspected, state.idle_handovers) = (line.line, 0);
            self.sessions.ungreeted_handovers -= state.clear_ungreeted();
            let [source, destination] = match line.from {
                Side::Client => endpoints,
                Side::Server => [endpoints[1], endpoints[0]],
            };
            let end_flag = if line.is_fin { flags::FIN } else { flags::PSH };
            let header = packet::Header {
                source,
                destination,
                seq: Seq(line.seq),
                ack: Seq(line.ack),
                window: line.window,
                flags: flags::ACK | end_flag,
            };
            packet::build_segment(&header, line.bytes, &mut bytes);
            let Ok(packet) = Packet::parse(&bytes) else { continue };
            // Lines of other connections that are read later may be older than this one.
            self.sessions.expire_pinholes_of(index, line.at, kernel);
            self.read_fast_path_line(index, &line, &packet, kernel);
            if line.line != before + 1 {
                let difference = format!("line {} came after line {before}", line.line);
                self.handle_fast_path_mismatch(index, difference);
            }
        }
    }

    fn read_fast_path_line(
        &mut self,
        index: u32,
        line: &FastPathLine<'_>,
        packet: &Packet<'_>,
        kernel: &mut dyn Kernel,
    ) {
        self.sessions.counters.fast_path_lines += 1;
        let seen = self.sessions.epoch.timestamp(line.at);
        let session = SessionRef { index, id: line.flow };
        let Some((decider, session)) = self.sessions.decider(line.at, session, kernel) else {
            return;
        };
        decider.head.last_seen = seen;
        if let Some(opening_line) = line.consumed_pinhole {
            let consumed = PinholeId { flow: line.flow, line: opening_line };
            decider.pinholes.note_consumed(index, consumed);
        }
        let is_adjusted = session.is_adjusted();
        let expected = session.next_seq(line.from);
        // Since the handover nothing passed unread before this line. Behind it the program may have returned the connection,
        // so downtime that was recorded since lasts.
        let had_downtime = packet.seq() == expected && session.unblock_client();
        let conditions =
            Conditions { refuses_auth: decider.policy.refuses_auth(), is_from_elsewhere: false };
        let changed = &mut self.changed_payload;
        let mut decider = LineDecider {
            decider,
            opened: line.pinhole(),
            padding: line.padding,
            opened_rightly: true,
        };
        let action = session.inspect(line.from, packet, conditions, changed, &mut decider).action;
        let LineDecider { mut decider, opened, opened_rightly, .. } = decider;
        let matches = opened_rightly
            && opened.is_none()
            && match action {
                ForwardAction::Unchanged => true,
                // Also a packet that only follows an unacknowledged rewrite.
                ForwardAction::Changed { header, payload } => {
                    let keeps_numbers = (header.seq, header.ack) == (packet.seq(), packet.ack())
                        && (!payload || changed.len() == line.bytes.len());
                    (is_adjusted || keeps_numbers)
                        && (line.opened_pinhole || !payload || changed == line.bytes)
                }
                ForwardAction::Drop(_) => false,
            };
        if had_downtime {
            session.note_downtime();
        }
        let is_over = session.is_over();
        let is_counted = is_counted(decider.head, session);
        if is_over {
            decider.handle_end(session.is_reset());
        }
        self.sessions.mark_changed(index);
        if is_over {
            self.sessions.take_back(index);
        }
        if !matches {
            opened.into_iter().for_each(|id| self.sessions.pinholes.close_lost(id));
            let difference = format!(
                "line {} of the {:?}, sequence number {} where {} was next: {action:?}",
                line.line,
                line.from,
                packet.seq().0,
                expected.0
            );
            self.handle_fast_path_mismatch(index, difference);
        }
        if is_counted {
            self.sessions.update_counts(line.at, index, kernel);
        }
    }

    /// The BPF program passed a line about which the engine decides differently, or a line is missing.
    #[cold]
    fn handle_fast_path_mismatch(&mut self, index: u32, difference: String) {
        self.sessions.counters.fast_path_mismatches += 1;
        self.sessions.take_back(index);
        if let Some(entry) = self.sessions.table.get_mut(index) {
            // The lines behind the first one follow from it.
            if !entry.session.is_client_blocked() {
                self.sessions.batch.events.push(entry.head.event(EventKind::Kernel(
                    format!(
                        "the fast path passed a line that the engine would have decided differently ({difference}); \
                         please report this"
                    )
                    .into(),
                )));
            }
            entry.session.note_downtime();
        }
    }
}

/// Decides about a line that the BPF program has passed. Opens nothing besides the pinhole that the program has opened.
struct LineDecider<'a> {
    decider: Decider<'a>,
    /// The pinhole that the program opened, until the session has it.
    opened: Option<PinholeId>,
    padding: Padding,
    /// Whether the program had opened a pinhole for each announcement.
    opened_rightly: bool,
}

impl DialogueHandler for LineDecider<'_> {
    fn on_announcement(&mut self, line: &AnnouncedLine) -> Action {
        self.opened_rightly &= self.opened.is_some();
        match self.decider.decide_fast_path_announcement(line, &mut self.opened) {
            Action::Open { endpoint, .. } => Action::Open { endpoint, padding: self.padding },
            other => other,
        }
    }

    fn may_renumber(&mut self) -> bool {
        false
    }

    fn on_event(&mut self, event: DialogueEvent, dialogue: &Dialogue) {
        self.decider.on_event(event, dialogue);
    }
}

impl Sessions {
    /// Hands the connection at `index` over if it is idle and eligible.
    #[inline]
    pub(crate) fn offer_to_fast_path(&mut self, now: Instant, index: u32, kernel: &mut dyn Kernel) {
        if self.uses_fast_path {
            self.hand_over(now, index, kernel);
        }
    }

    /// Sets whether connections are handed over. Otherwise all are taken back.
    pub fn set_uses_fast_path(&mut self, enabled: bool) {
        self.uses_fast_path = enabled;
        if !enabled {
            self.take_all_back();
        }
    }

    /// Sets the interfaces that can have the BPF program: their indices, in order. Only a connection with both ends there
    /// is handed over. So one at an interface that has just been made waits until the program can be there as well.
    pub fn set_fast_path_interfaces(&mut self, indices: Arc<[u32]>) {
        self.fast_path_interfaces = Some(indices);
    }

    fn hand_over(&mut self, now: Instant, index: u32, kernel: &mut dyn Kernel) {
        let opens = !kernel.uses_expectations();
        if !self.waits_for_handover(index, opens) {
            return;
        }
        let Some((translation, interfaces)) = self.path_of(now, index, kernel) else { return };
        let Some(entry) = self.table.get_mut(index) else { return };
        let policy = self.policy.for_network(entry.head.network());
        let Some(announced_addresses) = announced_by_program(&translation, policy) else { return };
        // The connection stays inline until the kernel has set its queue mode.
        let has_mode = match entry.head.queue_mode() {
            Some(QueueMode::EveryPacket) => true,
            Some(QueueMode::WithAcknowledgements) => false,
            _ => !entry.session.is_adjusted(),
        };
        if !has_mode || !self.pinholes.grant_fast_path(policy, translation.client.ip()) {
            return;
        }
        let (id, session) = (entry.head.id, &entry.session);
        let is_ungreeted = session.dialogue.phase() == Phase::NotGreeted;
        let state = &mut entry.head.extra_mut().fast_path;
        (state.is_handed_over, state.is_stopped) = (true, true);
        state.is_ungreeted = is_ungreeted;
        self.ungreeted_handovers += u32::from(is_ungreeted);
        state.count_idle_handover();
        let set = match translation.client == translation.client_external {
            true => None,
            false => policy.port_set(translation.client_external.port()),
        };
        self.batch.flow_changes.push(FlowChange::Handover(Handover {
            flow: id,
            lines: state.lines_inspected,
            next_seq: [Side::Client, Side::Server].map(|side| session.next_seq(side).0),
            login: match session.dialogue.is_logged_in() {
                true => LoginStage::LoggedIn,
                false if is_ungreeted => LoginStage::NotGreeted,
                false => LoginStage::Greeted,
            },
            translation,
            interfaces,
            client_ports: set.map_or([0, u16::MAX], <[u16; 2]>::from),
            announced_addresses,
            seq_offsets: session.is_adjusted().then(|| {
                [Side::Client, Side::Server].map(|side| {
                    let (offset, first_seq) = session.sequence_offset(side);
                    SequenceOffset { offset, first_seq: first_seq.0 }
                })
            }),
            padding: match policy.preserves_length {
                true => session.dialogue.padding,
                false => Padding::None,
            },
            pinhole_timeout: opens.then_some(policy.pinhole_timeout),
        }));
        self.mark_changed(index);
    }

    /// Whether the connection at `index` is inline, and in a state in which it can be handed over. If the program `opens`
    /// pinholes, none of the rules may wait for its transfer, because the program may open the next one.
    fn waits_for_handover(&self, index: u32, opens: bool) -> bool {
        let Some(Entry { head, session }) = self.table.get(index) else { return false };
        let state = head.extra().fast_path;
        let waits_in_rules = |one: &Pinhole| !one.is_in_transfer() && one.in_program().is_none();
        let is_ungreeted = session.dialogue.phase() == Phase::NotGreeted;
        !state.is_handed_over
            && state.may_be_handed_over()
            && session.is_idle()
            && head.incarnation().is_none()
            && !(opens && self.pinholes.of(index).any(waits_in_rules))
            && !(is_ungreeted && self.ungreeted_handovers >= MAX_UNGREETED)
    }

    /// The translation of the connection at `index` and the interfaces of its ends, if the program is, or can be, at both.
    fn path_of(
        &mut self,
        now: Instant,
        index: u32,
        kernel: &mut dyn Kernel,
    ) -> Option<(Translation, [u32; 2])> {
        if let Some(question) = self.table.get(index)?.session.interfaces.question() {
            self.has_route(now, index, question, 0, kernel);
        }
        let (mut decider, session) = self.decider_at(now, index, kernel)?;
        let translation = match decider.translation() {
            Ok(translation) => translation,
            Err(error) => {
                decider.head.extra_mut().fast_path.count_idle_handover();
                if !matches!(error, KernelError::Unknown) {
                    decider.report_kernel_error(&error);
                }
                return None;
            }
        };
        let interfaces = session.interfaces.indices()?;
        let has_program = |index: &u32| {
            let usable = self.fast_path_interfaces.as_ref();
            usable.is_none_or(|usable| usable.binary_search(index).is_ok())
        };
        interfaces.iter().all(has_program).then_some((translation, interfaces))
    }

    /// Takes the connection at `index` back from the BPF program.
    pub(crate) fn take_back(&mut self, index: u32) {
        let Some(Entry { head, .. }) = self.table.get_mut(index) else { return };
        if !head.extra().fast_path.is_handed_over {
            return;
        }
        let (id, state) = (head.id, &mut head.extra_mut().fast_path);
        state.is_handed_over = false;
        self.ungreeted_handovers -= state.clear_ungreeted();
        // The program must not even begin if the handover is of the same batch. All connections may be taken back at once,
        // and few of them are stopped.
        let is_own = |change: &FlowChange| matches!(change, FlowChange::Handover(handover) if handover.flow == id);
        let changes = &mut self.batch.flow_changes;
        let pending = if state.is_stopped { changes.iter().rposition(is_own) } else { None };
        self.pinholes.revoke_fast_path_grant(index, head.client().ip());
        if let Some(at) = pending {
            changes.remove(at);
        } else if let Some(translation) = head.extra().translation {
            changes.push(FlowChange::Withdraw(Withdrawal { flow: id, translation }));
        }
        self.mark_changed(index);
    }

    /// Hands connections over to the BPF program, and takes others back, as was decided.
    pub(crate) fn apply_flow_changes(&mut self, kernel: &mut dyn Kernel) {
        if self.batch.flow_changes.is_empty() {
            return;
        }
        let changes = take(&mut self.batch.flow_changes);
        kernel.apply_flow_changes(&changes);
        for change in &changes {
            if let FlowChange::Handover(Handover { flow, translation, .. }) = change
                && let Some(index) = self.index_of(translation.client, translation.server, *flow)
                && let Some(Entry { head, .. }) = self.table.get_mut(index)
            {
                head.extra_mut().fast_path.is_stopped = false;
            }
        }
        self.batch.flow_changes = changes; // its memory is used again
    }

    /// Takes all connections back.
    pub fn take_all_back(&mut self) {
        self.take_back_at(None);
    }

    /// Takes back all connections, or those with an end at one of these `interfaces`.
    pub fn take_back_at(&mut self, interfaces: Option<&[u32]>) {
        for index in 0..self.table.slot_count() {
            if self.table.get_mut(index).is_some_and(|entry| is_at(&entry.session, interfaces)) {
                self.take_back(index);
            }
        }
    }

    /// The held pinholes that the BPF program has.
    pub fn fast_path_pinholes(&self) -> impl Iterator<Item = PinholeId> {
        self.held_pinholes().filter_map(Pinhole::in_program)
    }

    /// Notes that the rules have the pinholes for which `are_in_rules` is true. The record of a session may say that
    /// the BPF program has one, if a crash came after the move to the rules and before its record.
    pub fn note_rule_pinholes(&mut self, are_in_rules: impl Fn(IpAddr, SocketAddr) -> bool) {
        for index in 0..self.table.slot_count() {
            let is_meant = |one: &Pinhole| are_in_rules(one.ends.initiator, one.ends.arrival);
            self.pinholes.move_to_rules(index, is_meant);
        }
    }

    /// Moves the BPF program's pinholes to the rules, of all connections or of those with an end at one of these
    /// `interfaces`. Returns those that the program may still have open; the caller opens them in the rules.
    pub fn move_pinholes_to_rules(
        &mut self,
        now: Instant,
        interfaces: Option<&[u32]>,
    ) -> Vec<(PinholeId, Opening)> {
        let mut moved = Vec::new();
        for index in 0..self.table.slot_count() {
            let Some(entry) = self.table.get(index) else { continue };
            if !is_at(&entry.session, interfaces) {
                continue;
            }
            let translation = entry.head.extra().translation;
            let has_any = self.pinholes.of(index).any(|one| one.in_program().is_some());
            for (id, pinhole) in self.pinholes.move_to_rules(index, |_| true) {
                let opening = opening_again(&pinhole, translation.as_ref(), now);
                moved.extend(opening.map(|opening| (id, opening)));
            }
            if has_any {
                self.mark_changed(index);
            }
        }
        moved
    }

    /// The held pinholes of the rules.
    pub fn rule_pinholes(&self) -> impl Iterator<Item = PinholeEnds> {
        self.held_pinholes().filter(|one| one.in_program().is_none()).map(|one| one.ends)
    }

    /// The pinholes whose transfers have not ended.
    fn held_pinholes(&self) -> impl Iterator<Item = &Pinhole> {
        self.pinholes.iter().map(|(_, pinhole)| pinhole).filter(|pinhole| !pinhole.has_ended())
    }

    /// Numbers of the sessions on the fast path.
    pub fn fast_path_sessions(&self) -> impl Iterator<Item = u64> {
        let handed_over =
            self.table.iter().filter(|entry| entry.head.extra().fast_path.is_handed_over);
        handed_over.map(|entry| entry.head.id)
    }
}

/// Whether an end of the connection is, or may be, at one of these `interfaces`; `None`: at any.
fn is_at(session: &Session, interfaces: Option<&[u32]>) -> bool {
    let (Some(these), Some(own)) = (interfaces, session.interfaces.indices()) else { return true };
    own.iter().any(|one| these.contains(one))
}

/// The addresses that the BPF program announces for a client and for a server, if it can follow a connection with this
/// translation and policy.
fn announced_by_program(translation: &Translation, policy: &Policy) -> Option<[IpAddr; 2]> {
    // The rules that admit its data connections know no ct marks, and the program compares interfaces.
    if translation.ct_mark != 0 || policy.any_interface {
        return None;
    }
    let address = |kind| external(kind, translation, policy).ok();
    let (client, server) = (address(AnnouncementKind::Port)?, address(AnnouncementKind::Pasv)?);
    // The program would pad a 227 with blanks.
    let is_padded = server.is_ipv4()
        && !policy.preserves_length
        && server.to_string().len() < translation.server.ip().to_string().len();
    (!is_padded).then_some([client, server])
}
