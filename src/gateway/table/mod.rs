//! Our nftables table: has it loaded, watches it, removes it. Knows nothing of its rules.

mod commits;
pub(super) mod compiled;
mod elements;
mod expectations;
mod heartbeat;
mod helper;
pub(super) mod loading;
mod notices;
mod other_daemon;
mod pinholes;
pub mod readers;
pub mod rules;

pub use commits::Commits;
pub use expectations::Expectations;
pub use heartbeat::{HEARTBEAT_TIMEOUT, Heartbeat};
pub use notices::ChangeNotices;
pub use pinholes::{OpenPinhole, Pinholes};

use std::{io, sync::Arc, thread, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Backend, GatewayError, QueueStatement, RuleParameters,
    broker::programs::output_of,
    ip_version::{IpVersion, uses_legacy},
    netlink::{
        Socket,
        nft::{self, Batch, TableFingerprint},
    },
    parameters::TABLE,
};
use compiled::CompiledTable;
use helper::{OwnHelper, take_off_scanner_helper};
use loading::{LoadedTable, TableLoader, netlink_failed, remove_draft};
use rules::{render_nftables, with_own_helper};

/// The table `inet ftp_alg`, loaded; removed when dropped.
#[derive(Debug)]
pub struct Table {
    parameters: RuleParameters,
    statement: QueueStatement,
    /// For the removal: of the namespace that the table is in, and opened with full rights.
    socket: Socket,
    /// As it was loaded; `None` means that there is nothing to remove.
    shape: Option<TableFingerprint>,
    /// What the table's helper object is, where it is ours.
    helper: Option<OwnHelper>,
    /// The transactions of ours that leave the table's shape as it is.
    commits: Commits,
    /// How many transactions others had made when the table was last found intact.
    others: Option<u32>,
    /// What it was made of, where this process has loaded it.
    compiled: Option<Arc<CompiledTable>>,
    /// Whether others can change it.
    is_owned: bool,
}

/// How often, and how long, to wait for other programs that change the rules while ours are loaded.
const PATIENCE: (u32, Duration) = (200, Duration::from_millis(20));

/// What became of the table since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableCondition {
    /// It is as it was.
    Intact,
    /// It is not there any more, as after `nft flush ruleset`.
    Gone,
    /// Rules are missing or were added, as after `nft flush table`.
    Changed,
    /// Another one has taken its place: a copy that was saved and loaded, or that of another ftp-alg.
    Replaced,
}

/// What a table was loaded from and what it then was, by which a daemon that is started again knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    text: String,
    statement: QueueStatement,
    shape: TableFingerprint,
}

impl Table {
    /// Loads the table, in the place of one that is already there, and queues as this kernel can:
    /// what it cannot is seen by trying, as each transaction costs grace periods of the kernel.
    /// Where the operator has loaded rules that queue, these do it.
    pub fn install(parameters: &RuleParameters) -> Result<Self, GatewayError> {
        Self::install_for(parameters, &Commits::default())
    }

    /// As [`Table::install`], for who makes and counts all transactions by `commits`, whose socket then owns it, if
    /// there is one and the kernel has such tables (Linux 6.9): no other program can remove or change it.
    pub fn install_for(
        parameters: &RuleParameters,
        commits: &Commits,
    ) -> Result<Self, GatewayError> {
        if operator_queues() {
            return Self::load(parameters, QueueStatement::Operator, commits, None);
        }
        let mut refused = None;
        for statement in QueueStatement::QUEUE_REASONS {
            match Self::load(parameters, statement, commits, None) {
                Err(GatewayError::RulesRefused { message }) => refused = Some(message),
                other => return other,
            }
        }
        Err(GatewayError::RulesRefused { message: refused.unwrap_or_default() })
    }

    /// Whether a table of this name is loaded, whoever did it.
    pub fn is_there() -> Result<bool, GatewayError> {
        let mut socket = Socket::open().map_err(netlink_failed)?;
        Ok(nft::fingerprint(&mut socket).map_err(netlink_failed)?.is_some())
    }

    /// The daemon that the loaded table belongs to, as an error, if that is another than the one that reads the queues of
    /// `parameters`, and runs.
    pub fn other_daemon(parameters: &RuleParameters) -> Result<Option<GatewayError>, GatewayError> {
        let mut socket = Socket::open().map_err(netlink_failed)?;
        other_daemon::find(&mut socket, parameters).map_err(netlink_failed)
    }

    /// As [`Table::rival`], of the daemon whose table this is.
    pub fn other_daemon_now(&self) -> Result<Option<GatewayError>, GatewayError> {
        Self::other_daemon(&self.parameters)
    }

