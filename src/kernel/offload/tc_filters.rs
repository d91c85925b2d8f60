//! The tc filters of an interface, by rtnetlink: which of them may change the packet mark that the program has set. They
//! run after it (tcx_run() and tc_run() in net/core/dev.c).

use std::io;

use libc::{RTM_GETTFILTER, TCA_KIND, TCA_OPTIONS};

use super::without_zero;
use crate::kernel::netlink::{Attributes, Socket};

// From linux/pkt_cls.h and linux/tc_act/tc_skbedit.h; libc lacks them.
const TCA_BPF_OPS: u16 = 5;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_SKBEDIT_MARK: u16 = 5;
/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS`. The qdisc `ingress` takes it as well.
const INGRESS: u32 = 0xffff_fff2;
/// Size of `struct tcmsg`.
const TCMSG_SIZE: usize = 20;

/// Names a filter at the ingress of the interface with this index that may change packet marks, if there is one.
pub(super) fn find_mark_writer(socket: &mut Socket, interface: u32) -> io::Result<Option<String>> {
    let mut request = [0; TCMSG_SIZE];
    request[4..8].copy_from_slice(&interface.to_ne_bytes());
    request[12..16].copy_from_slice(&INGRESS.to_ne_bytes());
    let mut found = None;
    let dumped = socket.dump(RTM_GETTFILTER, &request, |message| {
        if let Some((_, attributes)) = message.body.split_at_checked(TCMSG_SIZE) {
            found = found.take().or_else(|| mark_writer(&Attributes::new(attributes)));
        }
    });
    match dumped {
        Ok(_) => Ok(found),
        // A kernel without filters, or an interface that is gone.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Names the filter of a message if it may change packet marks.
fn mark_writer(filter: &Attributes<'_>) -> Option<String> {
    let kind = without_zero(filter.first(TCA_KIND)?);
    let options = filter.nested(TCA_OPTIONS)?;
    let name = String::from_utf8_lossy(kind);
    let actions = match kind {
        // The classic language writes no mark.
        b"bpf" if options.first(TCA_BPF_OPS).is_some() => 1,
        b"matchall" => 2,
        b"basic" | b"flower" => 3,
        b"fw" => 4,
        b"u32" => 7,
        b"flow" => 9,
        // A program, or what is not known here.
        _ => return Some(format!("tc filter {name}")),
    };
    let mut actions = options.nested(actions)?;
    actions.find_map(|(_, action)| {
        let action = Attributes::new(action);
        let kind = without_zero(action.first(TCA_ACT_KIND)?);
        let writes = match kind {
            b"skbedit" => action.nested(TCA_ACT_OPTIONS)?.first(TCA_SKBEDIT_MARK).is_some(),
            _ => matches!(kind, b"connmark" | b"ctinfo" | b"bpf" | b"ife" | b"xt" | b"ipt"),
        };
        let action = String::from_utf8_lossy(kind);
        writes.then(|| format!("tc filter {name}, action {action}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::attribute;

    fn action(kind: &str, options: &[u8]) -> Vec<u8> {
        let kind = attribute(TCA_ACT_KIND, format!("{kind}\0").as_bytes());
        [kind, attribute(TCA_ACT_OPTIONS, options)].concat()
    }

    #[test]
    fn filters_that_may_write_a_mark_are_named() {
        let drop = action("gact", &[0; 20]);
        let mark = action("skbedit", &attribute(TCA_SKBEDIT_MARK, &[5, 0, 0, 0]));
        let priority = action("skbedit", &attribute(3, &[5, 0, 0, 0]));
        let connmark = action("connmark", &[]);
        let mirror = action("mirred", &[0; 28]);
        let operations = attribute(TCA_BPF_OPS, &[0; 8]);
        for (kind, at, actions, more, expected) in [
            ("matchall", 2, vec![&mark], &[][..], Some("tc filter matchall, action skbedit")),
            ("matchall", 2, vec![&priority, &drop], &[], None),
            ("u32", 7, vec![&mirror, &connmark], &[], Some("tc filter u32, action connmark")),
            ("u32", 7, vec![], &[], None),
            ("flower", 3, vec![&drop], &[], None),
            ("bpf", 1, vec![], &[], Some("tc filter bpf")),
            ("bpf", 1, vec![&drop], &operations, None),
            ("bpf", 1, vec![&mark], &operations, Some("tc filter bpf, action skbedit")),
            ("later", 1, vec![], &[], Some("tc filter later")),
        ] {
            let list: Vec<_> =
                (1..).zip(actions).flat_map(|(place, one)| attribute(place, one)).collect();
            let options = [attribute(at, &list), more.to_vec()].concat();
            let filter = [
                attribute(TCA_KIND, format!("{kind}\0").as_bytes()),
                attribute(TCA_OPTIONS, &options),
            ]
            .concat();
            let found = mark_writer(&Attributes::new(&filter));
            assert_eq!(found.as_deref(), expected, "{kind}");
        }
    }
}
