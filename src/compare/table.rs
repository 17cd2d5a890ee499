//! Figures as tables: one list of columns, shown on a terminal, as Markdown, and in the page.

use super::samples::{CallSource, Samples};
use super::schedule::{Case, size_text};
use super::summary::{Cell, Group, Spread, groups, warnings};

/// Stands for what is not known.
const UNKNOWN: &str = "-";

/// A table of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Names of the columns.
    pub names: Vec<&'static str>,
    /// A line for each target, as many texts as there are names.
    pub rows: Vec<Vec<String>>,
}

/// A column: its name, what it shows, and its value for one target.
struct Column {
    name: &'static str,
    what: &'static str,
    value: fn(&Cell) -> String,
}

/// All columns. One in which nobody has a value is left out.
const COLUMNS: &[Column] = &[
    Column { name: "engine", what: "the engine, or the URL", value: |cell| cell.target.to_owned() },
    Column {
        name: "req/s",
        what: "good responses per second, the median of the rounds",
        value: |cell| thousands(cell.throughput().median),
    },
    Column {
        name: "±",
        what: "how far the rounds lie from that median at the most",
        value: |cell| {
            cell.throughput().relative().map_or(UNKNOWN.into(), |far| format!("{:.0}%", far * 100.0))
        },
    },
    Column {
        name: "MB/s",
        what: "bytes received, heads included",
        value: |cell| format!("{:.0}", cell.bytes().median / 1e6),
    },
    Column {
        name: "CPU µs",
        what: "CPU time of the server per request",
        value: |cell| figure(cell.cpu_total(), number),
    },
    Column {
        name: "user",
        what: "the part of it outside the kernel",
        value: |cell| figure(cell.cpu().map(|(user, _)| user), number),
    },
    Column {
        name: "system",
        what: "the part of it within the kernel",
        value: |cell| figure(cell.cpu().map(|(_, system)| system), number),
    },
    Column {
        name: "calls",
        what: "system calls per request, as the engine counts them, but where a mark says otherwise",
        value: |cell| {
            cell.system_calls().map_or_else(
                || UNKNOWN.to_owned(),
                |(calls, source)| format!("{:.2}{}", calls.median, mark(source)),
            )
        },
    },
    Column {
        name: "p50",
        what: "latency that half of the requests did not exceed",
        value: |cell| figure(cell.latency(|latency| latency.p50), time),
    },
    Column { name: "p90", what: "nine of ten", value: |cell| figure(cell.latency(|l| l.p90), time) },
    Column { name: "p99", what: "99 of 100", value: |cell| figure(cell.latency(|l| l.p99), time) },
    Column { name: "p99.9", what: "999 of 1000", value: |cell| figure(cell.latency(|l| l.p999), time) },
    Column { name: "max", what: "the slowest", value: |cell| figure(cell.latency(|l| l.max), time) },
    Column {
        name: "hot p99",
        what: "99 of 100 of a client who asks for a cached file meanwhile",
        value: |cell| figure(cell.hot_p99(), time),
    },
    Column {
        name: "idle CPU",
        what: "part of a core used while all clients are connected and none asks",
        value: |cell| figure(cell.idle_cpu(), |part| format!("{:.0}%", part * 100.0)),
    },
    Column {
        name: "memory",
        what: "memory of all its processes; what they share is counted once",
        value: |cell| figure(cell.memory(), |bytes| format!("{:.1}M", bytes / 1e6)),
    },
    Column {
        name: "preempt/s",
        what: "involuntary context switches per second",
        value: |cell| figure(cell.involuntary(), |count| format!("{count:.0}")),
    },
    Column {
        name: "client",
        what: "part of its core that the load generator used",
        value: |cell| format!("{:.0}%", cell.generator().median * 100.0),
    },
    Column {
        name: "waiting",
        what: "clients the model has no room for",
        value: |cell| some(cell.waiting() as u64),
    },
    Column { name: "errors", what: "requests that failed, in all rounds", value: |cell| some(cell.errors()) },
];

