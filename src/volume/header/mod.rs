//! stub
pub mod raw;
