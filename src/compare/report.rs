//! The page: one HTML file with its pictures and style within, and nothing to load.
//!
//! It says in words what each picture shows, and where completion does not win. All of it is made from the
//! samples, so that the words hold for this machine and not for the author's.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::engines::Family;

use super::plots::{self, Bar, Series, Spectrum};
use super::samples::Samples;
use super::schedule::Case;
use super::summary::{Cell, Group, Spread, groups, warnings};
use super::table::{self, Table, thousands, time};

const STYLE: &str = include_str!("report.css");
/// Cases that are shown in full; the others unfold.
const OPEN_CASES: usize = 4;
/// A lead smaller than this, or than the rounds' own spread, is none.
const LEAD_MIN: f64 = 0.03;
/// The same where there is but one round to go by.
const LEAD_MIN_ONE_ROUND: f64 = 0.12;

/// The report as a page.
pub fn page(samples: &Samples) -> String {
    let groups = groups(samples);
    let environment = &samples.environment;
    let rounds = samples.runs.iter().map(|run| run.round + 1).max().unwrap_or(0);
    let lost = verdicts(&groups, false);
    let won = verdicts(&groups, true);
    let tied = ties(&groups);
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "ringserve compare" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "How engines compare" }
                    p.lead {
                        (count(targets(&groups).len(), "server")) " under the same load, "
                        (count(groups.len(), "case")) ", " (count(rounds, "round")) " of each. "
                        "Measured with ringserve " (environment.version) " on " (environment.kernel) ", "
                        (environment.cpu) ", " (count(environment.cores, "core")) ", " (environment.date) "."
                    }
                    (family_legend(&groups))
                }
                main {
                    section {
                        h2 { "Where completion does not win" }
                        @if !has_completion(&groups) {
                            p { "No engine of that family was measured." }
                        } @else if lost.is_empty() {
                            p { "It loses nowhere in this comparison, beyond what rounds differ by." }
                        } @else {
                            ul { @for verdict in &lost { li { (verdict) } } }
                        }
                        @if !tied.is_empty() {
                            p { "Nor where it makes no difference beyond what rounds differ by:" }
                            ul { @for tie in &tied { li { (tie) } } }
                        }
                        @if !won.is_empty() {
                            details {
                                summary { "Where it wins (" (won.len()) ")" }
                                ul { @for verdict in &won { li { (verdict) } } }
                            }
                        }
                        (listed("Warnings", warnings(samples)))
                        (listed("Engines that did not run", refusals(samples)))
                    }
                    (idle_section(&groups))
                    @for (number, group) in groups.iter().enumerate() {
                        (case_section(group, number < OPEN_CASES))
                    }
                    section {
                        h2 { "What the columns mean" }
                        dl { @for (name, what) in table::legend() { div { dt { (name) } dd { (what) } } } }
                    }
                    section {
                        h2 { "Where this was measured" }
                        dl.wide {
                            @for (name, value) in environment.lines() { div { dt { (name) } dd { (value) } } }
                        }
                    }
                }
            }
        }
    };
    markup.into_string()
}

fn targets<'a>(groups: &[Group<'a>]) -> Vec<(&'a str, Family)> {
    let mut targets = Vec::new();
    for cell in groups.iter().flat_map(|group| &group.cells) {
        if !targets.contains(&(cell.target, cell.family)) {
            targets.push((cell.target, cell.family));
        }
    }
    targets
}

fn family_legend(groups: &[Group]) -> Markup {
    let targets = targets(groups);
    html! {
        ul.families {
            @for family in Family::ALL {
                @let of_it = targets.iter().filter(|target| target.1 == family);
                @let names: Vec<_> = of_it.map(|target| target.0).collect();
                @if !names.is_empty() {
                    li {
                        span.chip style=(format!("background: var(--{})", plots::class(family))) {}
                        b { (family.name()) } " " (names.join(", "))
                    }
                }
            }
        }
    }
}

