//! One control connection: stream assembly, dialogue, sequence adjustment.
