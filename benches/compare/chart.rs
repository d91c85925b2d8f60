//! The results as a bar chart: the length of a bar is a ratio, divided by its goal.

use std::fmt::Write as _;

use crate::{
    options::Options,
    results::Results,
    table::{goal_pairs, ratio_title},
};

const WIDTH: f64 = 980.0;
/// The position at which bars begin.
const LEFT: f64 = 470.0;
/// The position of the goal.
const GOAL: f64 = 710.0;
/// The longest bar, in goals.
const MOST: f64 = 1.6;
const ROW: f64 = 30.0;
const TOP: f64 = 64.0;

/// The chart as an SVG file.
pub fn svg(options: &Options, machine: &str, results: &Results) -> String {
    let mut rows = String::new();
    let mut count = 0.0;
    for (at, figure) in options.figures.iter().enumerate() {
        for (goal, contestant) in goal_pairs(*figure, options) {
            let Some((ratio, with)) = results.ratio(at, contestant.name(), goal) else { continue };
            let y = TOP + ROW * count;
            let share = ratio.median / goal.least;
            let length = share.min(MOST) * (GOAL - LEFT);
            let colour = if share >= 1.0 { "#2e7d32" } else { "#c62828" };
            let title = ratio_title(options, *figure, contestant, with);
            let failed = [contestant.name(), with].iter().any(|name| results.errors(at, name) > 0);
            let sign = match (failed, share > MOST) {
                (true, _) => "ERRORS ",
                (false, true) => "\u{25b8} ",
                (false, false) => "",
            };
            let [from, to] = [ratio.least, ratio.most]
                .map(|value| LEFT + (value / goal.least).min(MOST) * (GOAL - LEFT));
            let _ = write!(
                rows,
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{LEFT}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"18\" fill=\"{colour}\"/>\n\
                 <line x1=\"{from:.1}\" y1=\"{:.0}\" x2=\"{to:.1}\" y2=\"{:.0}\" stroke=\"#222\"/>\n\
                 <text x=\"{:.0}\" y=\"{:.0}\">{sign}{:.2}  (goal {})</text>\n",
                LEFT - 8.0,
                y + 14.0,
                escaped(&title),
                y,
                y + 9.0,
                y + 9.0,
                to.max(LEFT + length) + 6.0,
                y + 14.0,
                ratio.median,
                goal.least,
            );
            count += 1.0;
        }
    }
    let height = TOP + ROW * count + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"16\">ftp-alg compared with others: ratios and their goals</text>\n\
         <text x=\"12\" y=\"42\" fill=\"#555\">{}</text>\n{rows}\
         <line x1=\"{GOAL}\" y1=\"{:.0}\" x2=\"{GOAL}\" y2=\"{:.0}\" stroke=\"#333\" \
         stroke-dasharray=\"4 3\"/>\n</svg>\n",
        escaped(machine),
        TOP - 8.0,
        height - 8.0,
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
