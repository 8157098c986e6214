//! Tables: names to the left, figures to the right, two spaces between.

/// A column's heading, and whether its cells are figures.
pub struct Column {
    pub name: &'static str,
    pub figures: bool,
}

/// A column of words.
pub const fn words(name: &'static str) -> Column {
    Column { name, figures: false }
}

/// A column of figures.
pub const fn figures(name: &'static str) -> Column {
    Column { name, figures: true }
}

/// A table with a line of headings; control characters in cells are made visible.
pub fn columns(head: &[Column], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| super::one_line(cell)).collect()).collect();
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row.get(at).map_or(0, |cell| cell.chars().count()));
        cells.chain([head[at].name.chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let names = head.iter().map(|column| column.name.to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&names).chain(&rows) {
        let mut line = String::new();
        for ((cell, column), width) in row.iter().zip(head).zip(&widths) {
            let gap = if line.is_empty() { "" } else { "  " };
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            let (before, after) = if column.figures { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line.push_str(&format!("{gap}{before}{cell}{after}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stand_below_each_other() {
        let head = [words("NAME"), figures("POINTS"), words("STATE")];
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let table = columns(&head, &[row(["a", "12", ""]), row(["web-01\n", "3", "damaged"])]);
        assert_eq!(table, "NAME      POINTS  STATE\na             12\nweb-01\\n       3  damaged\n");
        assert_eq!(columns(&head, &[]), "NAME  POINTS  STATE\n");
    }
}
