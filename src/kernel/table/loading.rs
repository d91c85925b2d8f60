//! Loads our table: `nft` compiles the rules' text, and the result replaces the present table in one transaction.
//!
//! A failure because another program changes the rules at the same time is [`NetfilterError::ConcurrentChange`].

use std::{ffi::CStr, io};

use super::{
    Table,
    compiled::{self, CompiledTable, DRAFT, TableMessage},
    queue_rules::{self, queue_to_target, try_queue_rule},
};
use crate::kernel::{
    NetfilterError, broker,
    netlink::{
        Socket,
        nft::{self, Batch},
    },
    parameters::{Backend, QueueStatement, TABLE},
};

// From linux/netfilter/nf_tables.h; libc lacks them.
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_CT_HELPER_L3PROTO: u16 = 2;
/// As the kernel reports it: a big-endian u16.
const BOTH_FAMILIES: [u8; 2] = (libc::NFPROTO_INET as u16).to_be_bytes();

/// Messages of nft if another program interferes.
const BUSY_MESSAGES: [&str; 2] = ["Resource busy", "Interrupted system call"];
/// Up to so many bytes of elements fit a transaction, besides the table itself.
const MAX_RETAINED: usize = compiled::BUFFER as usize / 2;
/// Number of attempts to read a draft; another transaction may interrupt each.
const MAX_READS: usize = 100;

impl Table {
    /// Compiles `text` with `nft`. Leaves a draft in the kernel.
    pub(super) fn compile(&mut self, text: &str) -> Result<CompiledTable, NetfilterError> {
        let before = nft::generation(&mut self.socket).map_err(netlink_failed)?;
        nft(&["--file", "-"], &compiled::as_draft(text)).map_err(|error| match error {
            NetfilterError::RulesRefused { message }
                if BUSY_MESSAGES.iter().any(|words| message.contains(words))
                    || nft::generation(&mut self.socket).is_ok_and(|now| now != before) =>
            {
                NetfilterError::ConcurrentChange { message }
            }
            // Without `queue` statements the kernel must support everything in the rules.
            NetfilterError::RulesRefused { message }
                if self.parameters.backend == Backend::Conntrack
                    && self.statement != QueueStatement::Native
                    && message.contains("No such file or directory") =>
            {
                no_helper()
            }
            other => other,
        })?;
        let compiled = self.read_draft();
        if compiled.is_err() {
            remove_draft(&mut self.socket);
        }
        compiled
    }

    fn read_draft(&mut self) -> Result<CompiledTable, NetfilterError> {
        for _ in 0..MAX_READS {
            match CompiledTable::read(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(netlink_failed(error));
                }
                // A draft that still exists at the end existed all the time.
                Ok(compiled)
                    if nft::has_table(&mut self.socket, DRAFT).map_err(netlink_failed)? =>
                {
                    check_helper(&mut self.socket, DRAFT)?;
                    return Ok(compiled);
                }
                _ => break,
            }
        }
        Err(concurrent_change("the draft of it was removed or changed"))
    }

    /// Replaces the present table, if any, by `compiled`. Removes the draft if `compiled` `is_new`. `retains_elements`
    /// says whether the new table gets the elements of the present one.
    pub(super) fn replace(
        &mut self,
        compiled: &CompiledTable,
        is_new: bool,
        mut retains_elements: bool,
    ) -> Result<(), NetfilterError> {
        let mut is_owned = self.commits.can_own();
        let mut has_asked_for_module = false;
        loop {
            let mut batch = Batch::new();
            if is_new {
                compiled::delete_table(&mut batch, DRAFT);
            }
            let mut retained = Vec::new();
            if nft::fingerprint(&mut self.socket).map_err(netlink_failed)?.is_some() {
                if retains_elements {
                    retained =
                        compiled.read_present_elements(&mut self.socket).map_err(netlink_failed)?;
                    retains_elements =
                        retained.iter().map(TableMessage::len).sum::<usize>() < MAX_RETAINED;
                }
                compiled::delete_table(&mut batch, nft::TABLE);
            } else {
                retains_elements = false;
            }
            let table = compiled::put_table(&mut batch, nft::TABLE, is_owned);
            compiled.add_to_batch(&mut batch);
            let before = batch.len();
            retained
                .iter()
                .filter(|_| retains_elements)
                .for_each(|message| message.add_to_batch(&mut batch));
            let elements = before..batch.len();
            let queueing = (self.statement == QueueStatement::Xtables)
                .then(|| queue_to_target(&mut batch, &self.parameters));
            let outcome = self.commits.send_acknowledged(&mut batch, &mut self.socket);
            let outcome = outcome.map_err(netlink_failed)?;
            let Some((failed, errno)) = outcome.first_failure() else { break };
            match errno {
                // Another version's sets may be different.
                _ if elements.contains(&failed) => retains_elements = false,
                libc::EOPNOTSUPP | libc::EINVAL if failed == table && is_owned => is_owned = false,
                libc::ENOENT if queueing == Some(failed) && !has_asked_for_module => {
                    has_asked_for_module = true;
                    try_queue_rule(&self.parameters, &mut self.socket)?;
                }
                _ if queueing.is_some_and(|first| failed >= first) => {
                    return Err(queue_rules::no_queue(errno));
                }
                libc::EPERM if failed < table => {
                    return Err(concurrent_change(
                        "another process owns a table of that name, and has not ended yet",
                    ));
                }
                _ => {
                    let refusal = io::Error::from_raw_os_error(errno);
                    return Err(concurrent_change(&refusal.to_string()));
                }
            }
        }
        let (wanted, mut rules) = (compiled.rule_count(), 0);
        nft::for_each_rule(&mut self.socket, |_| rules += 1).map_err(netlink_failed)?;
        check_helper(&mut self.socket, nft::TABLE)?;
        let fingerprint = nft::fingerprint(&mut self.socket).map_err(netlink_failed)?;
        if fingerprint.is_none() || rules != wanted {
            return Err(concurrent_change("it was removed or changed at once"));
        }
        (self.fingerprint, self.transactions_by_others) = (fingerprint, None);
        (self.is_owned, self.has_retained_elements) = (is_owned, retains_elements);
        Ok(())
    }
}

