//! Our nftables table: loads it, watches it, removes it. Knows nothing of its rules.

mod commits;
pub(super) mod compiled;
mod expectations;
mod heartbeat;
pub(super) mod helper;
pub(super) mod loading;
mod pinholes;
pub(super) mod queue_rules;
mod ranges;
pub mod readers;
pub mod rule_files;

pub use commits::{ChangeNotices, Commits};
pub use expectations::Expectations;
pub use heartbeat::{HEARTBEAT_TIMEOUT, Heartbeat};
pub use pinholes::{OpenPinhole, PinholeSets};

use std::{io, sync::Arc, thread, time::Duration};

use ftp_alg_firewall::IpVersion;
use serde::{Deserialize, Serialize};

use super::{
    NetfilterError, RuleParameters,
    broker::run_for_output,
    legacy_iptables::uses_legacy,
    netlink::{
        Socket,
        nft::{self, Batch, TableFingerprint},
        or_absent,
    },
    parameters::{Backend, Learned, QueueStatement, TABLE},
};
use compiled::CompiledTable;
use helper::{OwnHelper, remove_scanner_helper};
use loading::{netlink_failed, remove_draft};
use rule_files::{render_nftables, with_own_helper};

/// The loaded table `inet ftp_alg`; removed on drop.
#[derive(Debug)]
pub struct Table {
    parameters: RuleParameters,
    statement: QueueStatement,
    /// For the removal: opened in the table's namespace, with full capabilities.
    socket: Socket,
    /// Its fingerprint when it was loaded; `None` if there is nothing to remove.
    fingerprint: Option<TableFingerprint>,
    /// The table's helper object, if it is ours.
    helper: Option<OwnHelper>,
    /// Our transactions that leave the fingerprint as it is.
    commits: Commits,
    /// Number of others' transactions when the table was last found intact.
    transactions_by_others: Option<u32>,
    /// The compiled table, if this process has loaded it.
    compiled: Option<Arc<CompiledTable>>,
    /// Whether only we can change it.
    is_owned: bool,
    /// Whether it has the elements of the table that it replaced.
    has_retained_elements: bool,
    /// What was known of the operator's rules when it was loaded.
    learned: Arc<Learned>,
}

/// Number and length of waits for other programs that change the rules while ours are loaded.
const LOAD_ATTEMPTS: (u32, Duration) = (200, Duration::from_millis(20));

/// What has happened to the table since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableCondition {
    /// It is unchanged.
    Intact,
    /// It is gone, as after `nft flush ruleset`.
    Gone,
    /// Rules are missing or were added, as after `nft flush table`.
    Changed,
    /// Another table has replaced it: a saved copy that was loaded, or the table of another ftp-alg.
    Replaced,
}

/// The text from which a table was loaded, and its fingerprint, by which a restarted daemon recognises it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    text: String,
    statement: QueueStatement,
    shape: TableFingerprint,
    #[serde(flatten)]
    learned: Learned,
}

impl TableRecord {
    /// What was known of the operator's rules.
    pub fn into_learned(self) -> Learned {
        self.learned
    }
}

impl Table {
    /// Loads the table in place of a present one, with the first statement for queueing that this kernel accepts.
    /// Trying saves a probe, because each transaction costs grace periods of the kernel. If the operator has loaded
    /// rules that queue, the table does not queue.
    ///
    /// The socket of `commits` owns the table, if there is one and the kernel supports owners (Linux 6.9): no other
    /// program can remove or change the table.
    pub fn install(parameters: &RuleParameters, commits: &Commits) -> Result<Self, NetfilterError> {
        Self::install_over(parameters, commits, false)
    }

    /// As [`Table::install`]. If the present table is that of `record`, all that is open there stays open.
    pub fn install_in_place_of(
        record: &TableRecord,
        parameters: &RuleParameters,
        commits: &Commits,
    ) -> Result<Self, NetfilterError> {
        let mut socket = Socket::open().map_err(netlink_failed)?;
        let present = nft::fingerprint(&mut socket).map_err(netlink_failed)?;
        // The program's pinholes have the marks of the rules that they were opened for.
        let text = render_nftables(parameters, record.statement);
        let has_same_marks = mark_definitions(&record.text).eq(mark_definitions(&text));
        Self::install_over(parameters, commits, has_same_marks && present == Some(record.shape))
    }

