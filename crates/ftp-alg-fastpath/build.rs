//! Build script: generates `layout.rs` from the program's `layout.h`, so that C and Rust have one layout, and compiles the
//! program. Clang compares each offset that the generated code uses with its own.

use std::{
    collections::HashMap,
    env,
    fmt::Write as _,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{self, Command},
};

/// The program's directory; `inspect.bpf.c` includes the other files.
const PROGRAM: &str = "program";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={PROGRAM}");
    if let Err(error) = build() {
        println!("cargo::error={error}");
        process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let to = env::var_os("OUT_DIR").map(PathBuf::from).ok_or("OUT_DIR is not set")?;
    let failed = |error| format!("{PROGRAM}: {error}");
    let header = fs::read_to_string(Path::new(PROGRAM).join("layout.h")).map_err(failed)?;
    let Layout { rust, checks, .. } = Layout::parse(&header)?;
    fs::write(to.join("layout.rs"), rust).map_err(failed)?;
    if env::var_os("CARGO_FEATURE_PROGRAM").is_some() {
        let check = to.join("check.c");
        fs::write(&check, format!("#include \"inspect.bpf.c\"\n{checks}")).map_err(failed)?;
        run_clang(&["-fsyntax-only", "-I."], &check)?;
        let object = to.join("inspect.o");
        run_clang(&["-c", "inspect.bpf.c", "-o"], &object)?;
    }
    Ok(())
}

/// A size or an offset, and its alignment, in bytes.
type SizeAndAlignment = (usize, usize);

/// What is known of `layout.h`, up to some line.
#[derive(Default)]
struct Layout {
    rust: String,
    /// Assertions in C that this is the compiler's layout, too.
    checks: String,
    /// Of the structures, by their names.
    sizes: HashMap<String, SizeAndAlignment>,
    /// The values of macros that are numbers.
    macros: HashMap<String, u64>,
}

impl Layout {
    /// Reads macros that are numbers, enumerations and structures with a name. The maps come after them.
    fn parse(header: &str) -> Result<Self, String> {
        let lines = header.lines().map(|line| line.split("//").next().unwrap_or_default());
        let (macros, code): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with('#'));
        let mut layout = Self::default();
        for (name, value, kind) in macros.iter().filter_map(|line| as_macro(line)) {
            layout.rust += &format!("pub const {name}: {kind} = {value};\n");
            layout.macros.insert(name.to_owned(), value);
        }
        let code = code.join(" ");
        // What follows the last one are maps and functions.
        let mut blocks: Vec<&str> = code.split("};").collect();
        blocks.pop();
        for block in blocks {
            let (head, body) = block.split_once('{').ok_or_else(|| format!("layout.h: {block}"))?;
            let done = match head.split_whitespace().collect::<Vec<_>>()[..] {
                ["enum", name] => layout.add_enumeration(name, body),
                ["struct", "address"] => Some(()),
                ["struct", name] => layout.add_structure(name, body),
                _ => None,
            };
            done.ok_or_else(|| format!("layout.h: cannot read {head}"))?;
        }
        Ok(layout)
    }

    /// Adds a module with the enumerators.
    fn add_enumeration(&mut self, name: &str, body: &str) -> Option<()> {
        writeln!(self.rust, "pub mod {name} {{").ok()?;
        let names = body.split(',').map(str::trim).filter(|name| !name.is_empty());
        for (value, name) in names.enumerate() {
            writeln!(self.rust, "    pub const {name}: u32 = {value};").ok()?;
            writeln!(self.checks, "_Static_assert({name} == {value}, \"{name}\");").ok()?;
        }
        writeln!(self.rust, "}}").ok()
    }

    /// Adds a structure, without its padding and its lock, and its conversions from and to bytes.
    fn add_structure(&mut self, name: &str, body: &str) -> Option<()> {
        let (mut fields, mut reads, mut writes) = (String::new(), String::new(), String::new());
        let (mut end, mut alignment) = (0_usize, 1);
        for declaration in body.split(';').map(str::trim).filter(|text| !text.is_empty()) {
            let words = declaration.strip_prefix("struct ").unwrap_or(declaration);
            let (kind, declarators) = words.split_once(' ')?;
            let (size, own_alignment) = self.size_of(kind)?;
            alignment = alignment.max(own_alignment);
            for declarator in declarators.split(',').map(str::trim) {
                let (field, count) = match declarator.split_once('[') {
                    Some((field, count)) => {
                        (field, Some(self.number(count.trim_end_matches(']'))?))
                    }
                    None => (declarator, None),
                };
                let at = end.next_multiple_of(own_alignment);
                end = at + size * count.unwrap_or(1);
                let is = format!("__builtin_offsetof(struct {name}, {field}) == {at}");
                writeln!(self.checks, "_Static_assert({is}, \"{name}.{field}\");").ok()?;
                if field == "pad" || kind == "bpf_spin_lock" {
                    continue;
                }
                let (rust, read, write) = conversions(kind, field, at, size, count);
                writeln!(fields, "    pub {field}: {rust},").ok()?;
                writeln!(reads, "            {field}: {read},").ok()?;
                writes += &write;
            }
        }
        let size = end.next_multiple_of(alignment);
        self.sizes.insert(name.to_owned(), (size, alignment));
        writeln!(self.checks, "_Static_assert(sizeof(struct {name}) == {size}, \"{name}\");")
            .ok()?;
        let name = rust_name(name);
        write!(
            self.rust,
            "#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n\
             pub struct {name} {{\n{fields}}}\n\
             impl {name} {{\n    \
                 pub const SIZE: usize = {size};\n    \
                 pub fn from_bytes(bytes: &[u8; {size}]) -> Self {{\n        \
                     Self {{\n{reads}        }}\n    }}\n    \
                 pub fn to_bytes(&self) -> [u8; {size}] {{\n        \
                     let mut bytes = [0; {size}];\n{writes}        bytes\n    }}\n}}\n\
             impl Default for {name} {{\n    \
                 fn default() -> Self {{ Self::from_bytes(&[0; {size}]) }}\n}}\n"
        )
        .ok()
    }

    fn size_of(&self, kind: &str) -> Option<SizeAndAlignment> {
        match kind {
            "__u8" => Some((1, 1)),
            "__u16" | "__be16" => Some((2, 2)),
            "__u32" | "bpf_spin_lock" => Some((4, 4)),
            "__u64" => Some((8, 8)),
            "address" => Some((16, 4)),
            name => self.sizes.get(name).copied(),
        }
    }

    fn number(&self, text: &str) -> Option<usize> {
        let named = self.macros.get(text).copied();
        named.or_else(|| text.parse().ok()).and_then(|number| usize::try_from(number).ok())
    }
}

