//! Figures as tables: one list of columns, shown on a terminal, as Markdown, and in the page.

use super::samples::Samples;
use super::schedule::size_text;
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
        what: "system calls per request, as the engine counts them",
        value: |cell| figure(cell.system_calls(), |calls| format!("{calls:.2}")),
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
    for table in tables(samples) {
        text += &format!("\n## {}\n\n{}", table.title, markdown_table(&table));
    }
    let list = |title: &str, items: Vec<String>| {
        if items.is_empty() { String::new() } else { format!("\n## {title}\n\n- {}\n", items.join("\n- ")) }
    };
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
            run.counters.clear();
            run.errors = 1;
        }
        assert!(!names(&samples).contains(&"calls") && names(&samples).contains(&"errors"));
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
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        let bars = rows[0].matches('|').count();
        assert!(rows.iter().all(|row| row.replace("\\|", "").matches('|').count() == bars));
        assert!(text.contains("tokio: not <here>") && text.contains("## Environment"));
    }
}