    fn install_over(
        parameters: &RuleParameters,
        commits: &Commits,
        retains_elements: bool,
    ) -> Result<Self, NetfilterError> {
        let statements: &[_] = match operator_queues() {
            true => &[QueueStatement::Operator],
            false => commits.queue_statements(),
        };
        let (limit, logs) = (parameters.max_encrypted, parameters.logs_data);
        let mut refusal = String::new();
        // The kernel may lack nft_connlimit, nft_log, or both.
        for (limit_tried, logs_tried) in
            [(limit, logs), (None, logs), (limit, false), (None, false)]
        {
            let parameters =
                parameters.clone().with_max_encrypted(limit_tried).with_data_log(logs_tried);
            for statement in statements {
                match Self::install_with(&parameters, *statement, commits, retains_elements) {
                    Err(NetfilterError::RulesRefused { message }) => refusal = message,
                    loaded => {
                        if loaded.is_ok() && limit_tried != limit {
                            tracing::warn!(
                                "the kernel lacks nft_connlimit: data connections of encrypted sessions have no limit"
                            );
                        }
                        return loaded;
                    }
                }
            }
        }
        Err(NetfilterError::RulesRefused { message: refusal })
    }

    /// Whether a table with this name is loaded, by whomever.
    pub fn is_loaded() -> Result<bool, NetfilterError> {
        let mut socket = Socket::open().map_err(netlink_failed)?;
        Ok(nft::fingerprint(&mut socket).map_err(netlink_failed)?.is_some())
    }

    /// An error that names the running daemon that the loaded table belongs to, if that does not read the queues of
    /// `parameters`.
    pub fn other_daemon(
        parameters: &RuleParameters,
    ) -> Result<Option<NetfilterError>, NetfilterError> {
        let mut socket = Socket::open().map_err(netlink_failed)?;
        readers::find_other_daemon(&mut socket, parameters).map_err(netlink_failed)
    }

    /// Takes over the table of an earlier daemon, with all open pinholes; `None` if it differs from its record, or from
    /// the table that would be loaded now. `commits` as in [`Table::install`].
    pub fn adopt(
        parameters: &RuleParameters,
        imprint: &TableRecord,
        commits: &Commits,
    ) -> Result<Option<Self>, NetfilterError> {
        let TableRecord { statement, shape, ref text, .. } = *imprint;
        let mut socket = Socket::open().map_err(netlink_failed)?;
        if nft::fingerprint(&mut socket).map_err(netlink_failed)? != Some(shape)
            || operator_queues() != (statement == QueueStatement::Operator)
        {
            return Ok(None);
        }
        // The kernel may lack nft_connlimit.
        let limit = parameters.max_encrypted.filter(|_| text.contains("ct count over"));
        let parameters = &parameters.clone().with_max_encrypted(limit);
        let mut table = Self::unloaded(parameters, statement, commits)?;
        if table.text() != *text {
            // The rules that refer to its helper still exist.
            table.leave_in_kernel();
            return Ok(None);
        }
        // A table that had no owner cannot get one later.
        table.is_owned = commits.can_own() && {
            let mut batch = Batch::new();
            compiled::put_table(&mut batch, nft::TABLE, true);
            let outcome = commits.send_acknowledged(&mut batch, &mut table.socket);
            outcome.map_err(netlink_failed)?.first_failure().is_none()
        };
        (table.fingerprint, table.has_retained_elements) = (Some(shape), true);
        Ok(Some(table))
    }

    /// A table that is not loaded yet, with its helper registered.
    fn unloaded(
        parameters: &RuleParameters,
        statement: QueueStatement,
        commits: &Commits,
    ) -> Result<Self, NetfilterError> {
        Ok(Self {
            parameters: parameters.clone(),
            statement,
            socket: Commits::open_socket().map_err(netlink_failed)?,
            fingerprint: None,
            helper: OwnHelper::register().map_err(helper_failed)?,
            commits: commits.clone(),
            transactions_by_others: None,
            compiled: None,
            is_owned: false,
            has_retained_elements: false,
            learned: parameters.learned.now(),
        })
    }

