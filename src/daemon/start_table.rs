//! Takes over the table that an earlier daemon left, or loads a new one in its place.
//!
//! What is open in the earlier daemon's table is open in the new one from its first moment, because clients connect at
//! any moment. This module does not know the fast path.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use ftp_alg_core::engine::PinholeEnds;

use super::{ServiceError, shard::lock, shared_state::SharedState, state_dir::StateDir};
use crate::kernel::{
    LinuxKernel, RuleParameters,
    conntrack::consumed_pinholes,
    parameters::Backend,
    table::{Commits, OpenPinhole, Table},
};

/// Takes over the table that an earlier daemon left, or loads a new one. Then opens and closes pinholes until the
/// kernel has those of the `restored` sessions. Returns the table, and whether no earlier daemon left it.
pub(super) fn load(
    parameters: &RuleParameters,
    commits: &Commits,
    state: &StateDir,
    shared: &SharedState,
    restored: bool,
) -> Result<(Table, bool), ServiceError> {
    let record = state.table_record();
    let is_known = record.is_some();
    let record = record.filter(|_| restored);
    let adopted = record.as_ref().map(|record| Table::adopt(parameters, record, commits));
    let adopted = adopted.transpose()?.flatten();
    if adopted.is_none() && Table::is_loaded()? {
        if let Some(other) = Table::other_daemon(parameters)? {
            return Err(other.into());
        }
        if !is_known {
            log_event!(
                TABLE_REPLACED,
                "table inet ftp_alg is replaced: this state directory has no record of it, so another ftp-alg \
                 loaded it. Connections whose sequence numbers that one adjusted break: their clients must \
                 connect again"
            );
        }
    }
    let is_new = adopted.is_none();
    let mut kernel = lock(&shared.kernel);
    let open_before = if restored && is_new { kernel.list_open()? } else { Vec::new() };
    let read_consumed = || match &open_before[..] {
        [] => Ok(HashSet::new()),
        _ => consumed_pinholes(parameters),
    };
    let consumed_before = read_consumed()?;
    let table = match (adopted, record) {
        (Some(table), _) => table,
        (None, Some(record)) => Table::install_in_place_of(&record, parameters, commits)?,
        (None, None) => Table::install(parameters, commits)?,
    };
    if !table.is_owned() {
        log_event!(
            TABLE_NOT_OWNED,
            "table inet ftp_alg has no owner: other programs can remove it, for example a firewall that is \
             reloaded, and ftp-alg then loads it again. Tables with an owner that outlive it need Linux 6.9"
        );
    }
    shared.report(state.set_table_record(table.record().as_ref()));
    shared.report(state.set_backend(parameters.backend));
    if restored {
        // Pinholes that were consumed while the table was loaded.
        let consumed = &read_consumed()? - &consumed_before;
        let is_consumed = |ends: &_| consumed.contains(ends);
        update_pinholes(&open_before, is_consumed, parameters, shared, &mut kernel)?;
        shared.reopen_ranges(&mut kernel);
    }
    Ok((table, is_new))
}

/// Opens the pinholes of `open_before` that the table lacks, and closes those that no session holds or that a
/// connection has consumed.
fn update_pinholes(
    open_before: &[OpenPinhole],
    is_consumed: impl Fn(&(IpAddr, SocketAddr)) -> bool,
    parameters: &RuleParameters,
    shared: &SharedState,
    kernel: &mut LinuxKernel,
) -> Result<(), ServiceError> {
    let ends_of = |open: &[OpenPinhole]| open.iter().map(OpenPinhole::key).collect::<HashSet<_>>();
    let (before, now) = (ends_of(open_before), ends_of(&kernel.list_open()?));
    // A crash may have come after a move to the rules, and before its record.
    let in_rules = &before | &now;
    let is_in_rules = |initiator, arrival| in_rules.contains(&(initiator, arrival));
    shared.with_each(|engine| engine.sessions.note_rule_pinholes(is_in_rules));
    let is_missing = |pinhole: &PinholeEnds| {
        let ends = pinhole.key();
        before.contains(&ends) && !now.contains(&ends) && !is_consumed(&ends)
    };
    shared.reopen_pinholes(kernel, is_missing);
    // The session of an expectation is not known. The kernel expires it.
    if parameters.backend != Backend::Nftables {
        return Ok(());
    }
    let is_left =
        |ends: &(IpAddr, SocketAddr)| !shared.holds_pinhole(ends.0, ends.1) || is_consumed(ends);
    shared.close_pinholes_of_table(kernel, now.into_iter().filter(is_left));
    Ok(())
}
