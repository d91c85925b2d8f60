//! The table: medians and spread, beside their goals.

use std::collections::BTreeMap;

use crate::{load::Report, options::Options};

/// Prints all of it.
pub fn print(options: &Options, results: &BTreeMap<(usize, usize), Vec<Report>>) {
    for (which, workers) in options.workers.iter().enumerate() {
        println!("cycles/s, {workers} workers, {:?}", options.verbs);
        let rate = |at: usize| {
            let reports = results.get(&(which, at)).map_or(&[][..], Vec::as_slice);
            median(&reports.iter().map(|report| report.rate).collect::<Vec<_>>())
        };
        let helper = options.contestants.iter().position(|one| one.name() == "helper");
        for (at, contestant) in options.contestants.iter().enumerate() {
            let reports = results.get(&(which, at)).map_or(&[][..], Vec::as_slice);
            let (middle, least, most) = rate(at);
            let errors: u64 = reports.iter().map(|report| report.errors).sum();
            let percentile = |which: usize| {
                median(&reports.iter().map(|report| report.percentiles[which]).collect::<Vec<_>>()).0
            };
            print!(
                "  {:<12} {middle:>7.0} ({least:.0}..{most:.0})  p50 {:.0} p90 {:.0} p99 {:.0} us",
                contestant.name(),
                percentile(0),
                percentile(1),
                percentile(2)
            );
            if let Some(helper) = helper {
                print!("  {:.3} of helper", middle / rate(helper).0);
            }
            if errors > 0 {
                let first = reports.iter().find_map(|report| report.error.clone());
                print!("  {errors} ERRORS: {}", first.unwrap_or_default());
            }
            println!();
        }
    }
}

/// Median, least and most.
fn median(values: &[f64]) -> (f64, f64, f64) {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    match (values.first(), values.last()) {
        (Some(first), Some(last)) => (values[values.len() / 2], *first, *last),
        _ => (0.0, 0.0, 0.0),
    }
}
