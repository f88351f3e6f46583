//! A picture of a file's pages.

use std::io::{self, Write};
use std::path::Path;

use super::figures::Figures;

/// Characters that the pages of a file are shown in.
const WIDTH: usize = 60;

/// Prints the file's name, and below it which of its pages are in memory.
pub(super) fn print(output: &mut impl Write, path: &Path, figures: &Figures) -> io::Result<()> {
    writeln!(output, "{}", path.display())?;
    writeln!(output, "[{}] {}/{}", draw(&figures.pages), figures.resident, figures.pages.len())
}

/// One character for each page, or for as many as it takes.
fn draw(pages: &[bool]) -> String {
    let width = pages.len().min(WIDTH);
    let cell = |i: usize| &pages[i * pages.len() / width..(i + 1) * pages.len() / width];
    (0..width)
        .map(cell)
        .map(|cell| match cell.iter().filter(|resident| **resident).count() {
            0 => ' ',
            all if all == cell.len() => 'O',
            _ => 'o',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::draw;

    #[test]
    fn a_picture_shows_all_pages_in_order() {
        assert_eq!(draw(&[]), "");
        assert_eq!(draw(&[true, false, true]), "O O");
        let many: Vec<bool> = (0..6001).map(|page| page < 3050).collect();
        let drawn = draw(&many);
        assert_eq!(drawn.len(), 60);
        assert_eq!(drawn.trim_end(), format!("{}o", "O".repeat(30)));
    }
}
