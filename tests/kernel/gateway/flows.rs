//! What the engine wishes of the fast path, where the kernel refuses it.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use ftp_alg::gateway::{
    Commits, LinuxKernel, RuleParameters, Table,
    fastpath::Translations,
    flows::{Failures, FastPathFlows},
};
use ftp_alg_core::{
    engine::{FlowChange, Handover, Kernel as _, LoginStage, Translation, Withdrawal},
    ftp::Padding,
};

use super::fastpath::{CLIENT, SERVER, lab_with_pins};

#[test]
fn no_more_connections_are_handed_over_than_there_is_room_for() {
    let Some((lab, pins)) = lab_with_pins() else { return };
    lab.on_gateway(|| {
        let (parameters, commits) = (RuleParameters::default(), Commits::default());
        let _table = Table::install_for(&parameters, &commits).unwrap();
        let translations = Translations::new(&parameters, &commits).unwrap();
        let flows = Arc::new(FastPathFlows::new(pins.load(), translations, &parameters));
        let mut kernel = LinuxKernel::new(&parameters).unwrap().with_flows(Some(&flows));
        let most = 16_384;
        let ends = |number: u32| {
            let client = SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + number), 40_000);
            Translation::identity(client.into(), SERVER.into())
        };
        let handed_over = |number: u32, login| {
            FlowChange::Handover(Handover {
                flow: number.into(),
                lines: 0,
                next_seq: [1000, 2000],
                login,
                translation: ends(number),
                interfaces: [1; 2],
                client_ports: [0, u16::MAX],
                announced_addresses: [*CLIENT.ip(), *SERVER.ip()],
                seq_offsets: None,
                padding: Padding::None,
                pinhole_lifetime: Duration::from_secs(30),
            })
        };
        // Half of them for those that have not logged in.
        let all: Vec<_> =
            (1..=most).map(|number| handed_over(number, LoginStage::Greeted)).collect();
        kernel.apply_flow_changes(&all);
        assert_eq!(flows.program().flow_ids().unwrap().len(), most as usize / 2);
        let over = |number| handed_over(number, LoginStage::LoggedIn);
        let others: Vec<_> = (most / 2 + 1..=most).map(over).collect();
        kernel.apply_flow_changes(&others);
        assert_eq!(flows.take_failures(), None);
        kernel.apply_flow_changes(&[over(most + 1), over(most + 2)]);
        let last =
            "cannot hand a connection over: limit of 16384 connections reached; others are queued"
                .into();
        assert_eq!(flows.take_failures(), Some(Failures { count: 2, last }));
        kernel.apply_flow_changes(&[
            FlowChange::Withdraw(Withdrawal { flow: 1, translation: ends(1) }),
            over(most + 1),
        ]);
        assert_eq!(flows.take_failures(), None);
        assert_eq!(flows.program().flow_ids().unwrap().len(), most as usize);
        flows.program().remove().unwrap();
    });
}