/// Name, value and type of a macro that is a number.
fn as_macro(line: &str) -> Option<(&str, u64, &str)> {
    let (name, value) = line.strip_prefix("#define ")?.trim().split_once(' ')?;
    match value.strip_suffix("ULL") {
        Some(long) => Some((name, long.parse().ok()?, "u64")),
        None => Some((name, value.parse().ok()?, "usize")),
    }
}

/// `packet_tuple` is `PacketTuple`.
fn rust_name(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').map(capital).collect()
}

/// The type of a field in Rust, the expression that reads it, and the statements that write it.
fn conversions(
    kind: &str,
    field: &str,
    at: usize,
    size: usize,
    count: Option<usize>,
) -> (String, String, String) {
    let of_structure = rust_name(kind.trim_start_matches('_'));
    let (rust, from, to) = match kind {
        "__u16" | "__u32" | "__u64" => (kind[2..].to_owned(), "from_ne_bytes", "to_ne_bytes"),
        "__be16" => ("u16".to_owned(), "from_be_bytes", "to_be_bytes"),
        "address" => ("IpAddr".to_owned(), "from_mapped", "mapped"),
        "__u8" => ("u8".to_owned(), "from_ne_bytes", "to_ne_bytes"),
        _ => (of_structure, "from_bytes", "to_bytes"),
    };
    let reference = if from == "from_bytes" { "&" } else { "" };
    let read = |at: usize| format!("{rust}::{from}({reference}take(bytes, {at}))");
    let write = |at: usize, value: &str| format!("        put(&mut bytes, {at}, {value});\n");
    match count {
        Some(count) if kind == "__u8" => (
            format!("[u8; {count}]"),
            format!("take(bytes, {at})"),
            write(at, &format!("self.{field}")),
        ),
        Some(count) => {
            let elements = (0..count).map(|index| at + index * size);
            let reads: Vec<String> = elements.clone().map(read).collect();
            let writes = elements.enumerate();
            let writes =
                writes.map(|(index, at)| write(at, &format!("self.{field}[{index}].{to}()")));
            (format!("[{rust}; {count}]"), format!("[{}]", reads.join(", ")), writes.collect())
        }
        None => {
            let written = write(at, &format!("self.{field}.{to}()"));
            (rust.clone(), read(at), written)
        }
    }
}

/// Runs clang for the program, with a file as the last argument.
fn run_clang(arguments: &[&str], file: &Path) -> Result<(), String> {
    let mut clang = Command::new("clang");
    clang.args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror"]);
    // The object does not depend on the build directory.
    clang.arg("-fdebug-compilation-dir=.").current_dir(PROGRAM);
    if let Some(headers) = headers_of_architecture() {
        clang.arg("-I").arg(headers);
    }
    let install = "on Debian or Ubuntu: apt-get install clang libbpf-dev linux-libc-dev; or build without the fast path: \
                   --no-default-features --features demo";
    let output = clang.args(arguments).arg(file).output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("clang is missing, which compiles the fast path; {install}"),
        _ => format!("clang cannot be started: {error}"),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    // Each line for cargo is one of ours.
    errors.lines().for_each(|line| println!("cargo::warning={line}"));
    Err(if errors.contains("file not found") {
        format!("clang finds no header that the fast path needs; {install}")
    } else {
        "clang does not compile the fast path".to_owned()
    })
}

/// Debian installs `asm/types.h` in a directory for each architecture, which clang does not search when it compiles for
/// another target. Any of them works, because the types are equal.
fn headers_of_architecture() -> Option<PathBuf> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let entries = fs::read_dir("/usr/include").ok()?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut found: Vec<PathBuf> = paths.filter(|path| path.join("asm/types.h").exists()).collect();
    found.sort_by_key(|path| (!path.ends_with(format!("{architecture}-linux-gnu")), path.clone()));
    found.into_iter().next()
}
