//! An activation code as a QR image, for mails that show one. What the app's scanner expects is not published: this is the bare code.

use qrcode::Color;
use qrcode::EcLevel;
use qrcode::QrCode;

/// Names the image within its mail.
pub const CONTENT_ID: &str = "activation-code";
/// What a mail program calls the image when it is saved.
pub const FILE_NAME: &str = "activation-code.png";
/// The light margin, in modules, that a scanner needs.
const MARGIN: usize = 4;
/// Pixels of one module in the image.
const SCALE: usize = 8;
/// Pixels of the side of the image as it is shown, whatever the display makes of one.
const SHOWN: usize = 176;
/// Begins and ends the place of the image in a template's HTML; between them stands its alternative text.
const PLACE: (&str, &str) = ("<!-- qr: ", " -->");

/// A PNG of one bit per pixel; `None` for a code that no QR image can hold, which is one of more than 2000 characters.
pub fn png(code: &str) -> Option<Vec<u8>> {
    let qr = QrCode::with_error_correction_level(code, EcLevel::M).ok()?;
    let (modules, colors) = (qr.width(), qr.to_colors());
    let is_dark = |x: usize, y: usize| {
        let module = |at: usize| (at / SCALE).checked_sub(MARGIN).filter(|at| *at < modules);
        let (Some(x), Some(y)) = (module(x), module(y)) else {
            return false;
        };
        colors[y * modules + x] == Color::Dark
    };
    let side = (modules + 2 * MARGIN) * SCALE;
    let mut rows = Vec::with_capacity(side * side.div_ceil(8));
    for y in 0..side {
        for byte in 0..side.div_ceil(8) {
            // A bit that is set is white.
            let bits = (0..8).map(|bit| !is_dark(byte * 8 + bit, y));
            rows.push(bits.fold(0, |byte, light| byte << 1 | u8::from(light)));
        }
    }
    let mut image = Vec::new();
    let side = u32::try_from(side).ok()?;
    let mut encoder = png::Encoder::new(&mut image, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header().ok()?;
    writer.write_image_data(&rows).ok()?;
    writer.finish().ok()?;
    Some(image)
}

/// The HTML with the image where its template wants it, `<!-- qr: alternative text -->`; `None` where it wants none.
pub fn place(html: &str) -> Option<String> {
    let (before, rest) = html.split_once(PLACE.0)?;
    let (alt, after) = rest.split_once(PLACE.1)?;
    let alt = alt.replace('<', "&lt;").replace('"', "&quot;");
    Some(format!(
        "{before}<p style=\"margin:0 0 18px;text-align:center;\"><img src=\"cid:{CONTENT_ID}\" width=\"{SHOWN}\" height=\"{SHOWN}\" alt=\"{alt}\" style=\"border:0;\"></p>{after}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_stands_where_the_template_wants_it() {
        let shown = place("<p>a</p><!-- qr: The \"code\" --><p>b</p>").unwrap();
        assert!(shown.starts_with("<p>a</p><p style"), "{shown}");
        assert!(shown.contains("alt=\"The &quot;code&quot;\""), "{shown}");
        assert!(shown.ends_with("</p><p>b</p>"), "{shown}");
        assert_eq!(place("<p>a</p>"), None);
    }

    #[test]
    fn a_code_that_no_image_holds_has_none() {
        assert!(png("EEIOTCU3LENEDJMR").is_some_and(|png| png.len() < 2_000));
        assert_eq!(png(&"x".repeat(5_000)), None);
    }
}
