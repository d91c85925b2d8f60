//! Links lead to files and headings.

use std::{
    collections::{HashMap, HashSet},
    fs,
};

use super::pages::{lines, pages, root};

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

/// A reader who starts at README.md can get to every page.
#[test]
fn every_page_is_reached_from_the_readme() {
    let pages: HashMap<_, _> =
        pages().into_iter().map(|(path, text)| (path.canonicalize().unwrap(), text)).collect();
    let mut reached = HashSet::new();
    let mut next = vec![root().join("README.md").canonicalize().unwrap()];
    while let Some(page) = next.pop() {
        let Some(text) = pages.get(&page) else { continue };
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            next.extend(
                page.parent()
                    .unwrap()
                    .join(link)
                    .canonicalize()
                    .ok()
                    .filter(|target| !reached.contains(target)),
            );
        }
        reached.insert(page);
    }
    let mut missing: Vec<_> = pages.keys().filter(|page| !reached.contains(*page)).collect();
    missing.sort();
    assert!(missing.is_empty(), "no page links to these: {missing:#?}");
}