    /// Whether the table has the pinholes and translations of its predecessor.
    pub fn has_retained_elements(&self) -> bool {
        self.has_retained_elements
    }

    /// Whether its rules copy the first and the last packets of data connections.
    pub fn logs_data(&self) -> bool {
        self.parameters.logs_data
    }

    /// Whether no other program can remove or change it.
    pub fn is_owned(&self) -> bool {
        self.is_owned
    }

    /// The record by which [`Table::adopt`] recognises it.
    pub fn record(&self) -> Option<TableRecord> {
        let (text, statement) = (self.text(), self.statement);
        let learned = Learned::clone(&self.learned);
        self.fingerprint.map(|shape| TableRecord { text, statement, shape, learned })
    }

    /// As [`Table::install`], with a given way to queue, and with the elements of the present table if
    /// `retains_elements`. Repeats while other programs interfere. The helper stays registered from the first attempt
    /// to the last, because daemons that remove it between attempts make each other's attempts fail.
    pub fn install_with(
        parameters: &RuleParameters,
        statement: QueueStatement,
        commits: &Commits,
        retains_elements: bool,
    ) -> Result<Self, NetfilterError> {
        let mut table = Self::unloaded(parameters, statement, commits)?;
        let (attempts, pause) = LOAD_ATTEMPTS;
        let mut loaded = table.load_once(retains_elements);
        for _ in 1..attempts {
            let Err(NetfilterError::ConcurrentChange { .. }) = loaded else { break };
            thread::sleep(pause);
            loaded = table.load_once(retains_elements);
        }
        loaded.map(|()| table)
    }

    /// Loads it once. If it is compiled already, nft need not run.
    fn load_once(&mut self, retains_elements: bool) -> Result<(), NetfilterError> {
        let learned = self.parameters.learned.now();
        if let Some(helper) = &mut self.helper {
            helper.register_missing().map_err(helper_failed)?;
        }
        let (compiled, is_new) = match &self.compiled {
            Some(compiled) => (Arc::clone(compiled), false),
            None => {
                let text = self.text();
                let mut compiled = self.compile(&text);
                if let (Some(helper), Err(NetfilterError::RulesRefused { .. })) =
                    (&mut self.helper, &compiled)
                {
                    // Another daemon may have removed it, and registered it again since.
                    helper.register_missing().map_err(helper_failed)?;
                    compiled = self.compile(&text);
                }
                let compiled = compiled.map_err(|error| explain(self.helper.as_mut(), error))?;
                (Arc::new(compiled), true)
            }
        };
        let loaded = self.replace(&compiled, is_new, retains_elements);
        if loaded.is_err() && is_new {
            remove_draft(&mut self.socket);
        }
        loaded?;
        (self.compiled, self.learned) = (Some(compiled), learned);
        Ok(())
    }

    /// The text to load.
    fn text(&self) -> String {
        let text = render_nftables(&self.parameters, self.statement);
        if self.helper.is_some() { with_own_helper(&text) } else { text }
    }

    /// Its condition. Checks it only if others have changed nf_tables since it was last found intact.
    pub fn condition(&mut self) -> Result<TableCondition, NetfilterError> {
        let others = self.commits.count_by_others(&mut self.socket).map_err(netlink_failed)?;
        if others.is_some() && others == self.transactions_by_others {
            return Ok(TableCondition::Intact);
        }
        self.transactions_by_others = None;
        let condition = self.check_condition()?;
        // Counted before the check: a change in between shows in the next one.
        self.transactions_by_others = others.filter(|_| condition == TableCondition::Intact);
        Ok(condition)
    }

    /// As [`Table::condition`], but always checks.
    pub fn check_condition(&mut self) -> Result<TableCondition, NetfilterError> {
        let now = nft::fingerprint(&mut self.socket).map_err(netlink_failed)?;
        Ok(match now {
            None => TableCondition::Gone,
            Some(_) if now == self.fingerprint => TableCondition::Intact,
            Some(now) if self.fingerprint.is_some_and(|then| then.handle == now.handle) => {
                TableCondition::Changed
            }
            Some(_) => TableCondition::Replaced,
        })
    }

