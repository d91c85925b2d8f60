//! Our nftables table: loads it, adds what its text cannot say, removes it.
//!
//! Knows the names of the two chains that queue, and nothing else of the rules.

use std::{ffi::CStr, io, ptr::NonNull};

use nftnl::{Chain, MsgType, ProtoFamily, Rule, expr::Expression};
use nftnl_sys as sys;
use serde::{Deserialize, Serialize};

use super::{
    Commits, GatewayError,
    firewall::{Ip, uses_legacy},
    helper::OwnHelper,
    netlink::Socket,
    nft::{self, Batch, Shape},
    programs::{self, output_of},
    rules::{Backend, QueueStatement, RuleParameters, TABLE, render_nftables, with_own_helper},
};

/// Chains that queue: what passes without a reader, what waits for one.
const QUEUEING: [(&CStr, bool); 2] = [(c"inspect", true), (c"hold", false)];

/// The table `inet ftp_alg`, loaded; removed when dropped.
#[derive(Debug)]
pub struct Table {
    parameters: RuleParameters,
    statement: QueueStatement,
    /// For the removal: of the namespace that the table is in, and opened with full rights.
    socket: Socket,
    /// As it was loaded; `None` means that there is nothing to remove.
    shape: Option<Shape>,
    /// What the table's helper object is, where it is ours.
    helper: Option<OwnHelper>,
    watch: Watch,
}

/// What spares a look at the table.
#[derive(Debug, Default)]
struct Watch {
    /// The transactions of ours that leave the table's shape as it is.
    commits: Option<Commits>,
    /// How many transactions others had made when the table was last found intact.
    others: Option<u32>,
}

/// What became of the table since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is as it was.
    Intact,
    /// It is not there any more, as after `nft flush ruleset`.
    Gone,
    /// Rules are missing or were added, as after `nft flush table`.
    Changed,
    /// Another one has taken its place: most likely that of another ftp-alg.
    Replaced,
}

/// What a table was loaded from and what it then was, by which a daemon that is started again knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imprint {
    text: String,
    statement: QueueStatement,
    shape: Shape,
}

fn no_helper() -> GatewayError {
    GatewayError::FeatureMissing {
        what: "backend \"conntrack\"".into(),
        feature: "nfnetlink_cthelper and no nf_conntrack_sane, one of which expectations need",
        remedy: "load one of them with modprobe, or set backend = \"nftables\" in [pinhole]",
    }
}

pub(super) fn no_queue(errno: i32) -> GatewayError {
    match errno {
        libc::ENOENT | libc::EOPNOTSUPP => GatewayError::FeatureMissing {
            what: GatewayError::QUEUE_RULES.into(),
            feature: "nft_queue, and no nft_compat with xt_NFQUEUE",
            remedy: "load the output of `ftp-alg rules iptables` with iptables-restore --noflush \
                     first, then start ftp-alg again",
        },
        _ => GatewayError::system(GatewayError::QUEUE_RULES, io::Error::from_raw_os_error(errno)),
    }
}

impl Table {
    /// Loads the table, in the place of one that is already there, and queues as this kernel can:
    /// what it cannot is seen by trying, as each transaction costs grace periods of the kernel.
    /// Where the operator has loaded rules that queue, these do it.
    pub fn install(parameters: &RuleParameters) -> Result<Self, GatewayError> {
        if operator_queues() {
            return Self::install_with(parameters, QueueStatement::Operator);
        }
        let mut refused = None;
        for (parameters, statement) in parameters.ways() {
            match Self::install_with(&parameters, statement) {
                Err(GatewayError::RulesRefused { message }) => refused = Some(message),
                other => return other,
            }
        }
        Err(GatewayError::RulesRefused { message: refused.unwrap_or_default() })
    }

    /// Whether a table of this name is loaded, whoever did it.
    pub fn is_there() -> Result<bool, GatewayError> {
        let mut socket = Socket::open().map_err(netlink_failed)?;
        Ok(nft::shape(&mut socket).map_err(netlink_failed)?.is_some())
    }

    /// Takes over the table that an earlier daemon left, with all that is open in it; `None` if it is not
    /// as `imprint` says, or not what would be loaded now.
    pub fn adopt(
        parameters: &RuleParameters,
        imprint: &Imprint,
    ) -> Result<Option<Self>, GatewayError> {
        let Imprint { statement, shape, ref text } = *imprint;
        let mut socket = Socket::open().map_err(netlink_failed)?;
        if nft::shape(&mut socket).map_err(netlink_failed)? != Some(shape)
            || operator_queues() != (statement == QueueStatement::Operator)
        {
            return Ok(None);
        }
        let helper = OwnHelper::register().map_err(helper_failed)?;
        if rules(parameters, statement, helper.as_ref()) != *text {
            // The rules that refer to it are still there.
            helper.into_iter().for_each(OwnHelper::keep);
            return Ok(None);
        }
        let (parameters, shape) = (parameters.clone(), Some(shape));
        let watch = Watch::default();
        Ok(Some(Self { parameters, statement, socket, shape, helper, watch }))
    }

