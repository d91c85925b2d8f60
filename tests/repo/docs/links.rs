//! Links lead to files and headings.

use std::{collections::HashMap, fs};

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
    let headings = lines(text).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// And a reader who starts at README.md can get to every page.
#[test]
fn every_link_leads_to_a_file_and_a_heading_and_some_link_to_every_page() {
    let (mut wrong, mut links) = (Vec::new(), HashMap::new());
    for (page, text) in pages() {
        let mut targets = Vec::new();
        let all = lines(&text).flat_map(|line| line.split("](").skip(1));
        for link in all.filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let has_heading = || {
                let text = fs::read_to_string(&target).unwrap_or_default();
                anchors(&text).iter().any(|one| one == heading)
            };
            match target.canonicalize() {
                Ok(file) if heading.is_empty() || has_heading() => targets.push(file),
                _ => wrong.push(format!("{}: {link}", page.display())),
            }
        }
        links.insert(page.canonicalize().unwrap(), targets);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut next = vec![root().join("README.md").canonicalize().unwrap()];
    while let Some(page) = next.pop() {
        next.extend(links.remove(&page).into_iter().flatten());
    }
    assert!(links.is_empty(), "no page links to these: {:#?}", links.keys());
}