/// What idle clients cost: CPU while nobody asks, and CPU and throughput as their number grows.
fn idle_section(groups: &[Group]) -> Markup {
    let Some(crowded) = groups.iter().filter(|group| !group.case.cold).max_by_key(|group| group.case.idle)
    else {
        return html! {};
    };
    let bars: Vec<_> = crowded
        .cells
        .iter()
        .filter_map(|cell| bar(cell, cell.idle_cpu()?, |part| format!("{:.0} %", part * 100.0)))
        .collect();
    let connected = crowded.case.connections + crowded.case.idle;
    let busy: Vec<_> = bars
        .iter()
        .filter(|bar| bar.value > 0.5)
        .map(|bar| format!("{} burns {}", bar.name, bar.text))
        .collect();
    let verdict = if busy.is_empty() {
        "Nobody burns a core while nobody asks.".to_owned()
    } else {
        format!("{} of a core for nothing; the others sleep in the kernel.", list(&busy))
    };
    let stepped = groups.iter().find_map(|group| {
        let steps = idle_steps(groups, group.case);
        (steps.len() > 1).then_some(steps)
    });
    html! {
        section {
            h2 { "Clients who ask nothing" }
            div.figures {
                @if !bars.is_empty() {
                    (figure(
                        "CPU while nobody asks",
                        &format!(
                            "The part of a core that each server uses with {connected} clients connected and \
                             silent; shorter is better. {verdict}"
                        ),
                        plots::bars("CPU while nobody asks", &bars),
                    ))
                }
                @if let Some(steps) = &stepped { (idle_figures(steps)) }
            }
        }
    }
}

/// The cases that differ from this one in the number of idle clients only.
fn idle_steps<'a, 'b>(groups: &'b [Group<'a>], case: &Case) -> Vec<&'b Group<'a>> {
    let alike = |other: &Case| Case { idle: 0, ..other.clone() } == Case { idle: 0, ..case.clone() };
    let mut steps: Vec<_> = groups.iter().filter(|group| alike(group.case)).collect();
    steps.sort_by_key(|group| group.case.idle);
    steps
}

fn idle_figures(steps: &[&Group]) -> Markup {
    let series = |value: fn(&Cell) -> Option<f64>| -> Vec<Series> {
        let mut all: Vec<Series> = Vec::new();
        for group in steps {
            for cell in group.cells.iter().filter(|cell| cell.is_whole()) {
                let Some(value) = value(cell) else { continue };
                let point = (group.case.idle as f64, value);
                match all.iter_mut().find(|series| series.name == cell.target) {
                    Some(series) => series.points.push(point),
                    None => all.push(Series { name: cell.target, family: cell.family, points: vec![point] }),
                }
            }
        }
        all.retain(|series| series.points.len() > 1);
        all
    };
    let throughput = series(|cell| Some(cell.throughput().median));
    let cpu = series(|cell| cell.cpu_total().map(|cpu| cpu.median));
    let most = steps.last().map_or(0, |group| group.case.idle);
    let title = steps[0].case.title();
    html! {
        (figure(
            "Throughput beside idle clients",
            &format!(
                "{title}, with more and more idle clients beside them; a line that stays level is better. {}",
                slope(&throughput, most, "serves", true)
            ),
            plots::lines("Throughput beside idle clients", "requests/s", &throughput, thousands_short),
        ))
        @if !cpu.is_empty() {
            (figure(
                "Cost beside idle clients",
                &format!(
                    "CPU per request in the same runs: a model that looks at every client pays for those who \
                     are silent. {}",
                    slope(&cpu, most, "spends", false)
                ),
                plots::lines("Cost beside idle clients", "CPU µs per request", &cpu, thousands_short),
            ))
        }
    }
}

/// Who changes for the worse most, and who least, from no idle clients to all of them.
fn slope(series: &[Series], most: usize, does: &str, more_is_better: bool) -> String {
    let mut ratios: Vec<_> = series
        .iter()
        .filter_map(|series| {
            let (first, last) = (series.points.first()?.1, series.points.last()?.1);
            (first > 0.0).then(|| (series.name, last / first))
        })
        .collect();
    ratios.sort_by(|a, b| a.1.total_cmp(&b.1));
    if !more_is_better {
        ratios.reverse();
    }
    match (ratios.first(), ratios.last()) {
        (Some(first), Some(last)) if ratios.len() > 1 => format!(
            "With {most} of them, {} {does} {:.0} % of what it did without, and {} {:.0} %.",
            first.0,
            first.1 * 100.0,
            last.0,
            last.1 * 100.0
        ),
        _ => String::new(),
    }
}

