//! Pictures of the figures, as SVG that stands in a page and follows its colours.
//!
//! `plotters` knows fixed colours only. So each role (ink, grid, the families) has a colour that nobody else
//! would choose, and the finished text has a CSS variable in its place: the page says what it looks like, by
//! day and by night.

use plotters::coord::Shift;
use plotters::element::{Drawable, PointCollection};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::engines::Family;

/// Pixels of every picture; a page shows it as wide as there is room.
const WIDTH: i32 = 440;
/// Where bars and lines begin: names stand to the left of it.
const LEFT: i32 = 100;
/// Height of a line of text and its bar.
const ROW: i32 = 27;
/// Room between two families.
const GAP: i32 = 9;
/// Pixels of text. The library divides by 1.24, which suits another unit.
const TEXT: f64 = 15.0 * 1.24;
/// Characters of a name that fit beside the picture.
const NAME_MAX: usize = 12;

const INK: RGBColor = RGBColor(1, 1, 1);
const SOFT: RGBColor = RGBColor(1, 1, 2);
const LINE: RGBColor = RGBColor(1, 1, 3);
const PAPER: RGBColor = RGBColor(1, 1, 4);
/// The first of the families' colours; the others follow.
const FAMILY: u8 = 10;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A bar: how long, and what stands behind it.
#[derive(Clone, Debug)]
pub struct Bar<'a> {
    /// The engine, or the URL.
    pub name: &'a str,
    /// Its family.
    pub family: Family,
    /// The length.
    pub value: f64,
    /// The least and the greatest over the rounds.
    pub range: (f64, f64),
    /// The value as text.
    pub text: String,
    /// Whether it had fewer clients than the others: such a bar is only an outline.
    pub hollow: bool,
}

/// Bars, one below the other.
pub fn bars(label: &str, bars: &[Bar]) -> String {
    // Texts stand behind the bars.
    const RIGHT: i32 = 78;
    let families: Vec<_> = bars.iter().map(|bar| bar.family).collect();
    let (tops, height) = rows(&families, 4);
    let greatest = bars.iter().map(|bar| bar.range.1.max(bar.value)).fold(0.0, f64::max);
    let x = |value: f64| {
        let part = if greatest > 0.0 { value / greatest } else { 0.0 };
        LEFT + (part * f64::from(WIDTH - LEFT - RIGHT)) as i32
    };
    draw(label, height, |area| {
        for (bar, top) in bars.iter().zip(tops) {
            let color = color(bar.family);
            name(area, bar.name, top);
            let (y, end) = (top + ROW / 2, x(bar.value).max(LEFT + 2));
            let corners = [(LEFT, top + 4), (end, top + ROW - 4)];
            if bar.hollow {
                put(area, &Rectangle::new(corners, color.stroke_width(2)));
            } else {
                put(area, &Rectangle::new(corners, color.filled()));
            }
            let (low, high) = (x(bar.range.0), x(bar.range.1));
            if high > low + 1 {
                put(area, &PathElement::new([(low, y), (high, y)], INK.stroke_width(1)));
                for at in [low, high] {
                    put(area, &PathElement::new([(at, y - 4), (at, y + 4)], INK.stroke_width(1)));
                }
            }
            text(area, &bar.text, (end.max(high) + 6, y), HPos::Left, INK);
        }
    })
}

/// Latencies of one target, in microseconds.
#[derive(Clone, Debug)]
pub struct Spectrum<'a> {
    /// The engine, or the URL.
    pub name: &'a str,
    /// Its family.
    pub family: Family,
    /// p50, p90, p99, p99.9 and the slowest.
    pub marks: [f64; 5],
}

/// Latencies, one target below the other, over a logarithmic scale.
pub fn spectra(label: &str, spectra: &[Spectrum]) -> String {
    const RIGHT: i32 = 24;
    let marks = || spectra.iter().flat_map(|spectrum| spectrum.marks).filter(|&mark| mark > 0.0);
    let decades = (
        marks().fold(f64::MAX, f64::min).clamp(1.0, 1e8).log10().floor() as i32,
        marks().fold(1.0, f64::max).max(10.0).log10().ceil() as i32,
    );
    let x = |value: f64| {
        let part =
            (value.max(1e-3).log10() - f64::from(decades.0)) / f64::from((decades.1 - decades.0).max(1));
        LEFT + (part.clamp(0.0, 1.0) * f64::from(WIDTH - LEFT - RIGHT)) as i32
    };
    let families: Vec<_> = spectra.iter().map(|spectrum| spectrum.family).collect();
    let (tops, bottom) = rows(&families, 4);
    draw(label, bottom + 24, |area| {
        for decade in decades.0..=decades.1 {
            let value = 10f64.powi(decade);
            put(area, &PathElement::new([(x(value), 0), (x(value), bottom)], LINE.stroke_width(1)));
            text(area, &short_time(value), (x(value), bottom + 12), HPos::Center, SOFT);
        }
        for (spectrum, top) in spectra.iter().zip(tops) {
            let color = color(spectrum.family);
            let y = top + ROW / 2;
            name(area, spectrum.name, top);
            let [p50, p90, p99, p999, max] = spectrum.marks.map(x);
            put(area, &PathElement::new([(p50, y), (max, y)], color.stroke_width(2)));
            put(area, &PathElement::new([(p50, y), (p90, y)], color.stroke_width(7)));
            put(area, &Circle::new((p50, y), 6, color.filled()));
            put(area, &Circle::new((p99, y), 5, PAPER.filled()));
            put(area, &Circle::new((p99, y), 5, color.stroke_width(2)));
            put(area, &PathElement::new([(p999, y - 7), (p999, y + 7)], color.stroke_width(2)));
        }
    })
}