    /// By what [`Table::adopt`] knows it.
    pub fn imprint(&self) -> Option<Imprint> {
        let text = rules(&self.parameters, self.statement, self.helper.as_ref());
        let statement = self.statement;
        self.shape.map(|shape| Imprint { text, statement, shape })
    }

    /// As [`Table::install`], queueing as told.
    pub fn install_with(
        parameters: &RuleParameters,
        statement: QueueStatement,
    ) -> Result<Self, GatewayError> {
        let mut socket = Socket::open().map_err(netlink_failed)?;
        let helper = OwnHelper::register().map_err(helper_failed)?;
        let text = rules(parameters, statement, helper.as_ref());
        nft(&["--file", "-"], &text).map_err(|error| match error {
            // Without `queue` statements nothing else in the rules may be missing.
            GatewayError::RulesRefused { message }
                if parameters.backend() == Backend::Conntrack
                    && statement != QueueStatement::Native
                    && message.contains("No such file or directory") =>
            {
                no_helper()
            }
            other => other,
        })?;
        // From here on it is removed if something fails.
        let shape = nft::shape(&mut socket).map_err(netlink_failed)?;
        let (parameters, watch) = (parameters.clone(), Watch::default());
        let mut table = Self { parameters, statement, socket, shape, helper, watch };
        if statement == QueueStatement::Xtables {
            let mut refused = table.add_queue_rules()?;
            if refused == Some(libc::ENOENT) {
                let parameters = RuleParameters::default();
                table.load_module(|chain| queue_rule(chain, &parameters, true))?;
                refused = table.add_queue_rules()?;
            }
            refused.map_or(Ok(()), |errno| Err(no_queue(errno)))?;
            table.shape = nft::shape(&mut table.socket).map_err(netlink_failed)?;
        }
        Ok(table)
    }

    /// Knows from now on which transactions were ours: all that open or close pinholes in this network
    /// namespace must be counted in `commits`.
    pub fn count_in(&mut self, commits: &Commits) {
        self.watch = Watch { commits: Some(commits.clone()), others: None };
    }

    /// What became of it. Looks at it only if others have changed nf_tables since it was found intact.
    pub fn condition(&mut self) -> Result<Condition, GatewayError> {
        let Some(commits) = &self.watch.commits else { return self.look() };
        let others = commits.of_others(&mut self.socket).map_err(netlink_failed)?;
        if others.is_some() && others == self.watch.others {
            return Ok(Condition::Intact);
        }
        self.watch.others = None;
        let condition = self.look()?;
        // Counted before the look: what came between shows in the next one.
        self.watch.others = others.filter(|_| condition == Condition::Intact);
        Ok(condition)
    }

    /// As [`Table::condition`], whatever was found before.
    pub fn look(&mut self) -> Result<Condition, GatewayError> {
        let now = nft::shape(&mut self.socket).map_err(netlink_failed)?;
        Ok(match now {
            None => Condition::Gone,
            Some(_) if now == self.shape => Condition::Intact,
            Some(now) if self.shape.is_some_and(|then| then.handle == now.handle) => {
                Condition::Changed
            }
            Some(_) => Condition::Replaced,
        })
    }

    /// Loads it again, without what was open.
    pub fn restore(&mut self) -> Result<(), GatewayError> {
        let mut restored = Self::install_with(&self.parameters, self.statement)?;
        restored.watch.commits = self.watch.commits.take();
        std::mem::replace(self, restored).keep();
        Ok(())
    }

    /// How it queues.
    pub fn statement(&self) -> QueueStatement {
        self.statement
    }

    /// Whether it lets harmless lines of calm connections pass. Operators' queueing knows of none.
    pub fn lets_pass(&self) -> bool {
        self.parameters.is_calm() && self.statement != QueueStatement::Operator
    }

    /// Leaves the table in the kernel, for a daemon that is to be restarted.
    pub fn keep(mut self) {
        self.shape = None;
        if let Some(helper) = self.helper.take() {
            helper.keep();
        }
    }

    /// Removes the table, and nothing else: not one that has taken its place.
    pub fn remove(mut self) -> Result<(), GatewayError> {
        self.delete()
    }