    /// Takes over the table that an earlier daemon left, with all that is open in it; `None` if it is not
    /// as `imprint` says, or not what would be loaded now. `commits` as in [`Table::install_for`].
    pub fn adopt(
        parameters: &RuleParameters,
        imprint: &TableRecord,
        commits: &Commits,
    ) -> Result<Option<Self>, GatewayError> {
        let TableRecord { statement, shape, ref text } = *imprint;
        let mut socket = Socket::open().map_err(netlink_failed)?;
        compiled::prepare(&socket);
        if nft::fingerprint(&mut socket).map_err(netlink_failed)? != Some(shape)
            || operator_queues() != (statement == QueueStatement::Operator)
        {
            return Ok(None);
        }
        let helper = OwnHelper::register().map_err(helper_failed)?;
        if rules(parameters, statement, helper.as_ref()) != *text {
            // The rules that refer to it are still there.
            helper.into_iter().for_each(OwnHelper::set_keep);
            return Ok(None);
        }
        // What nobody owned before cannot be owned any more.
        let is_owned = commits.can_own() && {
            let mut batch = Batch::new();
            compiled::own_table(&mut batch, true);
            let outcome = commits.send_acknowledged(&mut batch, &mut socket);
            outcome.map_err(netlink_failed)?.first_error().is_none()
        };
        Ok(Some(Self {
            parameters: parameters.clone(),
            statement,
            socket,
            shape: Some(shape),
            helper,
            commits: commits.clone(),
            others: None,
            compiled: None,
            is_owned,
        }))
    }

    /// Whether no other program can remove or change it.
    pub fn is_owned(&self) -> bool {
        self.is_owned
    }

    /// By what [`Table::adopt`] knows it.
    pub fn record(&self) -> Option<TableRecord> {
        let text = rules(&self.parameters, self.statement, self.helper.as_ref());
        let statement = self.statement;
        self.shape.map(|shape| TableRecord { text, statement, shape })
    }

    /// As [`Table::install`], queueing as told.
    pub fn install_with(
        parameters: &RuleParameters,
        statement: QueueStatement,
    ) -> Result<Self, GatewayError> {
        Self::load(parameters, statement, &Commits::default(), None)
    }

    /// Loads it, from `compiled` if it is that, and tries again while other programs are in the way.
    fn load(
        parameters: &RuleParameters,
        statement: QueueStatement,
        commits: &Commits,
        compiled: Option<&Arc<CompiledTable>>,
    ) -> Result<Self, GatewayError> {
        let (attempts, pause) = PATIENCE;
        for _ in 1..attempts {
            match Self::load_once(parameters, statement, commits, compiled) {
                Err(GatewayError::Disturbed { .. }) => thread::sleep(pause),
                other => return other,
            }
        }
        Self::load_once(parameters, statement, commits, compiled)
    }

    fn load_once(
        parameters: &RuleParameters,
        statement: QueueStatement,
        commits: &Commits,
        compiled: Option<&Arc<CompiledTable>>,
    ) -> Result<Self, GatewayError> {
        let mut socket = Socket::open().map_err(netlink_failed)?;
        compiled::prepare(&socket);
        let mut helper = OwnHelper::register().map_err(helper_failed)?;
        let mut loader = TableLoader { parameters, statement, socket: &mut socket, commits };
        let (compiled, is_new) = match compiled {
            Some(compiled) => (Arc::clone(compiled), false),
            None => {
                let text = rules(parameters, statement, helper.as_ref());
                let mut compiled = loader.compile(&text);
                if let (Some(helper), Err(GatewayError::RulesRefused { .. })) =
                    (&mut helper, &compiled)
                {
                    // Another daemon may have removed it, and made it again since.
                    helper.restore_missing().map_err(helper_failed)?;
                    compiled = loader.compile(&text);
                }
                (Arc::new(compiled.map_err(|error| explain(helper.as_mut(), error))?), true)
            }
        };
        let loaded = loader.put(&compiled, is_new);
        if loaded.is_err() && is_new {
            remove_draft(&mut socket);
        }
        let LoadedTable { shape, is_owned } = loaded?;
        Ok(Self {
            parameters: parameters.clone(),
            statement,
            socket,
            shape: Some(shape),
            helper,
            commits: commits.clone(),
            others: None,
            compiled: Some(compiled),
            is_owned,
        })
    }