/// Checks that the helper in `table`, if any, covers IPv4 and IPv6. nf_tables takes the families that are registered
/// (`nft_ct_helper_obj_init`), and another daemon may have removed one.
fn check_helper(socket: &mut Socket, table: &CStr) -> Result<(), NetfilterError> {
    let mut is_whole = true;
    let dumped = nft::dump_objects(socket, libc::NFT_MSG_GETOBJ, table, None, |object| {
        let helper = object.nested(NFTA_OBJ_DATA);
        let families = helper.and_then(|helper| helper.first(NFTA_CT_HELPER_L3PROTO));
        is_whole &= families.is_none_or(|families| families == BOTH_FAMILIES);
    });
    match dumped {
        Ok(()) if is_whole => Ok(()),
        Ok(()) => Err(concurrent_change("another ftp-alg removed the conntrack helper meanwhile")),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            Err(concurrent_change("other programs change the rules"))
        }
        Err(error) => Err(netlink_failed(error)),
    }
}

/// Removes a draft that could not replace the table.
pub(super) fn remove_draft(socket: &mut Socket) {
    let mut batch = Batch::new();
    compiled::delete_table(&mut batch, DRAFT);
    if let Err(error) = batch.send(socket) {
        tracing::warn!("the draft of table inet {TABLE} is not removed: {error}");
    }
}

fn concurrent_change(message: &str) -> NetfilterError {
    NetfilterError::ConcurrentChange { message: message.to_owned() }
}

fn no_helper() -> NetfilterError {
    NetfilterError::FeatureMissing {
        what: "backend \"conntrack\"".into(),
        feature: "nfnetlink_cthelper and no nf_conntrack_sane, one of which expectations need",
        remedy: "load one of them with modprobe, or set backend = \"nftables\" in [pinhole]",
    }
}

pub(super) fn netlink_failed(error: io::Error) -> NetfilterError {
    NetfilterError::system("nf_tables", error)
}

/// Runs `nft` on `text`.
pub(in crate::kernel) fn nft(arguments: &[&str], text: &str) -> Result<(), NetfilterError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => NetfilterError::NftMissing,
        _ => NetfilterError::system("nft", error),
    };
    let finished = broker::run("nft", arguments, text).map_err(failed)?;
    if finished.success {
        return Ok(());
    }
    let message = finished.stderr;
    if message.contains("Operation not permitted") {
        return Err(NetfilterError::NotPermitted { what: format!("table inet {TABLE}") });
    }
    if message.contains("cache initialization failed") || message.contains("not supported by") {
        return Err(NetfilterError::FeatureMissing {
            what: format!("table inet {TABLE}"),
            feature: "nf_tables",
            remedy: "load it with `modprobe nf_tables`",
        });
    }
    // The other lines show a position in a text that the operator does not see.
    let message = message.lines().next().unwrap_or("no reason given").to_owned();
    Err(NetfilterError::RulesRefused { message })
}