/// A line: a target's values, each at its place.
#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// The engine, or the URL.
    pub name: &'a str,
    /// Its family.
    pub family: Family,
    /// Places and values.
    pub points: Vec<(f64, f64)>,
}

/// Lines over a common scale that begins at zero, each with its name at its end.
pub fn lines(label: &str, unit: &str, series: &[Series], show: impl Fn(f64) -> String) -> String {
    const AXIS: i32 = 52;
    const RIGHT: i32 = 114;
    const TOP: i32 = 26;
    // Names stand at the ends of the lines and need their room.
    let height = (series.len() as i32 * 19 + TOP + 46).max(300);
    let bottom = height - 44;
    let points = || series.iter().flat_map(|series| &series.points);
    let x_max = points().map(|point| point.0).fold(1.0, f64::max);
    let step = round_step(points().map(|point| point.1).fold(0.0, f64::max) / 4.0);
    let y_max = (points().map(|point| point.1).fold(0.0, f64::max) / step).ceil().max(1.0) * step;
    let x = |value: f64| AXIS + (value / x_max * f64::from(WIDTH - AXIS - RIGHT)) as i32;
    let y = |value: f64| bottom - (value / y_max * f64::from(bottom - TOP)) as i32;
    let mut places: Vec<f64> = points().map(|point| point.0).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    draw(label, height, |area| {
        text(area, unit, (0, 9), HPos::Left, SOFT);
        let ticks = (y_max / step).round() as i32;
        for tick in 0..=ticks {
            let value = f64::from(tick) * step;
            let grid = if tick == 0 { SOFT } else { LINE };
            put(area, &PathElement::new([(AXIS, y(value)), (WIDTH - RIGHT, y(value))], grid.stroke_width(1)));
            text(area, &show(value), (AXIS - 6, y(value)), HPos::Right, SOFT);
        }
        for &place in &places {
            text(area, &format!("{place:.0}"), (x(place), bottom + 14), HPos::Center, SOFT);
        }
        text(area, "idle clients", (i32::midpoint(AXIS, WIDTH - RIGHT), bottom + 34), HPos::Center, SOFT);
        let ends: Vec<_> =
            series.iter().map(|series| series.points.last().map_or(bottom, |p| y(p.1))).collect();
        for ((number, series), label) in series.iter().enumerate().zip(apart(&ends, 18, TOP, bottom)) {
            let color = color(series.family);
            let way: Vec<_> = series.points.iter().map(|&(place, value)| (x(place), y(value))).collect();
            let Some(&end) = way.last() else { continue };
            put(area, &PathElement::new(way.clone(), color.stroke_width(2)));
            for point in way {
                marker(area, number, point, color);
            }
            let leader = [(end.0 + 6, end.1), (WIDTH - RIGHT + 8, label)];
            put(area, &PathElement::new(leader, LINE.stroke_width(1)));
            text(area, &short(series.name), (WIDTH - RIGHT + 12, label), HPos::Left, color);
        }
    })
}

/// Tops of the rows, with room between families, and the height of all.
fn rows(families: &[Family], top: i32) -> (Vec<i32>, i32) {
    let mut at = top;
    let mut tops = Vec::new();
    for (number, family) in families.iter().enumerate() {
        if number > 0 && families[number - 1] != *family {
            at += GAP;
        }
        tops.push(at);
        at += ROW;
    }
    (tops, at + 4)
}

/// Moves places apart that lie too close together, and keeps their order.
fn apart(places: &[i32], distance: i32, top: i32, bottom: i32) -> Vec<i32> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|&number| places[number]);
    let mut moved = places.to_vec();
    let mut least = top;
    for &number in &order {
        moved[number] = moved[number].max(least);
        least = moved[number] + distance;
    }
    let mut most = bottom;
    for &number in order.iter().rev() {
        moved[number] = moved[number].min(most);
        most = moved[number] - distance;
    }
    moved
}

/// A step of an axis: 1, 2 or 5 times a power of ten, and at least as large as is wanted.
fn round_step(wanted: f64) -> f64 {
    let power = 10f64.powf(wanted.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|&step| step >= wanted).unwrap_or(power)
}

