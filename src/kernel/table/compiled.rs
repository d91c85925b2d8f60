//! Our table as kernel messages: the output of `nft` for the rules' text, stored to be sent once more.
//!
//! `nft` loads the text as a draft, a dormant table with another name that no packet meets. The kernel reports a
//! table's chains, sets, elements and rules with the same attributes that create them. They are read from the draft
//! once, and sent with the table's own name: in one transaction, through our socket, which may own the table, without
//! starting a program. The attributes are not interpreted; numbers that the kernel assigned are omitted.

use std::{ffi::CStr, io};

use super::queue_rules::put_queue_rule;
use crate::kernel::{
    netlink::{
        Attributes, Socket,
        nft::{self, Batch, TABLE},
        or_absent, put_attribute, repeat_interrupted,
    },
    parameters,
};

/// The draft.
pub(super) const DRAFT: &CStr = c"ftp_alg_draft";
/// Names of two tables for probing.
const PROBE: &CStr = c"ftp_alg_probe";
const ABSENT: &CStr = c"ftp_alg_absent";
/// Socket buffer size; memory is used only for waiting messages.
pub(super) const BUFFER: i32 = 4 << 20;

// From linux/netfilter/nf_tables.h; libc lacks them. The first attribute of every message is the table's name.
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DYNSET_TIMEOUT: u16 = 6;

/// Name, type, data, user data.
const OBJECT: &[u16] = &[2, 3, 4, 8];
/// Name, flags, types and lengths of key and data, policy, description, timeout, gc interval, user data, object type,
/// expressions.
const SET: &[u16] = &[2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18];
/// Name, hook, policy, type, flags, user data.
const CHAIN: &[u16] = &[3, 4, 5, 7, 10, 12];
/// Set and elements.
const ELEMENTS: &[u16] = &[2, 3];
/// Chain, user data.
const RULE: &[u16] = &[2, 7];

/// Sets whose elements a table does not get from the one that it replaces. The table has a heartbeat of its own. Each
/// packet with data records external addresses again, and clients could fill those sets until the pinholes cannot be
/// retained either. Of an element that counts a client's connections, the kernel reports the former limit and not the
/// connections.
const NOT_RETAINED: [&[u8]; 6] = [
    b"heartbeat\0",
    b"external_addresses4\0",
    b"external_addresses6\0",
    b"external_ports6\0",
    b"encrypted_clients4\0",
    b"encrypted_clients6\0",
];
/// Beginning of the names of anonymous sets.
const ANONYMOUS: &[u8] = b"__";

/// The messages that create the table, in order.
#[derive(Clone, Debug)]
pub(super) struct CompiledTable {
    messages: Vec<TableMessage>,
}

/// One message, without the table's name.
#[derive(Clone, Debug)]
pub(super) struct TableMessage {
    command: i32,
    attributes: Vec<u8>,
}

/// The text that loads the draft instead of the table.
pub(in crate::kernel) fn as_draft(text: &str) -> String {
    let ours = format!("table inet {}", parameters::TABLE);
    let draft = format!("table inet {}", DRAFT.to_string_lossy());
    let opening = format!("{draft} {{\n");
    text.replace(&ours, &draft).replacen(&opening, &format!("{opening}\tflags dormant\n"), 1)
}

/// Adds the deletion of a table, which must exist.
pub(super) fn delete_table(batch: &mut Batch, table: &CStr) {
    batch.part_of_table(libc::NFT_MSG_DELTABLE, 0, table, |_| {});
}

/// Enlarges the socket's buffers for the transaction that creates our table, and for the kernel's answers if it refuses
/// all of it. Only the first failure counts, so later ones may be lost. A limit that cannot be set stays.
pub(super) fn configure_socket(socket: &Socket) {
    socket.set_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, BUFFER);
    socket.set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, BUFFER);
    for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_NO_ENOBUFS] {
        let _ = socket.set_option(libc::SOL_NETLINK, option, 1);
    }
}

/// What this kernel supports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    /// Tables with an owner that stay after it.
    pub(super) owners: bool,
    /// `queue` statements. Not known without table owners; then it is true.
    pub(super) queue: bool,
}

/// Probes what this kernel supports, in a transaction whose last message must fail, so that nothing is committed.
pub(super) fn probe(socket: &mut Socket) -> io::Result<Abilities> {
    let mut batch = Batch::new();
    let table = put_table(&mut batch, PROBE, true);
    let queue = put_queue_rule(&mut batch, PROBE);
    delete_table(&mut batch, ABSENT);
    let outcome = batch.send(socket)?;
    let owners = outcome.error_of(table).is_none();
    Ok(Abilities { owners, queue: !owners || outcome.error_of(queue) != Some(libc::ENOENT) })
}

/// Adds the creation of a table, or the take-over of one whose owner has gone. Returns the message index: a kernel
/// without table owners, or without tables that outlive them, refuses that message.
pub(super) fn put_table(batch: &mut Batch, name: &CStr, is_owned: bool) -> usize {
    let flags = if is_owned { nft::OWNED } else { 0 };
    batch.part_of_table(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, name, |message| {
        message.put(nft::NFTA_TABLE_FLAGS, &flags.to_be_bytes());
    })
}

