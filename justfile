# Commands for daily work; `scripts/test` is what CI runs.

features := "--no-default-features --features cli,testing"

# List these commands.
default:
    @just --list

# Format, lint and compile, without ONNX: the fast loop.
check:
    cargo fmt --all
    cargo clippy {{features}} --all-targets -- -D warnings

# Run the tests whose names contain FILTER, without ONNX.
test FILTER="":
    cargo test {{features}} {{FILTER}}

# Run everything that must pass.
all:
    scripts/test

# Build the documentation.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --all-features --no-deps

# Run the short benchmark.
bench:
    scripts/bench --quick
