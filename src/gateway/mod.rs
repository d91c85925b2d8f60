//! The edge to the kernel: queue, nftables, conntrack, injection.