impl CompiledTable {
    /// Reads the draft. The caller must find out whether another program changed it meanwhile.
    pub(super) fn read(socket: &mut Socket) -> io::Result<Self> {
        let mut parts = Vec::new();
        let mut sets = Vec::new();
        let kinds = [
            (libc::NFT_MSG_GETOBJ, libc::NFT_MSG_NEWOBJ, OBJECT),
            (libc::NFT_MSG_GETCHAIN, libc::NFT_MSG_NEWCHAIN, CHAIN),
            (libc::NFT_MSG_GETSET, libc::NFT_MSG_NEWSET, SET),
        ];
        for (get, command, selected) in kinds {
            nft::dump_objects(socket, get, DRAFT, None, |attributes| {
                let mut selected = copy_attributes(attributes, selected);
                if command == libc::NFT_MSG_NEWSET {
                    sets.extend(attributes.first(NFTA_SET_NAME).map(<[u8]>::to_vec));
                    // The attribute is only required; the rules name their sets.
                    put_attribute(&mut selected, NFTA_SET_ID, &(sets.len() as u32).to_be_bytes());
                }
                parts.push(TableMessage { command, attributes: selected });
            })?;
        }
        for set in &sets {
            parts.append(&mut read_elements(socket, DRAFT, set)?);
        }
        nft::dump_objects(socket, libc::NFT_MSG_GETRULE, DRAFT, None, |attributes| {
            parts.push(TableMessage {
                command: libc::NFT_MSG_NEWRULE,
                attributes: copy_rule(attributes),
            });
        })?;
        Ok(Self { messages: parts })
    }

    /// Number of rules.
    pub(super) fn rule_count(&self) -> usize {
        self.messages.iter().filter(|part| part.command == libc::NFT_MSG_NEWRULE).count()
    }

    /// Adds the creation of everything in the table, which must exist and be empty.
    pub(super) fn add_to_batch(&self, batch: &mut Batch) {
        self.messages.iter().for_each(|message| message.add_to_batch(batch));
    }

    /// The elements of our present table in the sets that this table has as well: what packets and earlier transactions
    /// put there, with their remaining time.
    pub(super) fn read_present_elements(
        &self,
        socket: &mut Socket,
    ) -> io::Result<Vec<TableMessage>> {
        let sets = self.messages.iter().filter(|part| part.command == libc::NFT_MSG_NEWSET);
        let names = sets.filter_map(|set| Attributes::new(&set.attributes).first(NFTA_SET_NAME));
        let mut elements = Vec::new();
        // Anonymous sets are parts of rules, and their names say only in which order they were made.
        let is_retained =
            |name: &&[u8]| !NOT_RETAINED.contains(name) && !name.starts_with(ANONYMOUS);
        for set in names.filter(is_retained) {
            let read = repeat_interrupted(|| read_elements(socket, TABLE, set));
            elements.append(&mut or_absent(read)?.unwrap_or_default());
        }
        Ok(elements)
    }
}

impl TableMessage {
    pub(super) fn add_to_batch(&self, batch: &mut Batch) {
        let order = if self.command == libc::NFT_MSG_NEWRULE { libc::NLM_F_APPEND } else { 0 };
        batch.part_of_table(self.command, libc::NLM_F_CREATE | order, TABLE, |message| {
            message.put_raw(&self.attributes);
        });
    }

    pub(super) fn len(&self) -> usize {
        self.attributes.len()
    }
}

/// The elements of a set, as messages that add them.
fn read_elements(socket: &mut Socket, table: &CStr, set: &[u8]) -> io::Result<Vec<TableMessage>> {
    let (command, mut elements) = (libc::NFT_MSG_NEWSETELEM, Vec::new());
    let of_set = Some((NFTA_SET_ELEM_LIST_SET, set));
    nft::dump_objects(socket, libc::NFT_MSG_GETSETELEM, table, of_set, |attributes| {
        elements.push(TableMessage { command, attributes: copy_attributes(attributes, ELEMENTS) });
    })?;
    Ok(elements)
}

/// Copies a rule without the time-outs of `add @set` that are 0. The kernel reports 0 if there is no time-out, but
/// refuses it for a set without time-outs (`nft_dynset_init`).
fn copy_rule(rule: &Attributes<'_>) -> Vec<u8> {
    let nested = |kind: u16| kind | libc::NLA_F_NESTED as u16;
    let mut expressions = Vec::new();
    for (_, expression) in rule.nested(NFTA_RULE_EXPRESSIONS).into_iter().flatten() {
        let expression = Attributes::new(expression);
        let mut copy = copy_attributes(&expression, &[NFTA_EXPR_NAME]);
        let is_set_update = expression.first(NFTA_EXPR_NAME) == Some(b"dynset\0");
        if let Some(data) = expression.first(NFTA_EXPR_DATA) {
            let is_absent = |(kind, attribute): &(u16, &[u8])| {
                is_set_update && *kind == NFTA_DYNSET_TIMEOUT && attribute.ends_with(&[0; 8])
            };
            let present = Attributes::new(data).raw().filter(|one| !is_absent(one));
            let data: Vec<u8> = present.flat_map(|(_, attribute)| attribute).copied().collect();
            put_attribute(&mut copy, nested(NFTA_EXPR_DATA), &data);
        }
        put_attribute(&mut expressions, nested(NFTA_LIST_ELEM), &copy);
    }
    let mut copy = copy_attributes(rule, RULE);
    put_attribute(&mut copy, nested(NFTA_RULE_EXPRESSIONS), &expressions);
    copy
}

/// The attributes of these types, unchanged.
fn copy_attributes(attributes: &Attributes<'_>, selected: &[u16]) -> Vec<u8> {
    let whole = attributes.clone().raw();
    whole
        .filter(|(kind, _)| selected.contains(kind))
        .flat_map(|(_, bytes)| bytes)
        .copied()
        .collect()
}