    fn delete(&mut self) -> Result<(), GatewayError> {
        let Some(loaded) = self.shape.take() else { return Ok(()) };
        let there = nft::shape(&mut self.socket).map_err(netlink_failed)?;
        if there.is_none_or(|there| there.handle != loaded.handle) {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.object(&nftnl::Table::new(nft::TABLE, ProtoFamily::Inet), MsgType::Del);
        match batch.send(&mut self.socket).map_err(netlink_failed)?.first_error() {
            None | Some(libc::ENOENT) => {}
            Some(error) => {
                let what = format!("removal of table inet {TABLE}");
                return Err(GatewayError::system(what, io::Error::from_raw_os_error(error)));
            }
        }
        self.helper = None;
        Ok(())
    }

    /// Puts the iptables target into the chains that queue, in the place of what is in them.
    /// Gives the error number that a rule met with.
    fn add_queue_rules(&mut self) -> Result<Option<i32>, GatewayError> {
        let table = nftnl::Table::new(nft::TABLE, ProtoFamily::Inet);
        let mut batch = Batch::new();
        for (name, bypass) in QUEUEING {
            let chain = Chain::new(name, &table);
            batch.flush_chain(name);
            batch.object(&queue_rule(&chain, &self.parameters, bypass), MsgType::Add);
        }
        Ok(batch.send(&mut self.socket).map_err(netlink_failed)?.first_error())
    }

    /// Has the kernel load the module that a rule needs, in a transaction that leaves nothing behind: Linux
    /// 6.1 loads those of iptables by a name that begins with the family's, and has none for inet.
    fn load_module(
        &mut self,
        rule: impl for<'a> FnOnce(&'a Chain<'a>) -> Rule<'a>,
    ) -> Result<(), GatewayError> {
        let table = nftnl::Table::new(c"ftp_alg_probe", ProtoFamily::Ipv4);
        let chain = Chain::new(c"c", &table);
        let mut batch = Batch::new();
        batch.object(&table, MsgType::Add);
        batch.object(&chain, MsgType::Add);
        batch.object(&rule(&chain), MsgType::Add);
        batch.object(&table, MsgType::Del);
        batch.send(&mut self.socket).map_err(netlink_failed)?;
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
    let chain = "FTP_ALG_CONTROL";
    output_of("nft", &["list", "chain", "ip", "mangle", chain]).is_ok()
        || uses_legacy(Ip::V4).unwrap_or(false)
            && output_of("iptables-legacy-save", &[]).is_ok_and(|rules| rules.contains(chain))
}

fn netlink_failed(error: io::Error) -> GatewayError {
    GatewayError::system("nf_tables", error)
}

fn helper_failed(error: io::Error) -> GatewayError {
    GatewayError::system("conntrack helper ftp-alg", error)
}

/// Runs `nft` on `text`.
pub(super) fn nft(arguments: &[&str], text: &str) -> Result<(), GatewayError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => GatewayError::NftMissing,
        _ => GatewayError::system("nft", error),
    };
    let finished = programs::run("nft", arguments, text).map_err(failed)?;
    if finished.success {
        return Ok(());
    }
    let message = finished.stderr;
    if message.contains("Operation not permitted") {
        return Err(GatewayError::NotPermitted { what: format!("table inet {TABLE}") });
    }
    if message.contains("cache initialization failed") || message.contains("not supported by") {
        return Err(GatewayError::FeatureMissing {
            what: format!("table inet {TABLE}"),
            feature: "nf_tables",
            remedy: "load it with `modprobe nf_tables`",
        });
    }
    // What follows the first line shows the place in a text that the operator does not see.
    let message = message.lines().next().unwrap_or("no reason given").to_owned();
    Err(GatewayError::RulesRefused { message })
}

pub(super) fn queue_rule<'a>(
    chain: &'a Chain<'a>,
    parameters: &RuleParameters,
    bypass: bool,
) -> Rule<'a> {
    let (first, last) = parameters.queues().into_inner();
    let mut rule = Rule::new(chain);
    let by_processor = parameters.is_by_processor();
    rule.add_expr(&NfQueue { first, total: last - first + 1, bypass, by_processor });
    rule
}

/// The iptables target NFQUEUE as an nftables expression; only nft_compat knows it.
struct NfQueue {
    first: u16,
    total: u16,
    bypass: bool,
    by_processor: bool,
}

impl Expression for NfQueue {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // struct xt_NFQ_info_v3 (flags: 1 bypass, 2 by processor), padded to 8 bytes as XT_ALIGN does.
        let [a, b] = self.first.to_ne_bytes();
        let [c, d] = self.total.to_ne_bytes();
        let [e, f] = (u16::from(self.bypass) | u16::from(self.by_processor) << 1).to_ne_bytes();
        let info = [a, b, c, d, e, f, 0, 0];
        nft::target(c"NFQUEUE", 3, &info)
    }
}