fn case_section(group: &Group, open: bool) -> Markup {
    let throughput: Vec<_> =
        group.cells.iter().filter_map(|cell| bar(cell, cell.throughput(), thousands)).collect();
    let cpu: Vec<_> = group
        .cells
        .iter()
        .filter_map(|cell| bar(cell, cell.cpu_total()?, |value| format!("{value:.1} µs")))
        .collect();
    let hot: Vec<_> = group.cells.iter().filter_map(|cell| bar(cell, cell.hot_p99()?, time)).collect();
    let spectra: Vec<_> = group
        .cells
        .iter()
        .filter_map(|cell| {
            let mark = |value: fn(&super::samples::Latency) -> f64| Some(cell.latency(value)?.median);
            let marks =
                [mark(|l| l.p50)?, mark(|l| l.p90)?, mark(|l| l.p99)?, mark(|l| l.p999)?, mark(|l| l.max)?];
            Some(Spectrum { name: cell.target, family: cell.family, marks })
        })
        .collect();
    let waiting =
        group.cells.iter().filter(|cell| cell.waiting() > 0).map(|cell| cell.target).collect::<Vec<_>>();
    let body = html! {
        div.figures {
            (figure(
                "Throughput",
                &format!("Good responses per second; longer is better. {}", lead(&throughput, true)),
                plots::bars("Throughput", &throughput),
            ))
            @if !cpu.is_empty() {
                (figure(
                    "CPU per request",
                    &format!(
                        "CPU time of the server's processes, divided by the requests; shorter is better. {}",
                        lead(&cpu, false)
                    ),
                    plots::bars("CPU per request", &cpu),
                ))
            }
            (figure(
                "Latency",
                "From when a request was due to its last byte; each step of the scale is ten times the one \
                 before. The dot is the median, the thick line ends at nine of ten, the ring is 99 of 100, \
                 the stroke 999 of 1000, and the thin line ends at the slowest.",
                plots::spectra("Latency", &spectra),
            ))
            @if !hot.is_empty() {
                (figure(
                    "A hot client beside cold files",
                    &format!(
                        "What 99 of 100 requests for a cached file did not exceed while the others wait for \
                         the disk: a loop that reads files by itself holds this client up. {}",
                        lead(&hot, false)
                    ),
                    plots::bars("A hot client beside cold files", &hot),
                ))
            }
        }
        @if !waiting.is_empty() {
            p.note {
                "Outlined: " (list(&waiting)) " had fewer clients than the others, for the model has no room \
                 for more; the rest of them waited."
            }
        }
        (html_table(&table::table(group)))
        @for note in table::notes(std::slice::from_ref(group)) { p.note { (note) } }
    };
    html! {
        section {
            @if open {
                h2 { (group.case.title()) }
                (body)
            } @else {
                details { summary { h2 { (group.case.title()) } } (body) }
            }
        }
    }
}

fn bar<'a>(cell: &Cell<'a>, spread: Spread, show: impl Fn(f64) -> String) -> Option<Bar<'a>> {
    spread.median.is_finite().then(|| Bar {
        name: cell.target,
        family: cell.family,
        value: spread.median,
        range: (spread.min, spread.max),
        text: show(spread.median),
        hollow: !cell.is_whole(),
    })
}

/// Who leads, and by how much; among those who had all clients.
fn lead(bars: &[Bar], more_is_better: bool) -> String {
    let mut whole: Vec<_> = bars.iter().filter(|bar| !bar.hollow && bar.value > 0.0).collect();
    whole.sort_by(|a, b| a.value.total_cmp(&b.value));
    if more_is_better {
        whole.reverse();
    }
    let (Some(best), Some(worst)) = (whole.first(), whole.last()) else { return String::new() };
    if whole.len() < 2 {
        return String::new();
    }
    let ratio = (best.value / worst.value).max(worst.value / best.value);
    format!(
        "{} leads with {}, {ratio:.2} times better than {} with {}.",
        best.name, best.text, worst.name, worst.text
    )
}