/// One table for each case.
pub fn tables(samples: &Samples) -> Vec<Table> {
    groups(samples).iter().map(table).collect()
}

/// The table of one case.
pub fn table(group: &Group) -> Table {
    let shown: Vec<_> = COLUMNS
        .iter()
        .filter(|column| group.cells.iter().any(|cell| (column.value)(cell) != UNKNOWN))
        .collect();
    Table {
        title: group.case.title(),
        names: shown.iter().map(|column| column.name).collect(),
        rows: group
            .cells
            .iter()
            .map(|cell| shown.iter().map(|column| (column.value)(cell)).collect())
            .collect(),
    }
}

/// Stands behind a number of system calls that is not all the engine's own.
fn mark(source: CallSource) -> &'static str {
    match source {
        CallSource::Engine => "",
        CallSource::Strace => "†",
        CallSource::EngineInPart => "‡",
    }
}

/// What the marks behind the figures mean, as far as there are any.
pub fn notes(groups: &[Group]) -> Vec<String> {
    let cells = || groups.iter().flat_map(|group| &group.cells);
    let of = |wanted| cells().filter(move |cell| cell.system_calls().is_some_and(|(_, from)| from == wanted));
    let mut notes = Vec::new();
    if of(CallSource::Strace).next().is_some() {
        notes.push(format!(
            "{} counted by strace in a short load after the measured one, for this engine does not see the \
             calls by which its runtime or the C library serves it. strace slows it, so that a call now and \
             then counts for more than it does at full speed.",
            mark(CallSource::Strace)
        ));
    }
    if of(CallSource::EngineInPart).next().is_some() {
        let mut reasons: Vec<_> = of(CallSource::EngineInPart).filter_map(Cell::untraced).collect();
        reasons.sort_unstable();
        reasons.dedup();
        let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
        notes.push(format!(
            "{} runtime not counted: only the calls that the engine makes itself{why}.",
            mark(CallSource::EngineInPart)
        ));
    }
    notes
}

/// What the columns mean: names and explanations.
pub fn legend() -> impl Iterator<Item = (&'static str, &'static str)> {
    COLUMNS.iter().map(|column| (column.name, column.what))
}

/// Everything, for a terminal.
pub fn text(samples: &Samples) -> String {
    let mut text = String::new();
    for table in tables(samples) {
        text += &format!("{}\n{}\n", table.title, aligned(&table));
    }
    for note in notes(&groups(samples)) {
        text += &format!("{note}\n");
    }
    for refused in &samples.refusals {
        text += &format!("{} did not run: {}\n", refused.engine, refused.reason);
    }
    for warning in warnings(samples) {
        text += &format!("Warning: {warning}\n");
    }
    text
}

/// A table in columns of even width, the first to the left and the others to the right.
pub fn aligned(table: &Table) -> String {
    let names: Vec<String> = table.names.iter().map(|&name| name.to_owned()).collect();
    let lines: Vec<_> = std::iter::once(&names).chain(&table.rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..names.len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let first = format!("  {:<width$}", line[0], width = widths[0]);
        let rest = line.iter().zip(&widths).skip(1).map(|(value, width)| format!("  {value:>width$}"));
        text += first.trim_end();
        // The blanks cut off above are wanted again where something follows.
        text += &" ".repeat(first.len() - first.trim_end().len());
        text.extend(rest);
        text.push('\n');
    }
    text
}

/// Everything, as Markdown.
pub fn markdown(samples: &Samples) -> String {
    let mut text = String::from("# ringserve compare\n");
    let all = groups(samples);
    if all.len() > 1 {
        text += &format!("\n## All cases\n\n{}", overview(&all));
    }
    for table in tables(samples) {
        text += &format!("\n## {}\n\n{}", table.title, markdown_table(&table));
    }
    let list = |title: &str, items: Vec<String>| {
        if items.is_empty() { String::new() } else { format!("\n## {title}\n\n- {}\n", items.join("\n- ")) }
    };
    for note in notes(&all) {
        text += &format!("\n{note}\n");
    }
    let refusals = samples.refusals.iter().map(|refused| format!("{}: {}", refused.engine, refused.reason));
    text += &list("Engines that did not run", refusals.collect());
    text += &list("Warnings", warnings(samples));
    let environment = samples.environment.lines();
    text +=
        &list("Environment", environment.iter().map(|(name, value)| format!("{name}: {value}")).collect());
    let meanings = legend().map(|(name, what)| format!("`{name}`: {what}"));
    text += &list("Columns", meanings.collect());
    text
}

