//! The conntrack helper that control connections carry: the kernel takes expectations for those, keeps them
//! off flowtables, and renumbers their packets if it has the helper itself.
//!
//! It is the kernel's own for scanners, or one of ours, by nfnetlink_cthelper, which reads nothing. Such
//! helpers belong to the machine, not to a network namespace; daemons in several share this one.

#![allow(unsafe_code)]

use std::{ffi::c_void, io, thread, time::Duration};

use nftnl::{Chain, MsgType, NlMsg, ProtoFamily};
use nftnl_sys as sys;

use super::{
    ctnetlink::Requests,
    netlink::{Socket, Writer},
    nft::{self, Batch},
    rules::{OWN_HELPER, SCANNER_HELPER},
};

// From linux/netfilter/nfnetlink_cthelper.h; libc lacks them.
const NFNL_MSG_CTHELPER_NEW: u8 = 0;
const NFNL_MSG_CTHELPER_DEL: u8 = 2;
const NFCTH_NAME: u16 = 1;
const NFCTH_TUPLE: u16 = 2;
const NFCTH_QUEUE_NUM: u16 = 3;
const NFCTH_POLICY: u16 = 4;
const NFCTH_PRIV_DATA_LEN: u16 = 5;
const NFCTH_STATUS: u16 = 6;
const NFCTH_TUPLE_L3PROTONUM: u16 = 1;
const NFCTH_TUPLE_L4PROTONUM: u16 = 2;
const NFCTH_POLICY_SET_NUM: u16 = 1;
const NFCTH_POLICY_SET1: u16 = 2;
const NFCTH_POLICY_NAME: u16 = 1;
const NFCTH_POLICY_EXPECT_MAX: u16 = 2;
const NFCTH_POLICY_EXPECT_TIMEOUT: u16 = 3;
/// From linux/netfilter/nf_tables.h.
const NFT_OBJECT_CT_HELPER: u32 = 3;
/// The kernel queues nothing for a helper in this state.
const NFCT_HELPER_STATUS_DISABLED: u32 = 0;

/// Above what a session may hold: the engine's limit is the one that counts.
const MOST_EXPECTED: u32 = 64;
/// Until each expectation is given its own.
const TIMEOUT_SECONDS: u32 = 30;

const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// The kernel frees what a deleted table held a little later: how often, and how long, to wait.
const PATIENCE: (u32, Duration) = (20, Duration::from_millis(5));

/// What the table's helper object is.
#[derive(Debug, Default)]
pub(super) enum Helper {
    /// There is none.
    #[default]
    None,
    /// The kernel's own for scanners.
    Scanner,
    /// Ours.
    Own(OwnHelper),
}

impl Helper {
    /// Its name in the kernel.
    pub(super) fn name(&self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Scanner => Some(SCANNER_HELPER),
            Self::Own(_) => Some(OWN_HELPER),
        }
    }

    /// Leaves it in the kernel.
    pub(super) fn keep(self) {
        if let Self::Own(own) = self {
            own.keep();
        }
    }

    /// Whether the kernel has the one for scanners: it checks an object of it, in a transaction that ends
    /// with the deletion of what is not there, so that nothing is committed.
    pub(super) fn has_scanner(socket: &mut Socket) -> io::Result<bool> {
        let table = nftnl::Table::new(c"ftp_alg_probe", ProtoFamily::Inet);
        let mut batch = Batch::new();
        batch.object(&table, MsgType::Add);
        let object = batch.object(&ScannerObject, MsgType::Add);
        batch.object(&Chain::new(c"absent", &table), MsgType::Del);
        Ok(batch.send(socket)?.error_of(object).is_none())
    }
}

/// An object of the helper for scanners, in the table `ftp_alg_probe`.
struct ScannerObject;

