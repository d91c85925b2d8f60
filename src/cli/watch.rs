//! `ftp-alg watch`: runs what passes an interface through the engine, and changes nothing.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use super::{
    Failure,
    replay::{
        notes::{NotePrinter, OutputOptions, warn},
        simulated_gateway::SimulatedGateway,
    },
};
use crate::{
    daemon::counted::counted,
    kernel::{
        clocks::since_1970,
        packet_socket::{PacketSocket, PacketSocketError},
    },
    replay::{LinkType, Player, Record},
};

/// Show what the gateway would do with the traffic of an interface, live
///
/// Reads copies of the packets that pass the interface, and runs them through the
/// engine. Changes nothing: neither rules nor packets, and no daemon need run. The
/// output is that of `ftp-alg replay`, and so are --external and --inside.
///
/// Ends with Ctrl-C, SIGTERM, --count or --seconds, and prints a summary. If the
/// kernel drops copies because this command reads too slowly, the summary says how
/// many. The command needs CAP_NET_RAW.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct WatchOptions {
    /// The interface
    #[arg(long, short, value_name = "IF")]
    interface: String,
    #[command(flatten)]
    output: OutputOptions,
    /// End after this many packets of control connections
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this many seconds
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    seconds: Option<u64>,
    /// Read what the interface receives for other machines, too
    #[arg(long)]
    promiscuous: bool,
    #[command(flatten)]
    gateway: SimulatedGateway,
}

impl WatchOptions {
    pub fn run(&self) -> Result<(), Failure> {
        let (policy, external) = self.gateway.policy("watch")?;
        let nat = self.gateway.nat(external)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(&stop)).map_err(Failure::failed)?;
        }
        let mut socket =
            PacketSocket::open(&self.interface, &policy.control_ports, self.promiscuous)?;
        let mut player = Player::<io::Sink>::new(policy, nat);
        player.has_checksums = false;
        player.begin_capture();
        let files = vec![self.interface.clone()];
        let mut printer = NotePrinter::new(self.output, files, external);
        warn(&self.interface, "packets are read; Ctrl-C ends this");
        let read = self.read(&mut socket, &mut player, &mut printer, &stop)?;
        player.finish().map_err(Failure::failed)?;
        let dropped = socket.dropped();
        player.report.summary.dropped = dropped;
        printer.print(player.report.take_notes())?;
        if dropped > 0 {
            let text = format!(
                "the kernel dropped {}, because ftp-alg read too slowly: announcements may be missing",
                counted(dropped, "packet")
            );
            warn(&self.interface, &text);
        }
        printer.finish(&player.report.summary)?;
        Ok(read?)
    }

    /// Plays packets until the end. The inner error says why no more packets come.
    fn read(
        &self,
        socket: &mut PacketSocket,
        player: &mut Player<io::Sink>,
        printer: &mut NotePrinter,
        stop: &AtomicBool,
    ) -> Result<Result<(), PacketSocketError>, Failure> {
        let seconds = self.seconds.map(Duration::from_secs);
        let (started, mut frame) = (Instant::now(), 0);
        let is_over = |player: &Player<io::Sink>| {
            stop.load(Ordering::Acquire)
                || seconds.is_some_and(|seconds| started.elapsed() >= seconds)
                || self.count.is_some_and(|count| player.report.summary.control_packets >= count)
        };
        while !is_over(player) {
            match socket.receive() {
                Ok(Some((data, time))) => {
                    frame += 1;
                    let record = Record { frame, time, link: Some(LinkType::Raw), data };
                    player.handle_record(&record).map_err(Failure::failed)?;
                    printer.print(player.report.take_notes())?;
                }
                Ok(None) => {
                    player.pass_time(since_1970());
                    printer.print(player.report.take_notes())?;
                    printer.flush()?;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }
}

impl From<PacketSocketError> for Failure {
    fn from(error: PacketSocketError) -> Self {
        match error {
            PacketSocketError::Unknown { .. } => Self::Usage(error.to_string()),
            _ => Self::failed(error),
        }
    }
}
