//! The daemon: wires the engine to the gateway.