    /// What became of it. Looks at it only if others have changed nf_tables since it was found intact.
    pub fn condition(&mut self) -> Result<TableCondition, GatewayError> {
        let others = self.commits.count_by_others(&mut self.socket).map_err(netlink_failed)?;
        if others.is_some() && others == self.others {
            return Ok(TableCondition::Intact);
        }
        self.others = None;
        let condition = self.check_condition()?;
        // Counted before the look: what came between shows in the next one.
        self.others = others.filter(|_| condition == TableCondition::Intact);
        Ok(condition)
    }

    /// As [`Table::condition`], whatever was found before.
    pub fn check_condition(&mut self) -> Result<TableCondition, GatewayError> {
        let now = nft::fingerprint(&mut self.socket).map_err(netlink_failed)?;
        Ok(match now {
            None => TableCondition::Gone,
            Some(_) if now == self.shape => TableCondition::Intact,
            Some(now) if self.shape.is_some_and(|then| then.handle == now.handle) => {
                TableCondition::Changed
            }
            Some(_) => TableCondition::Replaced,
        })
    }

    /// Loads it again, without what was open.
    pub fn restore(&mut self) -> Result<(), GatewayError> {
        let compiled = self.compiled.as_ref();
        let restored = Self::load_once(&self.parameters, self.statement, &self.commits, compiled)?;
        std::mem::replace(self, restored).set_keep();
        Ok(())
    }

    /// What it was made for.
    pub fn parameters(&self) -> &RuleParameters {
        &self.parameters
    }

    /// How it queues.
    pub fn statement(&self) -> QueueStatement {
        self.statement
    }

    /// Whether packets wait as long as there is a sign of life. With operators' queueing they pass where nobody reads.
    pub fn set_hold_packets(&self) -> bool {
        self.statement != QueueStatement::Operator
    }

    /// Leaves the table in the kernel, for a daemon that is to be restarted.
    pub fn set_keep(mut self) {
        self.shape = None;
        if let Some(helper) = self.helper.take() {
            helper.set_keep();
        }
    }

    /// Removes the table, and nothing else: not one that has taken its place.
    pub fn remove(mut self) -> Result<(), GatewayError> {
        self.delete()
    }

    fn delete(&mut self) -> Result<(), GatewayError> {
        let Some(loaded) = self.shape.take() else { return Ok(()) };
        let there = nft::fingerprint(&mut self.socket).map_err(netlink_failed)?;
        if there.is_none_or(|there| there.handle != loaded.handle) {
            return Ok(());
        }
        let mut batch = Batch::new();
        compiled::delete_table(&mut batch);
        let outcome = self.commits.send_acknowledged(&mut batch, &mut self.socket);
        let outcome = outcome.map_err(netlink_failed)?;
        match outcome.first_error() {
            None | Some(libc::ENOENT) => {}
            Some(error) => {
                let what = format!("removal of table inet {TABLE}");
                return Err(GatewayError::system(what, io::Error::from_raw_os_error(error)));
            }
        }
        if self.parameters.backend() == Backend::Conntrack && self.helper.is_none() {
            take_off_scanner_helper(self.parameters.control_ports()).map_err(helper_failed)?;
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

/// The text that is loaded.
fn rules(
    parameters: &RuleParameters,
    statement: QueueStatement,
    helper: Option<&OwnHelper>,
) -> String {
    let text = render_nftables(parameters, statement);
    if helper.is_some() { with_own_helper(&text) } else { text }
}

/// Whether what `ftp-alg rules iptables` prints is loaded, for either kind of iptables.
fn operator_queues() -> bool {
    let (table, chain) = ("mangle", "FTP_ALG_CONTROL");
    // To ask nft takes a tenth of the daemon's start.
    let tables = Socket::open().and_then(|mut socket| nft::tables(&mut socket, libc::NFPROTO_IPV4));
    let may_have_chain = tables.map_or(true, |tables| tables.iter().any(|name| name == table));
    may_have_chain && output_of("nft", &["list", "chain", "ip", table, chain]).is_ok()
        || uses_legacy(IpVersion::V4).unwrap_or(false)
            && output_of("iptables-legacy-save", &[]).is_ok_and(|rules| rules.contains(chain))
}

/// Why rules do not compile: perhaps another daemon removed the helper before they referred to it. It is there again then.
fn explain(helper: Option<&mut OwnHelper>, error: GatewayError) -> GatewayError {
    match helper.map(OwnHelper::restore_missing).transpose() {
        Ok(Some(true)) => GatewayError::Disturbed { message: error.to_string() },
        Ok(_) => error,
        Err(failed) => helper_failed(failed),
    }
}

fn helper_failed(error: io::Error) -> GatewayError {
    GatewayError::system("conntrack helper ftp-alg", error)
}
