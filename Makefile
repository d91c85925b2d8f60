# Two commands for a newcomer, as root on Debian or Ubuntu: `make demo` and `make test`.
# Both install what they need, once. `make build` and the packages need no root, and install nothing.

export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

TARGET := $(or $(CARGO_TARGET_DIR),target)

# The release build, with ARCH=arm64 or ARCH=amd64 the one for that.
TRIPLE := $(if $(ARCH),$(subst amd64,x86_64,$(subst arm64,aarch64,$(ARCH)))-unknown-linux-gnu/)
PROGRAM := $(TARGET)/$(TRIPLE)release/ftp-alg
# What `make install` and the packages take; they do not build it if it is named.
BINARY ?= $(PROGRAM)
# Where the packages go.
OUTPUT ?= $(TARGET)
DESTDIR ?=
PREFIX ?= /usr/local
export DESTDIR PREFIX

CARGO_NEXTEST := 0.9.114
CARGO_MUTANTS := 27.1.0

NEXTEST = $$(packaging/tool cargo-nextest $(CARGO_NEXTEST) or-newer) nextest run --locked --workspace
NIGHTLY = $(NEXTEST) --release --profile nightly --run-ignored all --success-output final

VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml)

.PHONY: help demo test test-nightly test-stock-kernel fuzz check bench bench-compare bench-instructions build install uninstall package deb rpm ipk static dist image release provision rust clean

help:
	@echo 'make demo      watch real clients move real files through the gateway (root)'
	@echo 'make test      run every test, end-to-end ones too (root)'
	@echo 'make test-nightly  random dialogues, crashes and full load, the package: 80 minutes (root)'
	@echo 'make test-stock-kernel  the end-to-end tests under a stock Debian kernel, emulated (root)'
	@echo 'make test-arm64  some of them on an arm64 machine with a fast path, emulated (root)'
	@echo 'make test-installed  the package on a Debian 12 with systemd, emulated (root)'
	@echo 'make test-arm64-replay  builds the program for arm64, which replays every capture, emulated'
	@echo 'make test-first-transfer  the lines of the pages on a fresh Debian 12 and 13, timed (root)'
	@echo 'make mutants   changes of the core, one at a time, that no test finds: an hour for SHARD=1/20'
	@echo 'make fuzz      the fuzz targets, each for SECONDS=60'
	@echo 'make check     formatting, lints, words, commits, licences and known vulnerabilities of dependencies'
	@echo 'make bench     the benchmarks'
	@echo 'make bench-instructions  what a packet costs in instructions (valgrind)'
	@echo 'make bench-compare  compared with the kernel helper, two proxies and a C loop, for 15 minutes (root)'
	@echo 'make pictures  the pictures of the documentation, from real gateways (root)'
	@echo 'make build     target/release/ftp-alg; with ARCH=arm64 this and the packages are for that'
	@echo 'make install   installs it, with DESTDIR= and PREFIX= (root); make uninstall'
	@echo 'make deb       target/debian/ftp-alg_*.deb'
	@echo 'make rpm       target/rpm/ftp-alg-*.rpm'
	@echo 'make ipk       target/openwrt/ftp-alg_*.ipk'
	@echo 'make static    target/static/x86_64-unknown-linux-gnu/release/ftp-alg, which needs no library'
	@echo 'make dist      target/dist/ftp-alg-*.tar.gz, the source'
	@echo 'make image     target/dist/ftp-alg-*-oci.tar, a container image'
	@echo 'make release   target/dist: all of these with their sums'
	@echo 'make provision install what demo and test need (root)'

# The build of the tests, which has their dependencies.
demo: rust
	@packaging/provision demo
	cargo build --locked
	$(TARGET)/debug/ftp-alg demo

test: provision rust
	@packaging/nfpm >/dev/null
	$(NEXTEST) $(TESTS)

# All tests in their whole size, then what takes long by its number.
test-nightly: export FTP_ALG_NIGHTLY := 1
test-nightly: provision rust
	@packaging/provision nightly
	deny=$$(packaging/tool cargo-deny 0.20.2 or-newer) && PATH=$$(dirname $$deny):$$PATH packaging/audit
	$(NIGHTLY) -E 'not test(/^(downtime::a_connection_lives|pictures::|replay::the_program_for_arm64)/)'
	$(NEXTEST) --run-ignored only -E 'test(/^downtime::a_connection_lives/)'
	FTP_ALG_LAB_FAST_PATH=off $(NIGHTLY) -E 'test(/^(attacks|matrix|stream|wire)::/)'
	FTP_ALG_DIALOGUES=$(or $(DIALOGUES),1000000) $(NIGHTLY) -E 'test(/^simulated_network::/)'
	FTP_ALG_HOSTILE=65536 $(NIGHTLY) -E 'test(/^budget::resident::/)'
	FTP_ALG_URGENT=300000 $(NIGHTLY) -E 'test(/^wire_cases::urgent::/)'
	FTP_ALG_ROUNDS=$(or $(ROUNDS),1000) $(NIGHTLY) -E 'test(/^kills::/) - test(restarts)'
	FTP_ALG_ROUNDS=30 $(NIGHTLY) -E 'test(/^downtime::.*stop/)'
	FTP_ALG_RELOADS=150 $(NIGHTLY) -E 'test(/^reload::/)'
	FTP_ALG_SOAK=1800 $(NIGHTLY) -E 'test(/^soak::/)'
	@$(MAKE) --no-print-directory test-arm64 test-installed test-first-transfer

# TESTS is the beginnings of names, as in TESTS='conntrack:: interface::'; nearly all without it: half an hour.
# SUITE=trixie takes Debian 13's kernel.
test-stock-kernel: provision rust
	@packaging/provision emulator
	tests/stock-kernel $(TESTS)

