//! Two comparisons beside each other: ratios, and whether they mean anything.

use super::samples::Samples;
use super::summary::{Cell, Spread, groups};
use super::table::{Table, aligned};

/// A single run may differ from the next by so much without a reason.
const NOISE: f64 = 0.15;

/// Ratios of new to old for every target and case that both have, as tables for a terminal.
///
/// # Errors
/// That they have nothing in common.
pub fn text(new: &Samples, old: &Samples) -> Result<String, String> {
    let tables = tables(new, old);
    if tables.is_empty() {
        return Err("the two comparisons have no engine and case in common; run the same --engines, \
                    --connections and --sizes"
            .to_owned());
    }
    let mut text = format!("Ratios of the new figures to those of {}\n", old.environment.date);
    for (name, is_other) in [
        ("kernel", new.environment.kernel != old.environment.kernel),
        ("processor", new.environment.cpu != old.environment.cpu),
    ] {
        if is_other {
            text += &format!("Warning: the {name} is another one.\n");
        }
    }
    for table in tables {
        text += &format!("{}\n{}\n", table.title, aligned(&table));
    }
    Ok(text)
}

fn tables(new: &Samples, old: &Samples) -> Vec<Table> {
    let old = groups(old);
    let mut tables = Vec::new();
    for group in groups(new) {
        let Some(before) = old.iter().find(|other| other.case == group.case) else { continue };
        let pairs = group.cells.iter().filter_map(|cell| {
            let other = before.cells.iter().find(|other| other.target == cell.target)?;
            Some(row(cell, other))
        });
        let rows: Vec<_> = pairs.collect();
        if !rows.is_empty() {
            let names = vec!["engine", "req/s", "", "CPU µs", "", "p99", ""];
            tables.push(Table { title: group.case.title(), names, rows });
        }
    }
    tables
}

fn row(new: &Cell, old: &Cell) -> Vec<String> {
    let mut row = vec![new.target.to_owned()];
    for (new, old) in [
        (Some(new.throughput()), Some(old.throughput())),
        (new.cpu_total(), old.cpu_total()),
        (new.latency(|latency| latency.p99), old.latency(|latency| latency.p99)),
    ] {
        let (ratio, remark) = match (new, old) {
            (Some(new), Some(old)) if old.median > 0.0 => {
                (format!("{:.2}", new.median / old.median), remark(&new, &old))
            }
            _ => ("-".to_owned(), ""),
        };
        row.extend([ratio, remark.to_owned()]);
    }
    row
}

/// Whether a difference is more than chance. With three rounds and more on each side, it is called clear if
/// every new one lies on the same side of every old one: by chance, three and three do so once in ten times.
fn remark(new: &Spread, old: &Spread) -> &'static str {
    let ratio = new.median / old.median;
    let apart = new.min > old.max || new.max < old.min;
    match (new.count.min(old.count), apart) {
        (3.., true) => "clear",
        (3.., false) => "noise",
        _ if (ratio - 1.0).abs() > NOISE && apart => "likely",
        _ => "unclear",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::samples::tests::{run, samples};

    #[test]
    fn ratios_and_remarks() {
        let old = samples();
        let mut new = samples();
        for run in &mut new.runs {
            run.requests *= 2;
        }
        let rows = tables(&new, &old).remove(0).rows;
        assert_eq!(rows[0], ["epoll", "2.00", "clear", "0.50", "clear", "1.00", "noise"]);
        assert_eq!(tables(&old, &old)[0].rows[0][2], "noise");
        assert!(text(&new, &old).unwrap().contains("2.00"));
    }

    #[test]
    fn one_round_proves_little() {
        let one = |requests| Spread::of([requests]).unwrap();
        assert_eq!(remark(&one(1.1), &one(1.0)), "unclear");
        assert_eq!(remark(&one(1.3), &one(1.0)), "likely");
    }

    #[test]
    fn nothing_in_common_is_an_error() {
        let mut other = samples();
        other.runs = vec![run("spin", 3, 0, 1)];
        assert!(text(&samples(), &other).unwrap_err().contains("no engine and case in common"));
    }
}