// SAFETY: it writes one message of less than a hundred bytes.
unsafe impl NlMsg for ScannerObject {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        // SAFETY: the caller gives room for a message. The object is alive until it is freed, once, and
        // copies the strings, which are constants.
        unsafe {
            let header = sys::nftnl_nlmsg_build_hdr(
                buffer.cast(),
                libc::NFT_MSG_NEWOBJ as u16,
                libc::NFPROTO_INET as u16,
                (libc::NLM_F_CREATE | libc::NLM_F_ACK) as u16,
                sequence,
            );
            let object = nft::allocated(sys::nftnl_obj_alloc()).as_ptr();
            for (attribute, text) in
                [(sys::NFTNL_OBJ_TABLE, c"ftp_alg_probe"), (sys::NFTNL_OBJ_NAME, c"scanner")]
            {
                sys::nftnl_obj_set_str(object, attribute as u16, text.as_ptr());
            }
            sys::nftnl_obj_set_u32(object, sys::NFTNL_OBJ_TYPE as u16, NFT_OBJECT_CT_HELPER);
            let name = sys::NFTNL_OBJ_CT_HELPER_NAME as u16;
            sys::nftnl_obj_set_str(object, name, c"sane".as_ptr());
            let family = sys::NFTNL_OBJ_CT_HELPER_L3PROTO as u16;
            sys::nftnl_obj_set_u16(object, family, libc::NFPROTO_INET as u16);
            let protocol = sys::NFTNL_OBJ_CT_HELPER_L4PROTO as u16;
            sys::nftnl_obj_set_u8(object, protocol, libc::IPPROTO_TCP as u8);
            sys::nftnl_obj_nlmsg_build_payload(header, object);
            sys::nftnl_obj_free(object);
        }
    }
}

/// The helper, registered; removed when dropped, unless the rules of another daemon refer to it.
#[derive(Debug)]
pub(super) struct OwnHelper {
    requests: Requests,
    is_kept: bool,
}

impl OwnHelper {
    /// Registers it; `None` where the kernel has no nfnetlink_cthelper.
    pub(super) fn register() -> io::Result<Option<Self>> {
        let mut requests = Requests::open(libc::NFNL_SUBSYS_CTHELPER)?;
        for family in FAMILIES {
            let create = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            let registered = requests.ask(
                NFNL_MSG_CTHELPER_NEW,
                create,
                libc::AF_UNSPEC,
                |message| fill(message, family),
                |_| {},
            );
            match registered.as_ref().map_err(io::Error::raw_os_error) {
                Ok(()) | Err(Some(libc::EEXIST)) => {}
                // nfnetlink_rcv_msg() answers so for a subsystem that it does not have, and the
                // subsystem where this is not the machine's own user namespace.
                Err(Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM)) => return Ok(None),
                Err(_) => registered?,
            }
        }
        Ok(Some(Self { requests, is_kept: false }))
    }

    /// Leaves it in the kernel.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }

    fn remove(&mut self, family: i32) -> io::Result<()> {
        let (attempts, pause) = PATIENCE;
        for _ in 0..attempts {
            let removed = self.requests.ask(
                NFNL_MSG_CTHELPER_DEL,
                libc::NLM_F_ACK,
                libc::AF_UNSPEC,
                |message| identify(message, family),
                |_| {},
            );
            match removed.as_ref().map_err(io::Error::raw_os_error) {
                Err(Some(libc::EBUSY)) => thread::sleep(pause),
                Ok(()) | Err(Some(libc::ENOENT)) => return Ok(()),
                Err(_) => return removed,
            }
        }
        Ok(())
    }
}

impl Drop for OwnHelper {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        for family in FAMILIES {
            if let Err(error) = self.remove(family) {
                tracing::warn!("removal of conntrack helper {OWN_HELPER}: {error}");
            }
        }
    }
}

fn identify(message: &mut Writer<'_>, family: i32) {
    let mut name = OWN_HELPER.as_bytes().to_vec();
    name.push(0);
    message.put(NFCTH_NAME, &name).nest(NFCTH_TUPLE, |tuple| {
        tuple
            .put(NFCTH_TUPLE_L3PROTONUM, &(family as u16).to_be_bytes())
            .put(NFCTH_TUPLE_L4PROTONUM, &[libc::IPPROTO_TCP as u8]);
    });
}

fn fill(message: &mut Writer<'_>, family: i32) {
    identify(message, family);
    message
        .put(NFCTH_QUEUE_NUM, &0u32.to_be_bytes())
        .put(NFCTH_PRIV_DATA_LEN, &0u32.to_be_bytes())
        .put(NFCTH_STATUS, &NFCT_HELPER_STATUS_DISABLED.to_be_bytes())
        .nest(NFCTH_POLICY, |policy| {
            policy.put(NFCTH_POLICY_SET_NUM, &1u32.to_be_bytes()).nest(NFCTH_POLICY_SET1, |set| {
                set.put(NFCTH_POLICY_NAME, b"data\0")
                    .put(NFCTH_POLICY_EXPECT_MAX, &MOST_EXPECTED.to_be_bytes())
                    .put(NFCTH_POLICY_EXPECT_TIMEOUT, &TIMEOUT_SECONDS.to_be_bytes());
            });
        });
}
