//! Lines in a frame, as SVG.

use std::fmt::Write;

use super::results::Series;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 55.0;

/// Can be told apart by those who see fewer colours (Okabe and Ito), and on white as well as on dark.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];

/// A plot with logarithmic axes.
pub(super) fn render(series: &Series) -> String {
    let points = || series.lines.iter().flat_map(|line| line.points.iter());
    let x = Axis::over(points().map(|(x, _)| *x), LEFT, WIDTH - RIGHT);
    let y = Axis::over(points().map(|(_, y)| *y), HEIGHT - BOTTOM, TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escaped(series.title)
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for (value, at) in y.ticks() {
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let mut values: Vec<f64> = points().map(|(x, _)| *x).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    for value in values {
        let at = x.place(value);
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#eee\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            label(value)
        );
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        right - LEFT,
        bottom - TOP,
        f64::midpoint(LEFT, right),
        HEIGHT - 14.0,
        escaped(series.x),
        f64::midpoint(TOP, bottom),
        escaped(series.y)
    );
    for ((line, colour), row) in series.lines.iter().zip(COLOURS.iter().cycle()).zip(0u32..) {
        let mut path = String::new();
        for (point, (px, py)) in line.points.iter().enumerate() {
            let (letter, x, y) = (if point == 0 { 'M' } else { 'L' }, x.place(*px), y.place(*py));
            let _ = write!(path, "{letter}{x:.1} {y:.1}");
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let (start, height) = (right + 14.0, TOP + 10.0 + 20.0 * f64::from(row));
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <path d=\"M{start} {height}h20\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            start + 26.0,
            height + 4.0,
            escaped(&line.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// From the logarithm of a value to a place.
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let logs = values.filter(|value| *value > 0.0).map(f64::log10);
        let (least, most) =
            logs.fold((f64::MAX, f64::MIN), |(least, most), log| (least.min(log), most.max(log)));
        if least > most {
            return Axis { least: 0.0, most: 1.0, from, to };
        }
        // Some room at both ends.
        let room = ((most - least) * 0.05).max(0.05);
        Axis { least: least - room, most: most + room, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.max(f64::MIN_POSITIVE).log10() - self.least) / (self.most - self.least);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// 1, 2 and 5 of each power of ten that is inside.
    fn ticks(&self) -> Vec<(String, f64)> {
        let powers = self.least.floor() as i32..=self.most.ceil() as i32;
        let values = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
        let inside = values.filter(|value| (self.least..=self.most).contains(&value.log10()));
        inside.map(|value| (label(value), self.place(value))).collect()
    }
}

/// A number as short as it can be.
fn label(value: f64) -> String {
    let text = if value >= 1.0 { format!("{value:.1}") } else { format!("{value:.4}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::results::{Line, Series};
    use super::{label, render};

    #[test]
    fn every_line_is_drawn_and_named() {
        let line =
            |name: &str, y: f64| Line { name: name.to_owned(), points: vec![(1.0, y), (4.0, 2.0 * y)] };
        let lines = vec![line("a < b", 10.0), line("c", 0.5)];
        let svg =
            render(&Series { name: "n", title: "t", description: String::new(), x: "x", y: "y", lines });
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("a &lt; b") && svg.contains(">c</text>") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([10_000.0, 2.5, 0.0625, 1.0].map(label), ["10000", "2.5", "0.0625", "1"]);
    }
}
