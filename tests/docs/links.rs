//! Links lead to files and headings.

use std::fs;

use crate::pages::{lines, pages};

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let stays = |one: &char| one.is_alphanumeric() || matches!(one, ' ' | '-' | '_');
    heading
        .to_lowercase()
        .chars()
        .filter(stays)
        .map(|one| if one == ' ' { '-' } else { one })
        .collect()
}

fn anchors(text: &str) -> Vec<String> {
    let headings = lines(text, false).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        for line in lines(&text, false) {
            for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if link.contains("://") {
                    continue;
                }
                let (file, heading) = link.split_once('#').unwrap_or((link, ""));
                let target = match file {
                    "" => page.clone(),
                    file => page.parent().unwrap().join(file),
                };
                let has_heading = || {
                    heading.is_empty()
                        || fs::read_to_string(&target)
                            .is_ok_and(|text| anchors(&text).iter().any(|one| one == heading))
                };
                if !target.exists() || !has_heading() {
                    wrong.push(format!("{}: {link}", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The index has every page but itself; decisions have an index of their own.
#[test]
fn the_index_has_every_page() {
    let index = crate::pages::text("docs/README.md");
    let docs = crate::pages::root().join("docs");
    let pages = pages().into_iter().filter_map(|(path, _)| {
        path.strip_prefix(&docs).ok().map(|page| page.display().to_string())
    });
    let pages = pages.filter(|page| !page.starts_with("decisions/0"));
    let missing: Vec<_> = pages.filter(|page| !index.contains(&format!("({page}"))).collect();
    assert_eq!(missing, ["README.md"]);
}
