# Two commands for a newcomer, as root on Debian or Ubuntu: `make demo` and `make test`.
# Both install what they need, once.

export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test test-nightly test-stock-kernel test-installed fuzz check bench bench-compare bench-instructions build provision rust clean

help:
	@echo 'make demo      watch real clients move real files through the gateway (root)'
	@echo 'make test      run every test, end-to-end ones too (root)'
	@echo 'make test-nightly  random dialogues, crashes and full load for 75 minutes (root)'
	@echo 'make test-stock-kernel  the end-to-end tests under a stock Debian kernel, emulated (root)'
	@echo 'make test-installed  the package on a Debian 12 with systemd, emulated (root)'
	@echo 'make fuzz      the fuzz targets, each for SECONDS=60'
	@echo 'make check     formatting, lints, licences and known vulnerabilities of dependencies'
	@echo 'make bench     the benchmarks'
	@echo 'make bench-instructions  what a packet costs in instructions (valgrind)'
	@echo 'make bench-compare  beside the kernel helper, two proxies and a C loop, for 15 minutes (root)'
	@echo 'make build     target/release/ftp-alg'
	@echo 'make provision install what demo and test need (root)'

demo: build
	target/release/ftp-alg demo

# Two at once: the end-to-end tests wait more than they compute, but time what they see.
test: provision rust
	@rm -rf $(TARGET)/matrix $(TARGET)/matrix.txt
	cargo test --locked --no-fail-fast -- --test-threads=2; status=$$?; \
	    cat $(TARGET)/matrix.txt || status=1; exit $$status

# A million random dialogues, a thousand crashes under load, half an hour at full load: 45 minutes.
test-nightly: export FTP_ALG_DIALOGUES ?= 1000000
test-nightly: export FTP_ALG_ROUNDS ?= 1000
test-nightly: export FTP_ALG_SOAK ?= 1800
test-nightly: export FTP_ALG_HOSTILE ?= 65536
test-nightly: export FTP_ALG_URGENT ?= 300000
test-nightly: export FTP_ALG_RELOADS ?= 150
test-nightly: provision rust
	cargo test --locked --release --test simulated_network -- --nocapture
	cargo test --locked --release --test budget resident -- --nocapture
	cargo test --locked --release --test wire_cases urgent -- --nocapture
	cargo test --locked --release --test e2e_restart killed_again -- --nocapture
	cargo test --locked --release --test e2e_reload -- --nocapture
	cargo test --locked --release --test e2e_away kills -- --nocapture
	FTP_ALG_ROUNDS=30 cargo test --locked --release --test e2e_away stop -- --nocapture
	cargo test --locked --release --test e2e_soak -- --nocapture
	@$(MAKE) --no-print-directory test-installed

# TESTS names targets, as in TESTS='e2e_conntrack gateway'; nearly all without it: half an hour.
test-stock-kernel: provision rust
	@packaging/provision emulator
	tests/stock-kernel $(TESTS)

# The package that `make deb` builds: installed, used, interrupted, upgraded, purged. PACKAGE names another one.
test-installed: $(if $(PACKAGE),,deb) provision
	@packaging/provision installed
	tests/installed/run $(or $(PACKAGE),$$(ls -t $(OUTPUT)/debian/ftp-alg_*.deb | head -n 1))

fuzz: provision rust
	fuzz/run all $(or $(SECONDS),60)

check: provision rust
	cargo fmt --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --all-targets -- -D warnings
	packaging/audit

bench: provision rust
	cargo bench --locked
	cargo bench --locked --bench engine -- many

bench-instructions: provision rust
	benches/instructions

# WORDS choose what is measured, as in WORDS='cycles ours helper'; docs/benchmarks/README.md has them.
bench-compare: provision rust
	@packaging/provision bench
	cargo bench --locked --bench compare -- $(WORDS)

build: provision rust
	cargo build --locked --release

provision:
	@packaging/provision

rust:
	@packaging/check-rust

clean:
	cargo clean
