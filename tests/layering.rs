//! The rules of the house, kept by a test so that nobody has to be the one who remarks.

use std::fs;
use std::path::{Path, PathBuf};

use ringserve::engines::ENGINES;

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has no source");
    found
}

/// Lines of `text` that are code, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn dependencies_run_one_way() {
    const OUTER: [&str; 7] = ["engines", "launch", "cli", "observe", "shutdown", "doctor", "healthcheck"];
    let forbidden = |room: &str| -> Vec<String> {
        let outer = OUTER.iter().map(|room| format!("crate::{room}"));
        let more: &[&str] = match room {
            "src/http" => &["crate::serve", "crate::content", "std::net", "std::fs", "rustix", "libc"],
            "src/content" => &["crate::serve", "std::net"],
            _ => &[],
        };
        outer.chain(more.iter().map(|&name| name.to_owned())).collect()
    };
    for room in ["src/http", "src/content"] {
        for (path, text) in sources(room) {
            for (number, line) in code(&text) {
                for name in forbidden(room) {
                    assert!(
                        !line.contains(&name),
                        "{}:{number}: {room} must not know {name}",
                        path.display()
                    );
                }
            }
        }
    }
    let serve = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve.rs")).unwrap();
    for (number, line) in code(&serve) {
        for name in ["crate::engines", "crate::launch", "crate::cli", "std::net", "std::fs"] {
            assert!(!line.contains(name), "src/serve.rs:{number} must not know {name}");
        }
    }
}

#[test]
fn only_the_table_names_an_engine() {
    for (path, text) in sources("src") {
        let is_engines = path.components().any(|part| part.as_os_str() == "engines");
        if !is_engines {
            for (number, line) in code(&text) {
                for engine in ENGINES {
                    let module = format!("{}::", engine.name.replace('-', "_"));
                    assert!(!line.contains(&module), "{}:{number} names an engine", path.display());
                }
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for_and_fits_the_page() {
    for folder in ["src", "tests", "benches"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//! "), "{} does not open with //!", path.display());
            for (number, line) in text.lines().enumerate() {
                let columns = line.chars().count();
                assert!(columns <= 110, "{}:{}: {columns} columns", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn unsafe_stays_in_the_engines_and_in_sys() {
    for (path, text) in sources("src") {
        let allowed = path.components().any(|part| part.as_os_str() == "engines") || path.ends_with("sys.rs");
        for (number, line) in code(&text) {
            let found = line.contains("unsafe ") || line.contains("allow(unsafe_code)");
            assert!(
                allowed || !found,
                "{}:{number}: unsafe outside src/engines and src/sys.rs",
                path.display()
            );
        }
    }
}
