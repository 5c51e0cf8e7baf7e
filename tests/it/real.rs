//! Real scans through every command.