/// All cases beside each other, as Markdown: of each the two figures that say most, of the first one two
/// more, and where clients are idle what they cost.
fn overview(groups: &[Group]) -> String {
    let Some(first) = groups.first() else { return String::new() };
    let mut rows: Vec<Vec<String>> = vec![vec!["engine".to_owned()], vec!["---".to_owned()]];
    let mut targets: Vec<&Cell> = groups.iter().flat_map(|group| &group.cells).collect();
    targets.sort_by_key(|cell| cell.family);
    let mut names: Vec<&str> = Vec::new();
    for cell in targets {
        if !names.contains(&cell.target) {
            names.push(cell.target);
        }
    }
    rows.extend(names.iter().map(|name| vec![format!("`{}`", name.replace('|', "\\|"))]));
    for group in groups {
        let mut shown = vec!["req/s", "CPU µs"];
        if group.case == first.case {
            shown.extend(["calls", "p99"]);
        }
        if group.case.idle > 0 {
            shown.push("idle CPU");
        }
        for (number, column) in shown.iter().enumerate() {
            let what =
                if number == 0 { format!("{}: ", brief(group.case, first.case)) } else { String::new() };
            rows[0].push(what + column);
            rows[1].push("---:".to_owned());
            let column = COLUMNS.iter().find(|one| one.name == *column).expect("it is one of them");
            for (row, name) in rows[2..].iter_mut().zip(&names) {
                let cell = group.cells.iter().find(|cell| cell.target == *name);
                row.push(cell.map_or_else(|| UNKNOWN.to_owned(), column.value));
            }
        }
    }
    let lines: Vec<_> = rows.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
    lines.concat()
}

/// In which a case differs from the first one, in a few words.
fn brief(case: &Case, first: &Case) -> String {
    let mut words = Vec::new();
    if case == first || case.size != first.size {
        words.push(size_text(case.size));
    }
    if case.cold {
        words.push("cold".to_owned());
    }
    if case == first || case.connections != first.connections {
        words.push(format!("{} clients", case.connections));
    }
    if case.idle != first.idle {
        words.push(format!("{} idle", case.idle));
    }
    if case.pipeline != first.pipeline {
        words.push(format!("{} at once", case.pipeline));
    }
    if case.keep_alive != first.keep_alive {
        words.push(if case.keep_alive { "kept alive" } else { "a connection each" }.to_owned());
    }
    words.join(", ")
}

/// A table in Markdown.
pub fn markdown_table(table: &Table) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(table.names.clone());
    let rules = (0..table.names.len()).map(|column| if column == 0 { "---" } else { "---:" });
    text += &line(rules.collect());
    for row in &table.rows {
        let escaped: Vec<_> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        text += &line(escaped.iter().map(String::as_str).collect());
    }
    text
}

fn figure(spread: Option<Spread>, show: impl Fn(f64) -> String) -> String {
    spread.map_or_else(|| UNKNOWN.to_owned(), |spread| show(spread.median))
}

fn some(count: u64) -> String {
    if count == 0 { UNKNOWN.to_owned() } else { count.to_string() }
}

