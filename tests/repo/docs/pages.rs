//! The pages, and their blocks of code.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of the file at `path` in the repository.
pub fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Directories with pages.
const PLACES: [&str; 3] = ["docs", "benches", "crates/ftp-alg-core/src/session"];

/// The pages at the root and below [`PLACES`], with their texts.
pub fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let mut directories = PLACES.map(|place| root().join(place)).to_vec();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => directories.push(path),
                Some(extension) if extension == "md" => pages.push(path),
                _ => {}
            }
        }
    }
    pages.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Lines outside of blocks of code, or those in them.
pub fn lines(text: &str, in_code: bool) -> impl Iterator<Item = &str> {
    let parts = text.split("\n```").enumerate();
    let wanted = parts.filter(move |(number, _)| (number % 2 == 1) == in_code);
    // The first line of a part is behind its fence.
    wanted.flat_map(|(number, part)| part.lines().skip(usize::from(number > 0)))
}

/// A block of code.
pub struct Block {
    /// The page, from the repository's root.
    pub page: String,
    /// What follows the fence, as in `nft`.
    pub language: String,
    pub text: String,
}

/// Pages for newcomers and operators, besides README.md and the how-to pages.
const FOR_OPERATORS: &str = "README commands configuration counters encrypted events fastpath \
                             firewalls health limits metrics names-and-ports operate packaging \
                             security setup troubleshooting uplinks what-opens";

impl Block {
    /// Whether its page is for newcomers or operators.
    pub fn is_for_operators(&self) -> bool {
        let page = self.page.as_str();
        let is_named = || FOR_OPERATORS.split(' ').any(|name| page == format!("docs/{name}.md"));
        page == "README.md" || page.starts_with("docs/howto/") || is_named()
    }

    /// Whether `tests/e2e/recipes/firewalld.rs` runs it: that test reads it from its page.
    pub fn is_run_by_firewalld(&self) -> bool {
        self.page == "docs/howto/firewalld.md" && self.text.contains("--new-policy=out")
    }

    /// Page and first line, for messages.
    pub fn name(&self) -> String {
        format!("{}: {}", self.page, self.text.lines().next().unwrap_or_default())
    }

    /// Its commands: lines without comments and `sudo`, a backslash at a line's end continues it.
    pub fn commands(&self) -> Vec<String> {
        let whole = self.text.replace("\\\n", " ");
        let lines = whole.lines().map(|line| match line.find(" #").or(line.find('#')) {
            Some(comment) if comment == 0 || line[comment..].starts_with(" #") => &line[..comment],
            _ => line,
        });
        let lines = lines.map(|line| line.trim().trim_start_matches("sudo ").trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    }
}

/// The blocks of code of all pages in `language`.
pub fn blocks(language: &str) -> Vec<Block> {
    all_blocks().into_iter().filter(|block| block.language == language).collect()
}

/// The blocks of code of all pages.
pub fn all_blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for (path, text) in pages() {
        let page = path.strip_prefix(root()).unwrap().display().to_string();
        for part in text.split("\n```").skip(1).step_by(2) {
            let (language, text) = part.split_once('\n').unwrap_or((part, ""));
            let (language, text) = (language.trim().to_owned(), format!("{text}\n"));
            blocks.push(Block { page: page.clone(), language, text });
        }
    }
    blocks
}

/// The examples (`.EX` to `.EE`) of the manual page `name`, as a reader sees them.
pub fn manual_examples(name: &str) -> Vec<String> {
    let page = text(&format!("packaging/man/{name}")).replace("\\-", "-").replace("\\(dq", "\"");
    let examples = page.split(".EX\n").skip(1).filter_map(|rest| rest.split(".EE").next());
    examples.map(str::to_owned).collect()
}

/// The names that `name` stands for: `a.{b,c}` for `a.b` and `a.c`.
fn alternatives(name: &str) -> Vec<String> {
    let parts =
        name.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    let Some((before, (names, behind))) = parts else { return vec![name.to_owned()] };
    names.split(',').flat_map(|one| alternatives(&format!("{before}{one}{behind}"))).collect()
}

/// The first columns of the tables of `page` whose heading row begins with `heading`: the names in backquotes.
pub fn first_column(page: &str, heading: &str) -> Vec<String> {
    let text = text(page);
    let mut names = Vec::new();
    let mut is_wanted = false;
    for line in text.lines() {
        match line.strip_prefix('|') {
            None => is_wanted = false,
            Some(_) if line.starts_with(heading) => is_wanted = true,
            Some(row) if is_wanted => {
                let cell = row.split('|').next().unwrap();
                names.extend(cell.split('`').skip(1).step_by(2).flat_map(alternatives));
            }
            Some(_) => {}
        }
    }
    names
}
