//! The manual pages, as mandoc and man read them.

use std::{fs, path::PathBuf};

use crate::{PROGRAM, output, packaging, run, said, sample};

/// The three pages, with that of the commands as the program prints it.
fn pages() -> (tempfile::TempDir, [PathBuf; 3]) {
    let directory = tempfile::tempdir().unwrap();
    let commands = directory.path().join("ftp-alg.8");
    fs::write(&commands, output(PROGRAM, &["manual"])).unwrap();
    (directory, [commands, packaging("man/ftp-alg.7"), packaging("man/ftp-alg.toml.5")])
}

#[test]
fn the_pages_are_well_formed_and_name_this_version() {
    let (_directory, pages) = pages();
    let version = format!("\"ftp-alg {}\"", env!("CARGO_PKG_VERSION"));
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        assert!(!text.contains("S@"), "{}: a placeholder is left", page.display());
        let title = text.lines().find(|line| line.starts_with(".TH ")).unwrap();
        assert!(title.contains(&version), "{}: {title}", page.display());
        let page = page.to_str().unwrap();
        let lint = run("mandoc", &["-T", "lint", "-W", "warning", page]);
        assert!(lint.status.success() && said(&lint).is_empty(), "{}", said(&lint));
        let rendered = run(
            "man",
            &["--warnings", "--local-file", "--encoding=UTF-8", "--troff-device=utf8", page],
        );
        assert!(rendered.stderr.is_empty(), "{}", said(&rendered));
    }
}

#[test]
fn the_page_of_the_configuration_has_every_key_with_its_default() {
    let text = fs::read_to_string(packaging("man/ftp-alg.toml.5")).unwrap().replace("\\-", "-");
    for ((table, key), value) in sample::keys() {
        let heading = match table.as_str() {
            "" => "Top level".to_owned(),
            "network" | "server" => format!("[[{table}]]"),
            _ => format!("[{table}]"),
        };
        let from = text.find(&format!(".SS \"{heading}\"")).unwrap_or_else(|| panic!("{heading}"));
        let section = &text[from..];
        let section = &section[..section[1..].find(".S").map_or(section.len(), |end| end + 1)];
        let mut items = section.split(".TP\n").skip(1).filter_map(|item| item.lines().next());
        let names = |item: &str| item.split([' ', '"']).skip(1).any(|word| word == key);
        let item = items.find(|item| names(item)).unwrap_or_else(|| panic!("{heading} {key}"));
        // That of log.events is an example.
        if !matches!(table.as_str(), "network" | "server") && key != "events" {
            let number =
                value.parse::<i64>().map(|number| format!("{number:#x}")).unwrap_or_default();
            let item = item.replace("\\(dq", "\"");
            assert!(
                [&value, &number].iter().any(|value| item.ends_with(&format!("= {value}\""))),
                "{item}, not {value}"
            );
        }
    }
}
