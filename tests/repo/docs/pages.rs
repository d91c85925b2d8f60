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

/// Lines outside of blocks of code.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split("\n```").enumerate().step_by(2);
    // The first line of a part is behind its fence.
    parts.flat_map(|(number, part)| part.lines().skip(usize::from(number > 0)))
}

/// A block of code.
pub struct Block {
    /// The page, from the repository's root.
    pub page: String,
    /// What follows the fence, as in `nft`.
    pub language: String,
    pub text: String,
}

impl Block {
    /// Page and first line, for messages.
    pub fn name(&self) -> String {
        format!("{}: {}", self.page, self.text.lines().next().unwrap_or_default())
    }
}

/// The blocks of code of all pages in `language`.
pub fn blocks(language: &str) -> Vec<Block> {
    all_blocks().into_iter().filter(|block| block.language == language).collect()
}

/// Manual pages, and the language of their examples (`.EX` to `.EE`).
const MANUAL: [(&str, &str); 3] =
    [("ftp-alg.8.in", "sh"), ("ftp-alg.7", "nft"), ("ftp-alg.toml.5", "toml")];

/// The blocks of code of all pages, and of the manual.
pub fn all_blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for (page, text) in named_pages() {
        for part in text.split("\n```").skip(1).step_by(2) {
            let (language, text) = part.split_once('\n').unwrap_or((part, ""));
            let (language, text) = (language.trim().to_owned(), format!("{text}\n"));
            blocks.push(Block { page: page.clone(), language, text });
        }
    }
    for (name, language) in MANUAL {
        let page = format!("packaging/man/{name}");
        let text = text(&page).replace("\\-", "-").replace("\\(dq", "\"");
        let examples = text.split(".EX\n").skip(1).filter_map(|rest| rest.split(".EE").next());
        blocks.extend(examples.map(|text| Block {
            page: page.clone(),
            language: language.to_owned(),
            text: text.to_owned(),
        }));
    }
    blocks
}

/// What pages have in backquotes outside of blocks, each with its page.
pub fn spans() -> Vec<(String, String)> {
    let mut spans = Vec::new();
    for (page, text) in named_pages() {
        let parts = lines(&text).flat_map(|line| line.split('`').skip(1).step_by(2));
        spans.extend(parts.map(|span| (page.clone(), span.to_owned())));
    }
    spans
}

/// The pages by their paths in the repository, with their texts.
pub fn named_pages() -> impl Iterator<Item = (String, String)> {
    pages()
        .into_iter()
        .map(|(path, text)| (path.strip_prefix(root()).unwrap().display().to_string(), text))
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