/// With as many decimals as mean something.
fn number(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A time, given in microseconds.
pub fn time(microseconds: f64) -> String {
    match microseconds {
        ..1000.0 => format!("{microseconds:.0}µs"),
        1000.0..10_000.0 => format!("{:.2}ms", microseconds / 1e3),
        10_000.0..100_000.0 => format!("{:.1}ms", microseconds / 1e3),
        100_000.0..1e6 => format!("{:.0}ms", microseconds / 1e3),
        _ => format!("{:.2}s", microseconds / 1e6),
    }
}

/// `12,345`.
pub fn thousands(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What a comparison is about to do, in a line.
pub fn plan_text(runs: usize, seconds: f64, sizes: &[u64]) -> String {
    let sizes: Vec<_> = sizes.iter().map(|&size| size_text(size)).collect();
    let time = if seconds < 90.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) };
    format!("{runs} runs, about {time}; files of {}", sizes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::samples::tests::samples;

    #[test]
    fn numbers_are_easy_to_read() {
        for (value, text) in [(0.0, "0.0"), (99.94, "99.9"), (999.6, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(thousands(value), text);
        }
        for (value, text) in [(12.3, "12µs"), (1234.0, "1.23ms"), (45_678.0, "45.7ms"), (2.5e6, "2.50s")] {
            assert_eq!(time(value), text);
        }
        assert_eq!([1.234, 12.34, 123.4].map(number), ["1.23", "12.3", "123"]);
        assert_eq!(plan_text(3, 30.0, &[1024]), "3 runs, about 30 s; files of 1 KiB");
        assert!(plan_text(3, 600.0, &[]).contains("10 min"));
    }

    #[test]
    fn columns_without_values_are_left_out() {
        let mut samples = samples();
        let names = |samples: &Samples| tables(samples)[0].names.clone();
        assert!(names(&samples).contains(&"calls") && !names(&samples).contains(&"errors"));
        for run in &mut samples.runs {
            run.calls = None;
            run.errors = 1;
        }
        assert!(!names(&samples).contains(&"calls") && names(&samples).contains(&"errors"));
    }

    #[test]
    fn all_cases_stand_beside_each_other() {
        let mut samples = samples();
        samples.runs.retain(|run| run.case.idle == 0 || run.target == "uring");
        let text = overview(&groups(&samples));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "| engine | 1 KiB, 64 clients: req/s | CPU µs | calls | p99 | 800 idle: req/s | CPU µs | idle \
             CPU |"
        );
        assert_eq!(lines[2], "| `epoll` | 10,100 | 89.1 | 2.00 | 990µs | - | - | - |");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn marks_are_explained_where_they_stand() {
        let mut samples = samples();
        assert_eq!(notes(&groups(&samples)), Vec::<String>::new());
        for (number, run) in samples.runs.iter_mut().enumerate() {
            let calls = run.calls.as_mut().unwrap();
            calls.source = CallSource::Strace;
            if number % 2 == 1 {
                (calls.source, calls.refusal) = (CallSource::EngineInPart, Some("no strace".into()));
            }
        }
        for text in [text(&samples), markdown(&samples)] {
            assert!(text.contains("2.00†") && text.contains("2.00‡"), "{text}");
            assert!(text.contains("† counted by strace") && text.contains("‡ runtime not counted"), "{text}");
            assert!(text.contains("makes itself: no strace."), "{text}");
        }
    }

    #[test]
    fn the_columns_of_a_terminal_are_even() {
        let text = aligned(&tables(&samples())[0]);
        let widths: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 3);
        assert!(widths.iter().all(|&width| width == widths[0]), "{text}");
    }

    #[test]
    fn markdown_has_as_many_bars_in_each_line() {
        let mut samples = samples();
        samples.runs[0].target = "http://x/a|b".into();
        let text = markdown(&samples);
        let bars = |line: &str| line.replace("\\|", "").matches('|').count();
        let mut lines = text.lines().peekable();
        let mut count = 0;
        while let Some(line) = lines.next() {
            if let Some(next) = lines.peek()
                && line.starts_with('|')
                && next.starts_with('|')
            {
                assert_eq!(bars(line), bars(next), "{line}");
                count += 1;
            }
        }
        // All cases with three targets, then one with three and one with two.
        assert_eq!(count, 4 + 4 + 3);
        assert!(text.contains("tokio: not <here>") && text.contains("## Environment"));
    }
}