fn has_completion(groups: &[Group]) -> bool {
    targets(groups).iter().any(|target| target.1 == Family::Completion)
}

/// A figure by which engines are judged.
struct Metric {
    value: fn(&Cell) -> Option<Spread>,
    more_is_better: bool,
    /// Whether it says nothing where something else ran on the cores.
    wants_cores: bool,
    /// What the winner does, in words: `ENGINE {words} than ENGINE`.
    words: &'static str,
    /// What it is called.
    name: &'static str,
}

const METRICS: &[Metric] = &[
    Metric {
        value: |cell| Some(cell.throughput()),
        more_is_better: true,
        wants_cores: true,
        words: "answers more requests per second",
        name: "requests per second",
    },
    Metric {
        value: |cell| cell.cpu_total(),
        more_is_better: false,
        wants_cores: false,
        words: "spends less CPU per request",
        name: "CPU per request",
    },
    Metric {
        value: |cell| cell.latency(|latency| latency.p99),
        more_is_better: false,
        wants_cores: true,
        words: "has a lower 99th percentile of latency",
        name: "the 99th percentile of latency",
    },
    Metric {
        value: |cell| cell.hot_p99(),
        more_is_better: false,
        wants_cores: false,
        words: "holds the hot client up less",
        name: "the hot client's latency",
    },
    Metric {
        value: |cell| cell.memory(),
        more_is_better: false,
        wants_cores: false,
        words: "holds less memory",
        name: "memory",
    },
];

/// What a comparison of completion with the best of the others has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Wins,
    Loses,
    /// The difference is no larger than what rounds differ by.
    Ties,
}

/// Completion's best engine and the best of the others in one figure of one case, and how they compare.
fn judge<'a>(group: &Group<'a>, metric: &Metric) -> Option<(Verdict, Best<'a>, Best<'a>)> {
    let best = |completion: bool| {
        let fits = |cell: &&Cell| {
            let is_sound = cell.is_whole() && !(metric.wants_cores && cell.is_starved());
            (cell.family == Family::Completion) == completion && is_sound
        };
        let values = group.cells.iter().filter(fits).filter_map(|cell| {
            let spread = (metric.value)(cell).filter(|spread| spread.median > 0.0)?;
            Some(Best { name: cell.target, spread })
        });
        let sign = if metric.more_is_better { -1.0 } else { 1.0 };
        values.min_by(|a, b| (sign * a.spread.median).total_cmp(&(sign * b.spread.median)))
    };
    let (own, other) = (best(true)?, best(false)?);
    let noise = |best: &Best| best.spread.relative().unwrap_or(LEAD_MIN_ONE_ROUND);
    let verdict = if own.lead(&other) <= LEAD_MIN.max(noise(&own)).max(noise(&other)) {
        Verdict::Ties
    } else if (own.spread.median > other.spread.median) == metric.more_is_better {
        Verdict::Wins
    } else {
        Verdict::Loses
    };
    Some((verdict, own, other))
}

/// An engine with its figure.
struct Best<'a> {
    name: &'a str,
    spread: Spread,
}

impl Best<'_> {
    /// How far the one is ahead of the other, whichever it is.
    fn lead(&self, other: &Best) -> f64 {
        let (a, b) = (self.spread.median, other.spread.median);
        (a / b).max(b / a) - 1.0
    }
}

/// Where completion is better than the best of the others, or where it is not, beyond noise.
fn verdicts(groups: &[Group], wins: bool) -> Vec<String> {
    let wanted = if wins { Verdict::Wins } else { Verdict::Loses };
    let mut verdicts = Vec::new();
    for group in groups {
        for metric in METRICS {
            let Some((verdict, own, other)) = judge(group, metric) else { continue };
            if verdict == wanted {
                let (winner, loser) = if wins { (&own, &other) } else { (&other, &own) };
                verdicts.push(format!(
                    "{}: {} {} than {} (factor {:.2}).",
                    group.case.title(),
                    winner.name,
                    metric.words,
                    loser.name,
                    winner.lead(loser) + 1.0
                ));
            }
        }
    }
    verdicts
}