fn draw(label: &str, height: i32, paint: impl FnOnce(&Area)) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        paint(&area);
        area.present().expect("a string takes every drawing");
    }
    let mut roles =
        vec![(INK, "ink".to_owned()), (SOFT, "soft".into()), (LINE, "line".into()), (PAPER, "panel".into())];
    roles.extend(Family::ALL.map(|family| (color(family), class(family).to_owned())));
    for (RGBColor(red, green, blue), role) in roles {
        svg = svg.replace(&format!("\"#{red:02X}{green:02X}{blue:02X}\""), &format!("\"var(--{role})\""));
    }
    let quoted = label.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{quoted}\" "), 1)
}

/// The name of a family's colour in the page.
pub fn class(family: Family) -> &'static str {
    match family {
        Family::Blocking => "blocking",
        Family::Scanned => "scanned",
        Family::Queued => "queued",
        Family::Coroutines => "coroutines",
        Family::Completion => "completion",
        Family::Other => "other",
    }
}

fn color(family: Family) -> RGBColor {
    RGBColor(1, 1, FAMILY + family as u8)
}

/// Engines of one family have one colour; their points differ in shape.
fn marker(area: &Area, number: usize, at: (i32, i32), color: RGBColor) {
    let (x, y) = at;
    match number % 4 {
        0 => put(area, &Circle::new(at, 5, color.filled())),
        1 => put(area, &Rectangle::new([(x - 5, y - 5), (x + 5, y + 5)], color.filled())),
        2 => put(area, &TriangleMarker::new(at, 6, color.filled())),
        _ => put(area, &Cross::new(at, 5, color.stroke_width(3))),
    }
}

fn name(area: &Area, name: &str, top: i32) {
    text(area, &short(name), (LEFT - 8, top + ROW / 2), HPos::Right, INK);
}

fn text(area: &Area, text: &str, at: (i32, i32), side: HPos, color: RGBColor) {
    let font = ("sans-serif", TEXT).into_font().color(&color);
    put(area, &Text::new(text.to_owned(), at, font.pos(Pos::new(side, VPos::Center))));
}

fn put<'b, E>(area: &Area<'b>, element: &E)
where
    E: Drawable<SVGBackend<'b>>,
    for<'e> &'e E: PointCollection<'e, (i32, i32)>,
{
    area.draw(element).expect("a string takes every drawing");
}

/// A name that fits: of a URL, the end of its host and port, which tells it from another.
fn short(name: &str) -> String {
    let name = name.strip_prefix("http://").map_or(name, |rest| rest.split('/').next().unwrap_or(rest));
    let length = name.chars().count();
    if length <= NAME_MAX {
        return name.to_owned();
    }
    let end: String = name.chars().skip(length - NAME_MAX + 1).collect();
    format!("…{}", end.trim_start_matches('.'))
}

/// A power of ten of microseconds.
fn short_time(microseconds: f64) -> String {
    match microseconds {
        ..1e3 => format!("{microseconds:.0} µs"),
        1e3..1e6 => format!("{:.0} ms", microseconds / 1e3),
        _ => format!("{:.0} s", microseconds / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_fixed_colour_is_left() {
        let bar = |family, hollow| Bar {
            name: "an engine with a long name",
            family,
            value: 5.0,
            range: (4.0, 6.0),
            text: "5".into(),
            hollow,
        };
        let pictures = [
            bars("a \"label\"", &Family::ALL.map(|family| bar(family, family == Family::Blocking))),
            bars("nothing", &[]),
            spectra(
                "x",
                &[Spectrum { name: "a", family: Family::Scanned, marks: [1.0, 2.0, 3.0, 4e6, 9e6] }],
            ),
            spectra("all zero", &[Spectrum { name: "a", family: Family::Other, marks: [0.0; 5] }]),
            lines(
                "y",
                "req/s",
                &[Series { name: "a", family: Family::Queued, points: vec![(0.0, 1.0), (800.0, 2.0)] }],
                |value| value.to_string(),
            ),
            lines("none", "", &[], |_| String::new()),
        ];
        for picture in pictures {
            assert!(!picture.contains("\"#"), "{picture}");
            assert!(!picture.contains("NaN") && picture.contains("role=\"img\""));
            assert!(picture.trim_end().ends_with("</svg>"));
        }
    }

    #[test]
    fn names_at_the_ends_of_lines_do_not_overlap() {
        assert_eq!(apart(&[50, 50, 52], 10, 0, 100), [50, 60, 70]);
        assert_eq!(apart(&[95, 99], 10, 0, 100), [90, 100]);
        assert_eq!(apart(&[70, 10], 10, 0, 100), [70, 10]);
        assert_eq!(apart(&[], 10, 0, 100), Vec::<i32>::new());
    }

    #[test]
    fn steps_are_round() {
        for (wanted, step) in [(0.9, 1.0), (1.1, 2.0), (2.5, 5.0), (12_345.0, 20_000.0), (0.03, 0.05)] {
            assert!((round_step(wanted) / step - 1.0).abs() < 1e-9, "{wanted}");
        }
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(short("tokio-uring"), "tokio-uring");
        assert_eq!(short("http://127.0.0.1:8080/a"), "…0.0.1:8080");
        assert_eq!(short("http://a:8080/b"), "a:8080");
    }
}
