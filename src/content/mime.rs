//! Content types by file name: the table of `mime_guess`, with text declared to be UTF-8.

use std::path::Path;

/// Types that the table lacks or that a newer standard has changed (JavaScript: RFC 9239).
const OVERRIDES: &[(&str, &str)] = &[
    ("js", "text/javascript; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("map", "application/json"),
    ("xml", "text/xml; charset=utf-8"),
    ("avif", "image/avif"),
    ("jxl", "image/jxl"),
    ("webmanifest", "application/manifest+json"),
];

/// The value of `Content-Type` for a file of this name.
pub fn content_type(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let path = Path::new(&*name);
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if let Some((_, known)) = OVERRIDES.iter().find(|(known, _)| ending.eq_ignore_ascii_case(known)) {
        return (*known).to_owned();
    }
    match mime_guess::from_path(path).first_raw() {
        Some(text) if text.starts_with("text/") => format!("{text}; charset=utf-8"),
        Some(other) => other.to_owned(),
        None => "application/octet-stream".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_of_the_web_are_known() {
        for (name, wanted) in [
            ("index.html", "text/html; charset=utf-8"),
            ("T.HTML", "text/html; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.html.txt", "text/plain; charset=utf-8"),
            ("a.md", "text/markdown; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.xml", "text/xml; charset=utf-8"),
            ("a.svg", "image/svg+xml"),
            ("a.png", "image/png"),
            ("a.jpg", "image/jpeg"),
            ("a.webp", "image/webp"),
            ("a.avif", "image/avif"),
            ("a.woff2", "font/woff2"),
            ("a.wasm", "application/wasm"),
            ("a.pdf", "application/pdf"),
            ("a.mp4", "video/mp4"),
            ("a.webmanifest", "application/manifest+json"),
            ("a.map", "application/json"),
            ("a.gz", "application/gzip"),
            ("a.ico", "image/x-icon"),
            ("noext", "application/octet-stream"),
            ("a.qqq", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name.as_bytes()), wanted, "{name}");
        }
    }
}