.PHONY: test-arm64
# What another processor can make fail: the BPF program, verdicts, the daemon's system calls, checksums. All that there
# are take hours.
ARM64 := fastpath::data:: fastpath::ignored:: fastpath::walk:: \
    interface::a_pinhole interface::injected interface::loading:: interface::program:: interface::rules_of_nftables \
    confinement:: fastpath::the_fast_path_works_without_a_daemon fastpath::most_transfers \
    history::the_file_has_every_event lifecycle::a_clean_stop
test-arm64: provision rust
	@packaging/provision arm64-machine
	ARCH=arm64 FTP_ALG_LAB_PATIENCE=12 FTP_ALG_VM_SECONDS=5000 tests/stock-kernel $(or $(TESTS),$(ARM64))

.PHONY: test-installed
# The package that `make deb` builds: installed, used, interrupted, upgraded, purged. PACKAGE names another one.
test-installed: provision $(if $(PACKAGE),,deb)
	@packaging/provision installed
	tests/installed/run $(or $(PACKAGE),$$(ls -t $(OUTPUT)/debian/ftp-alg_*.deb | head -n 1))

.PHONY: test-arm64-replay
# The program for arm64, emulated. The optimisation does not matter, and takes most of the time.
test-arm64-replay: provision rust
	@packaging/provision arm64
	FTP_ALG_ARM64_PROGRAM=$$(CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=0 packaging/build arm64) \
	    $(NEXTEST) --run-ignored only -E 'test(/^replay::the_program_for_arm64/)'

.PHONY: test-first-transfer
# From the package and the image to the first file that moves, as the pages say it.
test-first-transfer: provision deb
	@packaging/provision installed
	@$(MAKE) --no-print-directory image
	tests/installed/first-transfer $$(ls -t $(OUTPUT)/debian/ftp-alg_*.deb | head -n 1) \
	    $$(ls -t $(OUTPUT)/dist/ftp-alg-*-oci.tar | head -n 1)

.PHONY: mutants
# SHARD=1/20 takes each twentieth: an hour.
mutants: provision rust
	PATH=$$(dirname $$(packaging/tool cargo-nextest $(CARGO_NEXTEST) or-newer)):$$PATH \
	    $$(packaging/tool cargo-mutants $(CARGO_MUTANTS)) mutants --config .config/mutants.toml \
	    -p ftp-alg-core --timeout 120 -o $(TARGET) $(if $(SHARD),--sharding round-robin --shard $(SHARD))

fuzz: provision rust
	fuzz/run all $(or $(SECONDS),60)

check: provision rust
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --all-targets --bench compare -- -D warnings
	tests/words
	tests/commits
	packaging/audit

bench: provision rust
	cargo bench --locked
	cargo bench --locked --bench engine -- many

bench-instructions: provision rust
	benches/instructions

# WORDS choose what is measured, as in WORDS='cycles ours helper'; benches/README.md has them.
bench-compare: provision rust
	@packaging/provision bench
	cargo bench --locked --bench compare -- $(WORDS)

.PHONY: pictures
# docs/pictures, and the demo's picture, which takes the release build.
pictures: provision build
	$(NEXTEST) --run-ignored only -E 'test(/^pictures::/)'
	docs/demo/picture

build:
	@packaging/build $(ARCH)
	@$(MAKE) --no-print-directory $(TARGET)/copyright

$(PROGRAM): build

$(TARGET)/copyright: packaging/copyright Cargo.lock
	@mkdir -p $(TARGET)
	@packaging/copyright >$@.new && mv $@.new $@

# As root where DESTDIR is empty, after `make build` as anyone.
install: $(TARGET)/copyright
	@packaging/install $(BINARY)

uninstall:
	@packaging/install --remove $(BINARY)

# The tree that the packages are made of.
package: $(BINARY) $(TARGET)/copyright
	@packaging/check-build readelf:binutils
	@rm -rf $(TARGET)/package
	@DESTDIR=$(abspath $(TARGET))/package PREFIX=/usr packaging/install $(BINARY)

deb: package
	@packaging/package deb $(TARGET)/package $(OUTPUT)/debian

rpm: package
	@packaging/package rpm $(TARGET)/package $(OUTPUT)/rpm

# ARCH=arm64 for the other one.
static:
	@packaging/build $(or $(ARCH),amd64) static

# Of the static program; ARCH=arm64 for the other one.
ipk: BINARY = $(TARGET)/static/$(or $(TRIPLE),x86_64-unknown-linux-gnu/)release/ftp-alg
ipk: $(if $(filter command,$(origin BINARY)),,static) $(TARGET)/copyright
	@rm -rf $(TARGET)/package
	@DESTDIR=$(abspath $(TARGET))/package PREFIX=/usr packaging/install --openwrt $(BINARY)
	@packaging/package ipk $(TARGET)/package $(OUTPUT)/openwrt

# Of what is committed, and the same bytes each time.
dist:
	@mkdir -p $(TARGET)/dist
	@git archive --format=tar --prefix=ftp-alg-$(VERSION)/ HEAD | gzip -9n >$(TARGET)/dist/ftp-alg-$(VERSION).tar.gz
	@echo $(TARGET)/dist/ftp-alg-$(VERSION).tar.gz

# All of it, of what is committed; MINISIGN_KEY= signs it.
release:
	@packaging/release

image: $(BINARY) $(TARGET)/copyright
	@packaging/image $(BINARY) $(OUTPUT)/dist

provision:
	@packaging/provision

rust:
	@packaging/check-rust

clean:
	cargo clean