/// Where it makes no difference: for each case, in which figures.
fn ties(groups: &[Group]) -> Vec<String> {
    let of = |group: &Group| {
        let tied = METRICS.iter().filter_map(|metric| {
            let (verdict, own, other) = judge(group, metric)?;
            let what = || format!("{} ({} and {})", metric.name, own.name, other.name);
            (verdict == Verdict::Ties).then(what)
        });
        let tied: Vec<_> = tied.collect();
        (!tied.is_empty()).then(|| format!("{}: {}.", group.case.title(), list(&tied)))
    };
    groups.iter().filter_map(of).collect()
}

fn figure(title: &str, text: &str, svg: String) -> Markup {
    html! {
        figure {
            figcaption { b { (title) } " " (text) }
            (PreEscaped(svg))
        }
    }
}

fn html_table(table: &Table) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(table.title) {
            table {
                thead { tr { @for name in &table.names { th scope="col" { (name) } } } }
                tbody {
                    @for row in &table.rows {
                        tr {
                            @for (number, cell) in row.iter().enumerate() {
                                @if number == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn listed(title: &str, items: Vec<String>) -> Markup {
    html! {
        @if !items.is_empty() {
            h3 { (title) }
            ul { @for item in items { li { (item) } } }
        }
    }
}

fn refusals(samples: &Samples) -> Vec<String> {
    samples.refusals.iter().map(|refused| format!("{}: {}", refused.engine, refused.reason)).collect()
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn list(items: &[impl AsRef<str>]) -> String {
    let items: Vec<_> = items.iter().map(AsRef::as_ref).collect();
    match &*items {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [front @ .., last] => format!("{} and {last}", front.join(", ")),
    }
}

/// `60k` for an axis, whose steps are round numbers but for what a sum of them has lost.
fn thousands_short(value: f64) -> String {
    let round = |value: f64| (value * 1e6).round() / 1e6;
    if value >= 1000.0 { format!("{}k", round(value / 1000.0)) } else { round(value).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::samples::tests::samples;

    #[test]
    fn the_page_is_whole_and_asks_for_nothing() {
        let page = page(&samples());
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
        for word in ["<script", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("not &lt;here&gt;") && page.matches("<svg ").count() >= 7);
    }

    #[test]
    fn it_says_where_completion_wins_and_where_not() {
        let mut samples = samples();
        let all = |samples: &Samples, wins| verdicts(&groups(samples), wins).join("\n");
        assert!(
            all(&samples, true).contains("uring answers more requests per second than epoll (factor 1.19)")
        );
        assert_eq!(all(&samples, false), "");
        assert_eq!(
            ties(&groups(&samples))[0],
            "1 KiB to 64 clients: the 99th percentile of latency (uring and epoll) and memory (uring and \
             epoll)."
        );
        assert!(page(&samples).contains("It loses nowhere") && page(&samples).contains("Nor where it makes"));
        for run in samples.runs.iter_mut().filter(|run| run.target == "epoll") {
            run.requests = 24_000;
        }
        assert!(
            all(&samples, false).contains("epoll answers more requests per second than uring (factor 2.00)")
        );
        assert!(page(&samples).contains("epoll answers more"));
    }

    #[test]
    fn what_had_fewer_clients_is_not_compared() {
        let mut samples = samples();
        for run in samples.runs.iter_mut().filter(|run| run.target == "epoll") {
            (run.requests, run.waiting) = (90_000, 63);
        }
        assert_eq!(verdicts(&groups(&samples), false), Vec::<String>::new());
        assert!(page(&samples).contains("epoll had fewer clients"));
    }

    #[test]
    fn lists_read_like_sentences() {
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
        assert_eq!(list(&["a"]), "a");
        assert_eq!((count(1, "case"), count(2, "case")), ("1 case".into(), "2 cases".into()));
        assert_eq!([60_000.0, 0.1 * 3.0, 0.0].map(thousands_short), ["60k", "0.3", "0"]);
    }
}
