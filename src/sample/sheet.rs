//! Contact sheets: pictures in rows and columns with words beside them, as one RGB picture.
//!
//! Only printable ASCII can be drawn; other characters become `?`.

use std::convert::Infallible;

use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::ascii::FONT_7X13;
use embedded_graphics::pixelcolor::{Rgb888, RgbColor as _};
use embedded_graphics::prelude::Drawable as _;
use embedded_graphics::text::{Baseline, Text};
use image::{Rgb, RgbImage, imageops};

// Of `FONT_7X13`, with two pixels between lines.
const LETTER_WIDTH_PX: u32 = 7;
const LINE_HEIGHT_PX: u32 = 15;
const GAP_PX: u32 = 8;
const LABEL_WIDTH_PX: u32 = 24 * LETTER_WIDTH_PX;
const PAPER: Rgb<u8> = Rgb([250, 250, 248]);

/// One row of a sheet.
pub struct SheetRow {
    /// The words at its left, wrapped.
    pub label: String,
    /// Its pictures, one a column.
    pub pictures: Vec<RgbImage>,
}

/// Draws a sheet: a title, a line of column heads, and the rows.
///
/// A column is as wide as its widest picture; smaller pictures stand at its left.
pub fn contact_sheet(title: &str, heads: &[&str], rows: &[SheetRow]) -> RgbImage {
    let columns = rows
        .iter()
        .map(|r| r.pictures.len())
        .max()
        .unwrap_or(0)
        .max(heads.len());
    let widths: Vec<u32> = (0..columns).map(|c| column_width(heads, rows, c)).collect();
    let heights: Vec<u32> = rows.iter().map(row_height).collect();
    let width = LABEL_WIDTH_PX + 2 * GAP_PX + widths.iter().map(|w| w + GAP_PX).sum::<u32>();
    let top = 2 * GAP_PX + 2 * LINE_HEIGHT_PX + GAP_PX;
    let height = top + heights.iter().map(|h| h + GAP_PX).sum::<u32>();
    let title_width = text_width(title) + 2 * GAP_PX;
    let mut sheet = Sheet(RgbImage::from_pixel(width.max(title_width), height, PAPER));
    sheet.write(title, GAP_PX, GAP_PX);

    let lefts: Vec<u32> = widths
        .iter()
        .scan(LABEL_WIDTH_PX + 2 * GAP_PX, |left, w| {
            let column_left = *left;
            *left += w + GAP_PX;
            Some(column_left)
        })
        .collect();
    for (head, left) in heads.iter().zip(&lefts) {
        sheet.write(head, *left, 2 * GAP_PX + LINE_HEIGHT_PX);
    }
    let mut y = top;
    for (row, height) in rows.iter().zip(heights) {
        for (i, line) in wrap(&row.label, (LABEL_WIDTH_PX / LETTER_WIDTH_PX) as usize)
            .iter()
            .enumerate()
        {
            sheet.write(line, GAP_PX, y + i as u32 * LINE_HEIGHT_PX);
        }
        for (picture, left) in row.pictures.iter().zip(&lefts) {
            imageops::replace(&mut sheet.0, picture, i64::from(*left), i64::from(y));
        }
        y += height + GAP_PX;
    }
    sheet.0
}

fn column_width(heads: &[&str], rows: &[SheetRow], column: usize) -> u32 {
    let pictures = rows
        .iter()
        .filter_map(|r| r.pictures.get(column))
        .map(RgbImage::width);
    pictures
        .chain(heads.get(column).map(|h| text_width(h)))
        .max()
        .unwrap_or(0)
}

fn row_height(row: &SheetRow) -> u32 {
    let lines = wrap(&row.label, (LABEL_WIDTH_PX / LETTER_WIDTH_PX) as usize).len() as u32;
    let pictures = row.pictures.iter().map(RgbImage::height);
    pictures.chain([lines * LINE_HEIGHT_PX]).max().unwrap_or(0)
}

fn text_width(text: &str) -> u32 {
    text.chars().count() as u32 * LETTER_WIDTH_PX
}

/// Breaks at spaces, and inside a word only where it is longer than a line.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        while !rest.is_empty() {
            let line = lines.last_mut().map_or(0, |l| l.chars().count());
            let space = usize::from(line > 0);
            // A word longer than a line is cut, but only from the start of a line: else it would be cut where it need not be.
            if line + space + rest.len() <= columns || line == 0 {
                let taken: String = rest.drain(..rest.len().min(columns)).collect();
                if let Some(last) = lines.last_mut() {
                    last.extend((space > 0).then_some(' '));
                    last.push_str(&taken);
                }
            } else {
                lines.push(String::new());
            }
        }
    }
    lines
}

struct Sheet(RgbImage);

impl Sheet {
    fn write(&mut self, text: &str, x: u32, y: u32) {
        let printable: String = text
            .chars()
            .map(|c| {
                if c.is_ascii_graphic() || c == ' ' {
                    c
                } else {
                    '?'
                }
            })
            .collect();
        let style = MonoTextStyle::new(&FONT_7X13, Rgb888::new(30, 30, 30));
        let place = Point::new(x as i32, y as i32);
        // `Infallible` is the sheet's error: there is no other arm.
        let Ok(_) = Text::with_baseline(&printable, place, style, Baseline::Top).draw(self);
    }
}

impl OriginDimensions for Sheet {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Sheet {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, color) in pixels {
            // The trait asks that pixels outside are passed over.
            if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
                && let Some(pixel) = self.0.get_pixel_mut_checked(x, y)
            {
                *pixel = Rgb([color.r(), color.g(), color.b()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{PAPER, SheetRow, contact_sheet, wrap};
    use image::{Rgb, RgbImage};

    #[test]
    fn every_picture_and_every_word_is_on_the_sheet() {
        let red = RgbImage::from_pixel(40, 30, Rgb([255, 0, 0]));
        let blue = RgbImage::from_pixel(20, 50, Rgb([0, 0, 255]));
        let rows = [
            SheetRow {
                label: "a red one".into(),
                pictures: vec![red.clone(), blue.clone()],
            },
            SheetRow {
                label: String::new(),
                pictures: vec![blue],
            },
        ];
        let sheet = contact_sheet("title", &["before", "after"], &rows);
        let count = |c: [u8; 3]| sheet.pixels().filter(|p| p.0 == c).count();
        assert_eq!(
            (count([255, 0, 0]), count([0, 0, 255])),
            (40 * 30, 2 * 20 * 50)
        );
        assert!(count([30, 30, 30]) > 50, "no text was drawn");
        assert_eq!(sheet.get_pixel(0, 0), &PAPER);
    }

    #[test]
    fn a_sheet_of_nothing_is_still_a_picture() {
        assert!(contact_sheet("", &[], &[]).width() > 0);
    }

    #[test]
    fn lines_break_at_spaces_and_long_words_inside() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("", 4), [""]);
    }
}