    /// Loads it again, without the pinholes that were open.
    pub fn restore(&mut self) -> Result<(), NetfilterError> {
        self.load_once(false)
    }

    /// Whether more is known of the operator's rules by now.
    pub fn is_outdated(&self) -> bool {
        self.learned != self.parameters.learned.now()
    }

    /// Loads it with what its parameters have learned by now. All that is open stays open.
    pub fn update(&mut self) -> Result<(), NetfilterError> {
        self.compiled = None;
        self.load_once(true)
    }

    /// The parameters it was loaded for.
    pub fn parameters(&self) -> &RuleParameters {
        &self.parameters
    }

    /// How it queues packets.
    pub fn statement(&self) -> QueueStatement {
        self.statement
    }

    /// Whether packets are dropped, to be retransmitted, while the heartbeat exists and no daemon reads. With the
    /// operator's own queueing they pass.
    pub fn holds_packets(&self) -> bool {
        self.statement != QueueStatement::Operator
    }

    /// Leaves the table in the kernel, for a daemon that will be restarted.
    pub fn leave_in_kernel(mut self) {
        self.fingerprint = None;
        if let Some(helper) = self.helper.take() {
            helper.leave_in_kernel();
        }
    }

    /// Removes the table, unless another one has replaced it.
    pub fn remove(mut self) -> Result<(), NetfilterError> {
        self.delete()
    }

    fn delete(&mut self) -> Result<(), NetfilterError> {
        let Some(loaded) = self.fingerprint.take() else { return Ok(()) };
        let there = nft::fingerprint(&mut self.socket).map_err(netlink_failed)?;
        if there.is_none_or(|there| there.handle != loaded.handle) {
            return Ok(());
        }
        let mut batch = Batch::new();
        compiled::delete_table(&mut batch, nft::TABLE);
        let outcome = self.commits.send_acknowledged(&mut batch, &mut self.socket);
        or_absent(outcome.map_err(netlink_failed)?.result()).map_err(|error| {
            NetfilterError::system(format!("removal of table inet {TABLE}"), error)
        })?;
        if self.parameters.backend == Backend::Conntrack && self.helper.is_none() {
            remove_scanner_helper(&self.parameters.gateway.control_ports).map_err(helper_failed)?;
        }
        self.helper = None;
        Ok(())
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if let Err(error) = self.delete() {
            tracing::warn!("{error}");
        }
    }
}

/// The lines of the text that define marks.
fn mark_definitions(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| line.starts_with("define ") && line.contains(" 0x"))
}

/// Whether the output of `ftp-alg rules iptables` is loaded, in any variant of iptables.
fn operator_queues() -> bool {
    let (table, chain) = ("mangle", "FTP_ALG_CONTROL");
    // To run nft takes a tenth of the daemon's start.
    let tables =
        Socket::open().and_then(|mut socket| nft::table_names(&mut socket, libc::NFPROTO_IPV4));
    let may_have_chain = tables.map_or(true, |tables| tables.iter().any(|name| name == table));
    may_have_chain && run_for_output("nft", &["list", "chain", "ip", table, chain]).is_ok()
        || uses_legacy(IpVersion::V4).unwrap_or(false)
            && run_for_output("iptables-legacy-save", &[]).is_ok_and(|rules| rules.contains(chain))
}

/// Explains why rules do not compile: another daemon may have removed the helper before they referred to it. Then it is
/// registered again.
fn explain(helper: Option<&mut OwnHelper>, error: NetfilterError) -> NetfilterError {
    match helper.map(OwnHelper::register_missing).transpose() {
        Ok(Some(true)) => NetfilterError::ConcurrentChange { message: error.to_string() },
        Ok(_) => error,
        Err(failed) => helper_failed(failed),
    }
}

fn helper_failed(error: io::Error) -> NetfilterError {
    NetfilterError::system("conntrack helper ftp-alg", error)
}
