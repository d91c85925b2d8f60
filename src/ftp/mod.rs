//! The FTP control protocol (RFC 959, RFC 2428): commands, replies, host-ports.
